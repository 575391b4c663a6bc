//! Zeroed, cache-line aligned memory, on huge pages where it is large, and prefetch hints.
//!
//! Everything above works on the slices handed out here, with bounds checks, so no mistake elsewhere can touch foreign memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;
use std::slice;

/// Size and alignment of a huge page. Buffers of at least this size are mapped, smaller ones come from the allocator.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Alignment of buffers for direct I/O; no device asks for more.
pub(crate) const SYSTEM_PAGE_BYTES: usize = 4096;
/// Alignment of every buffer: a cache line.
const ALIGNMENT: usize = 64;

/// Owned memory, zero at first, aligned to 64 bytes, a multiple of 64 bytes long.
pub(crate) struct Buffer {
    start: NonNull<u64>,
    bytes: usize,
    origin: Origin,
}

/// Where a buffer's memory goes back to.
#[derive(Clone, Copy, Debug)]
enum Origin {
    Mapped,
    Allocated { alignment: u32 },
}

// SAFETY: a Buffer owns its memory alone and hands it out only by the borrow rules of its own `&` and `&mut`; `u64` is Send and Sync.
unsafe impl Send for Buffer {}
// SAFETY: as above; `&Buffer` gives only `&[u8]`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// At least `bytes` (> 0) of zeros.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT);
        if bytes >= HUGE_PAGE_BYTES
            && let Some(start) = map(bytes)
        {
            return Self { start, bytes, origin: Origin::Mapped };
        }
        Self::allocated(bytes, ALIGNMENT)
    }

    /// At least `bytes` (> 0) of zeros, aligned to a page of the system and a multiple of it long: for I/O around the system's cache.
    pub(crate) fn for_direct_io(bytes: usize) -> Self {
        Self::allocated(bytes.max(1).next_multiple_of(SYSTEM_PAGE_BYTES), SYSTEM_PAGE_BYTES)
    }

    /// `bytes` is above 0 and a multiple of 64, `alignment` a power of two.
    fn allocated(bytes: usize, alignment: usize) -> Self {
        let layout = Self::layout(bytes, alignment);
        assert!(layout.size() > 0, "a buffer has at least one cache line");
        // SAFETY: the layout's size is not zero: asserted above.
        let start = unsafe { alloc_zeroed(layout) }.cast::<u64>();
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, bytes, origin: Origin::Allocated { alignment: alignment as u32 } }
    }

    fn layout(bytes: usize, alignment: usize) -> Layout {
        Layout::from_size_align(bytes, alignment).expect("a size below isize::MAX: no address space holds more")
    }

    /// How long it is.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// As bytes.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `start` points at `bytes` initialised bytes that live as long as self; `&self` excludes writers.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast::<u8>(), self.bytes) }
    }

    /// As bytes, to write.
    #[inline(always)]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` excludes everybody else.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr().cast::<u8>(), self.bytes) }
    }

    /// Asks the processor for the cache line at `offset`; a hint, whatever the offset.
    #[inline(always)]
    pub(crate) fn prefetch(&self, offset: usize) {
        let at = self.start.as_ptr().cast::<u8>().wrapping_add(offset);
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: a prefetch never faults and changes no state that the program can see, at any address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast::<i8>());
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = at;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.origin {
            Origin::Mapped => {
                // SAFETY: `start` and `bytes` are what `map` returned; nobody borrows the buffer any more. munmap of an existing range can
                // only fail for a lack of kernel memory when it splits a mapping; the range leaks then, which is safe.
                let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
            }
            Origin::Allocated { alignment } => {
                // SAFETY: `allocated` made it with this very layout, and nobody borrows the buffer any more.
                unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.bytes, alignment as usize)) };
            }
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} B, {:?})", self.bytes, self.origin)
    }
}

/// Maps `bytes` (a multiple of 64), aligned to a huge page, and asks for huge pages; `None` where the system refuses.
#[cfg(not(miri))]
fn map(bytes: usize) -> Option<NonNull<u64>> {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
    let bytes = bytes.next_multiple_of(4096);
    let whole = bytes.checked_add(HUGE_PAGE_BYTES)?;
    // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice aliases nothing.
    let start =
        unsafe { mmap_anonymous(std::ptr::null_mut(), whole, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }.ok()?;
    let lead = start.align_offset(HUGE_PAGE_BYTES).min(HUGE_PAGE_BYTES);
    let (aligned, tail) = (start.wrapping_byte_add(lead), HUGE_PAGE_BYTES - lead);
    // SAFETY: both ranges are page-aligned parts of the fresh mapping outside of the aligned part that is kept; a failure leaks address space.
    unsafe {
        if lead > 0 {
            let _ = munmap(start, lead);
        }
        if tail > 0 {
            let _ = munmap(aligned.wrapping_byte_add(bytes), tail);
        }
    }
    // SAFETY: the range is ours; huge pages are advice, and a kernel without them refuses harmlessly.
    let _ = unsafe { madvise(aligned, bytes, Advice::LinuxHugepage) };
    NonNull::new(aligned.cast())
}

#[cfg(miri)]
fn map(_bytes: usize) -> Option<NonNull<u64>> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_aligned_and_writable_to_the_last_byte() {
        for bytes in [1, 63, 64, 4096, HUGE_PAGE_BYTES - 1, HUGE_PAGE_BYTES, HUGE_PAGE_BYTES + 4160, 3 * HUGE_PAGE_BYTES] {
            let mut buffer = Buffer::zeroed(bytes);
            assert!(buffer.len() >= bytes && buffer.len().is_multiple_of(64));
            assert_eq!(buffer.bytes().as_ptr() as usize % 64, 0);
            assert!(buffer.bytes().iter().all(|b| *b == 0));
            buffer.bytes_mut()[bytes - 1] = 7;
            buffer.bytes_mut()[5] |= 1;
            buffer.prefetch(bytes * 10);
            assert_eq!(buffer.bytes()[5], if bytes == 6 { 7 } else { 1 });
            assert_eq!(buffer.bytes()[bytes - 1], 7);
        }
    }

    #[test]
    fn buffers_for_direct_io_are_whole_pages_of_the_system() {
        for bytes in [1, 4095, 4096, 66_048, HUGE_PAGE_BYTES + 1] {
            let mut buffer = Buffer::for_direct_io(bytes);
            assert_eq!((buffer.len(), buffer.bytes().as_ptr() as usize % SYSTEM_PAGE_BYTES), (bytes.next_multiple_of(4096), 0));
            assert!(buffer.bytes().iter().all(|b| *b == 0));
            let last = buffer.len() - 1;
            buffer.bytes_mut()[last] = 9;
        }
    }
}
