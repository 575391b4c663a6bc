//! For tests: the largest allocation that a thread asked for. This module is meant for `unsafe`: it is an allocator.
#![expect(unsafe_code, reason = "see the module's text; every call goes to the system's allocator as it came")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watched;

#[global_allocator]
static WATCHED: Watched = Watched;

fn note(bytes: usize) {
    // At the end of a thread there is nobody to tell.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

// SAFETY: the system's allocator keeps the contract, and gets each call unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note(new_size);
        // SAFETY: as the caller's.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The largest allocation of this thread in bytes while `body` ran, and what it gave.
pub(crate) fn largest_of<T>(body: impl FnOnce() -> T) -> (usize, T) {
    let before = LARGEST.replace(0);
    let value = body();
    let found = LARGEST.get();
    LARGEST.set(before.max(found));
    (found, value)
}
