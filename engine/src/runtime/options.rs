//! How a job runs.

use std::fmt;
use std::path::PathBuf;

use tiderace_storage::PressureGauge;

use super::checkpoint::CheckpointOptions;
use super::env::EnvFactory;

/// How a job runs; [`Default`] is throughput mode on one core.
#[derive(Clone)]
pub struct JobOptions {
    /// The job's name, in thread names and messages.
    pub name: String,
    /// Ring 0 threads; 1 to 256.
    pub cores: usize,
    /// What the state of all cores together may hold, in bytes.
    pub memory_bytes: usize,
    /// A directory for state that doesn't fit `memory_bytes`: each core writes pages of its tables to a folder of its own there, and reads them
    /// back when their keys come. Scratch: emptied at the start and at the end. `None`: state that doesn't fit ends the job.
    pub state_directory: Option<PathBuf>,
    /// Where the job keeps checkpoints, and goes on from the last one; `None`: it begins anew at each start. Not together with
    /// [`Self::state_directory`].
    pub checkpoints: Option<CheckpointOptions>,
    /// Whether io_uring is tried for the state directory; else, and where the system refuses it, threads read and write.
    pub io_uring: bool,
    /// Tells state with a directory when the process is short of memory: it then holds less.
    pub pressure: PressureGauge,
    /// The length of an epoch, ms: 2–10 in latency mode, 100 by default.
    pub interval_ms: u64,
    /// Whether each core stays on one CPU out of those that the process may use. Without effect when there are fewer CPUs than cores.
    pub pin: bool,
    /// The number of vnodes: how finely keys can be spread over cores, for the job's whole life. 1 to 65,536.
    pub max_parallelism: u32,
    /// How many bytes may wait on one edge from one core to another before the sender waits.
    pub edge_bytes_max: usize,
    /// How many rows a source is asked for at once.
    pub poll_rows: usize,
    /// How many rows of one destination are gathered before they cross to another core (fewer when it waits for them, and at each mark).
    pub exchange_rows: usize,
    /// For how long a core without work looks for some before it sleeps, µs.
    pub spin_us: u64,
    /// The start of epoch 1, µs since 1970; `None`: now.
    pub start_us: Option<i64>,
    /// The world of each core; `None`: the machine's.
    pub env: Option<EnvFactory>,
}

impl JobOptions {
    /// The greatest number of cores.
    pub const CORES_MAX: usize = 256;

    /// Small batches and epochs of 5 ms.
    #[must_use]
    pub fn latency() -> Self {
        Self { interval_ms: 5, poll_rows: 1024, exchange_rows: 512, spin_us: 50, ..Self::default() }
    }
}

impl Default for JobOptions {
    fn default() -> Self {
        Self {
            name: "job".to_owned(),
            cores: 1,
            memory_bytes: 1 << 30,
            state_directory: None,
            checkpoints: None,
            io_uring: true,
            pressure: PressureGauge::default(),
            interval_ms: 100,
            pin: true,
            max_parallelism: 256,
            edge_bytes_max: 4 << 20,
            poll_rows: 8192,
            exchange_rows: 4096,
            spin_us: 0,
            start_us: None,
            env: None,
        }
    }
}

impl fmt::Debug for JobOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobOptions")
            .field("name", &self.name)
            .field("cores", &self.cores)
            .field("memory_bytes", &self.memory_bytes)
            .field("state_directory", &self.state_directory)
            .field("checkpoints", &self.checkpoints)
            .field("io_uring", &self.io_uring)
            .field("interval_ms", &self.interval_ms)
            .field("pin", &self.pin)
            .field("max_parallelism", &self.max_parallelism)
            .field("edge_bytes_max", &self.edge_bytes_max)
            .field("poll_rows", &self.poll_rows)
            .field("exchange_rows", &self.exchange_rows)
            .field("spin_us", &self.spin_us)
            .field("start_us", &self.start_us)
            .finish_non_exhaustive()
    }
}
