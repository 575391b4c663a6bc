//! How time and chance reach Ring 0, so that a test or a simulator can own them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::wake::Wake;
use crate::ids::CoreId;

/// A core's world. One instance a core; only its thread calls it.
pub trait Env: Send {
    /// Wall time, µs since 1970. Never goes back.
    fn now_us(&mut self) -> i64;
    /// A number below `n` (at least 1): the choice among things that are equally due, such as the lanes of a node.
    fn choose(&mut self, n: usize) -> usize;
    /// Gives the CPU away for at most `timeout_us`, unless `ready` finds work or another thread uses `wake`.
    fn park(&mut self, wake: &Wake, timeout_us: i64, ready: &mut dyn FnMut() -> bool);
}

/// Makes a core's world.
pub type EnvFactory = Arc<dyn Fn(CoreId) -> Box<dyn Env> + Send + Sync>;

/// The machine: its clock, read once as wall time and then monotonic, so that a clock that is set meanwhile changes nothing.
#[derive(Clone, Debug)]
pub struct SystemEnv {
    started: Instant,
    started_us: i64,
    spin_us: i64,
    turn: usize,
}

impl SystemEnv {
    /// The machine's clock from now on. `spin_us`: for how long a core without work looks for some before it sleeps.
    #[must_use]
    pub fn new(spin_us: i64) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), started_us: i64::try_from(since.as_micros()).unwrap_or(i64::MAX), spin_us, turn: 0 }
    }
}

impl Env for SystemEnv {
    fn now_us(&mut self) -> i64 {
        self.started_us.saturating_add(i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    fn choose(&mut self, n: usize) -> usize {
        self.turn = self.turn.wrapping_add(1);
        self.turn % n
    }

    fn park(&mut self, wake: &Wake, timeout_us: i64, ready: &mut dyn FnMut() -> bool) {
        let spin_until = self.now_us().saturating_add(self.spin_us.min(timeout_us));
        while self.spin_us > 0 && self.now_us() < spin_until {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
        wake.sleep(Duration::from_micros(u64::try_from(timeout_us).unwrap_or(0)), ready);
    }
}

/// A seeded world for tests: its clock goes on by a random step each time it is read, so epochs end after random numbers of turns, and
/// lanes are served in random order. Cores drift apart, as they do on a busy machine.
#[derive(Clone, Debug)]
pub struct VirtualEnv {
    now_us: i64,
    step_us_max: i64,
    state: u64,
}

impl VirtualEnv {
    /// A world that starts at `start_us`; each reading of the clock moves it by up to `step_us_max`.
    #[must_use]
    pub fn new(start_us: i64, step_us_max: i64, seed: u64, core: CoreId) -> Self {
        let state = seed ^ (u64::from(core.0) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self { now_us: start_us, step_us_max: step_us_max.max(1), state }
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl Env for VirtualEnv {
    fn now_us(&mut self) -> i64 {
        // Squared, so that most steps are short and some are long.
        let unit = (self.random() >> 11) as f64 / (1u64 << 53) as f64;
        self.now_us += (unit * unit * self.step_us_max as f64) as i64;
        self.now_us
    }

    fn choose(&mut self, n: usize) -> usize {
        (self.random() % n as u64) as usize
    }

    fn park(&mut self, wake: &Wake, timeout_us: i64, ready: &mut dyn FnMut() -> bool) {
        // Virtual time needs no waiting; the short sleep only lets other threads go on.
        wake.sleep(Duration::from_micros(timeout_us.clamp(0, 50) as u64), ready);
    }
}
