//! One core's state: its shard, and the folder for what doesn't fit the core's memory.
//!
//! The folder is scratch: its content belongs to a running job and is worth nothing without the shard that wrote it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tiderace_storage::{
    Backend, DeviceOptions, PressureGauge, Shard, ShardOptions, StoreError, StoreOptions, TableLayout, open_device_with,
};

use super::JobOptions;
use super::progress::{IoBackend, StateIo};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::CoreId;
use crate::operators::aggregate::TableIds;

/// How many pages of dropped tables a turn frees: some hundred microseconds where pages are not huge.
const RECLAIMED_PAGES: usize = 2;
/// How long the device is waited for in one go: rings and the clock are looked at in between.
const WAIT: Duration = Duration::from_millis(1);
/// How many such waits in a row may bring nothing before memory is said to be too small: half a minute at least.
const FRUITLESS_WAITS_MAX: usize = 30_000;
/// The least memory of a core that has a folder: smaller budgets spend themselves on directories of pages.
pub(super) const BUDGET_BYTES_MIN: usize = 4 << 20;
/// The file by which a folder is known to be ours; a device keeps it locked.
const LOCK_FILE: &str = ".lock";

/// See the module.
pub(super) struct CoreState {
    /// Given up before its folder.
    pub(super) shard: Shard,
    folder: Option<Folder>,
}

struct Folder {
    path: PathBuf,
    backend: IoBackend,
    pressure: PressureGauge,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "a folder of state that nobody needs any more can't be removed");
        }
    }
}

impl CoreState {
    /// The empty state of one core.
    pub(super) fn open(options: &JobOptions, core: CoreId) -> Result<Self> {
        let budget = ShardOptions { budget_bytes: options.memory_bytes / options.cores };
        let Some(directory) = &options.state_directory else { return Ok(Self { shard: Shard::new(budget), folder: None }) };
        let path = directory.join(format!("core-{core}"));
        refuse_foreign(&path)?;
        let device = DeviceOptions { io_uring: options.io_uring, ..DeviceOptions::default() };
        let opened = open_device_with(&path, &device).map_err(|e| failed(&path, &StoreError::Device(e)))?;
        let backend = match opened.backend {
            Backend::IoUring { .. } => IoBackend::IoUring,
            Backend::Threads { .. } => IoBackend::Threads,
        };
        let store = StoreOptions { shard: u32::from(core.0), ..StoreOptions::default() };
        let mut shard =
            Shard::with_device(budget, TableLayout::for_device(), opened.device, store).map_err(|e| failed(&path, &e))?;
        shard.heed(options.pressure.clone());
        Ok(Self { shard, folder: Some(Folder { path, backend, pressure: options.pressure.clone() }) })
    }

    /// Once a turn: memory is given back, pages are written. Whether there was something to do that goes on.
    pub(super) fn turn(&mut self) -> Result<bool> {
        let more = self.shard.reclaim(RECLAIMED_PAGES);
        if let Some(folder) = &self.folder {
            self.shard.maintain().map_err(|e| failed(&folder.path, &e))?;
        }
        Ok(more)
    }

    /// Lets the device bring what operators have asked for; waits for it a little when the core has nothing else to do.
    pub(super) fn bring(&mut self, is_idle: bool) -> usize {
        self.shard.complete_pending(if is_idle { WAIT } else { Duration::ZERO })
    }

    /// After each call of a node: writes pages until what is held fits, `others_bytes` beside the tables included. Whether it does.
    /// Without a folder it only looks.
    pub(super) fn settle(&mut self, others_bytes: usize) -> Result<bool> {
        let Some(folder) = &self.folder else { return Ok(self.shard.used_bytes() + others_bytes <= self.shard.budget_bytes()) };
        // An answer that was read wrongly may not get out.
        if let Some(failure) = self.shard.failure() {
            return Err(failed(&folder.path, &failure));
        }
        let (mut fruitless, mut least) = (0, usize::MAX);
        while self.shard.used_bytes() + others_bytes > self.shard.budget_bytes() {
            self.shard.maintain().map_err(|e| failed(&folder.path, &e))?;
            self.shard.complete_pending(WAIT);
            let used = self.shard.used_bytes();
            fruitless = if used < least { 0 } else { fruitless + 1 };
            least = least.min(used);
            if fruitless > FRUITLESS_WAITS_MAX {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the tables of each of so many nodes hold in memory; `None` without a folder, where what their calls added up to says it.
    pub(super) fn bytes_by_node(&self, nodes: usize) -> Option<Vec<i64>> {
        self.folder.as_ref()?;
        let mut bytes = vec![0; nodes];
        for (table, held) in self.shard.table_bytes() {
            if let Some(sum) = bytes.get_mut(TableIds::node_of(table).0 as usize) {
                *sum += held as i64;
            }
        }
        Some(bytes)
    }

    /// What the folder has been used for; `None` without one.
    pub(super) fn io(&self) -> Option<StateIo> {
        let folder = self.folder.as_ref()?;
        let counts = self.shard.store_counts();
        Some(StateIo {
            backend: folder.backend,
            pages_written: counts.pages_written,
            bytes_written: counts.bytes_written,
            pages_read: counts.pages_read + counts.pages_waited_for,
            pages_waited_for: counts.pages_waited_for,
            relief_permille: folder.pressure.relief_permille(),
        })
    }
}

/// The folder is emptied at the start and removed at the end, so it must be one that an earlier job left, or none.
fn refuse_foreign(path: &Path) -> Result<()> {
    let has_content = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    if !has_content || path.join(LOCK_FILE).exists() {
        return Ok(());
    }
    let message = format!("{} has files that no job put there", path.display());
    Err(Diagnostic::new(Code::StateUnavailable, message).hint("name a directory of the job's own: what is in it is removed"))
}

fn failed(path: &Path, error: &StoreError) -> Diagnostic {
    let (code, hint) = match error {
        StoreError::Damaged { .. } => {
            (Code::StateCorrupt, "a disk or file system has changed what was written: look at it, then start the job again")
        }
        StoreError::BudgetShortfall(_) => (
            Code::MemoryExceeded,
            "give the job more memory (`--memory`): the index of its keys stays there, a larger disk doesn't help",
        ),
        StoreError::BudgetTooSmall { .. } => (Code::InvalidConfig, "give the job more memory (`--memory`), or fewer cores"),
        _ => (
            Code::StateUnavailable,
            "look at the disk of the state directory (space, rights, who else uses it), then start the job again",
        ),
    };
    Diagnostic::new(code, format!("state in {}: {error}", path.display())).hint(hint)
}
