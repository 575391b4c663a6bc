//! Sleep and wake-up between threads that otherwise meet only in rings.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::{self, Thread};
use std::time::Duration;

/// Lets one thread sleep until another has something for it.
///
/// The sleeper says so, then looks once more whether there is work; a waker publishes its work, then looks whether someone sleeps. With the
/// two fences at least one of them sees the other (Dekker), so no wake-up is lost, and waking a thread that is awake costs no more than a
/// fence and a load.
#[derive(Debug, Default)]
pub struct Wake {
    sleeper: OnceLock<Thread>,
    asleep: AtomicBool,
}

impl Wake {
    /// Makes the calling thread the one that sleeps here. The first call decides.
    pub fn attach(&self) {
        self.sleeper.get_or_init(thread::current);
    }

    /// Wakes the sleeper, if it sleeps. What it shall find must have been published before.
    pub fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed)
            && let Some(thread) = self.sleeper.get()
        {
            thread.unpark();
        }
    }

    /// Sleeps until woken, at most `timeout`; not at all when `ready` says that there is work. May return early.
    pub fn sleep(&self, timeout: Duration, ready: impl FnOnce() -> bool) {
        debug_assert!(self.sleeper.get().is_none_or(|thread| thread.id() == thread::current().id()), "only its owner sleeps");
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !ready() {
            thread::park_timeout(timeout);
        }
        self.asleep.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn no_wake_up_is_lost() {
        let (wake, work) = (Arc::new(Wake::default()), Arc::new(AtomicUsize::new(0)));
        let sleeper = {
            let (wake, work) = (wake.clone(), work.clone());
            thread::spawn(move || {
                wake.attach();
                for seen in 0..2_000 {
                    while work.load(Ordering::Relaxed) <= seen {
                        // An hour: a lost wake-up hangs the test instead of hiding behind the timeout.
                        wake.sleep(Duration::from_secs(3600), || work.load(Ordering::Relaxed) > seen);
                    }
                }
            })
        };
        while !sleeper.is_finished() {
            work.fetch_add(1, Ordering::Relaxed);
            wake.notify();
            thread::yield_now();
        }
        sleeper.join().expect("the sleeper saw all work");
    }
}
