//! Checkpoints of a job: what it takes to go on after a crash as if there had been none.
//!
//! ```text
//! core:   … epoch E ends on all nodes ─▶ cut: the shard's capture begins; positions, watermarks, numbers are noted ─▶ epoch E + 1 …
//!                                              │ blocks, in slices                 │ prepare
//!                                              ▼                                    ▼
//! threads:                            writer of the core's folder              sink's thread: pieces, durable but not visible
//!                                              └───────────────┬────────────────────┘
//!                                                              ▼ all cores, all sinks
//!                                     manifest, created if absent: the commit point ─▶ sinks show their pieces ─▶ the next may begin
//! ```
//! Every `interval`-th epoch is a checkpoint's, so that cores need no message to agree on it. A node that has ended that epoch does nothing more
//! before all nodes of its core have, so that the core's one cut is the state of all of them at that mark; what waits for it waits in its lanes.
//! (Chandy, Lamport, "Distributed snapshots"; aligned as in Carbone et al., "Lightweight asynchronous snapshots for distributed dataflows".)
//!
//! A core that has nothing more to do takes a last cut. When all cores have, the manifest says whether the input has ended: such a job is not run
//! again. One that was stopped goes on from there.
//!
//! ```text
//! DIRECTORY/.lock                 held by the process that uses it
//!           job.json              the job's name among all jobs: sinks know their unfinished files by it
//!           core-0/ …             a core's tables (storage's checkpoints)
//!           v<version>-core-0.json   what the core knew besides: positions, watermarks, numbers
//!           v<version>.json       the manifest
//!           v<version>-shown.json    sinks have shown what is in it: whoever takes that away may
//! ```

mod coordinator;
mod core;
mod directory;
mod manifest;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub(super) use self::core::{CoreCheckpoints, NodeState};
pub(super) use coordinator::{Coordinator, Prepared};
pub(super) use directory::Directory;
pub use directory::look;
pub use manifest::Found;
pub(super) use manifest::{CoreNote, NodeNote};

/// Checkpoints that are kept of a core: the newest that counts, one that is being made, and one from before.
pub(super) const KEPT: usize = 3;

/// Where a job keeps its checkpoints, and how often it takes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// A directory of the job's own, on a device that survives what the job is to survive.
    pub directory: PathBuf,
    /// How long from one to the next, ms; rounded up to whole epochs. One begins only when the one before is complete.
    pub interval_ms: u64,
    /// What the job computes: its statements with their variables filled in. State is only taken up by a job that says the same.
    pub definition: String,
    /// A job that had come to its end is opened all the same: its views are there to be asked. Else it ends at once.
    pub reopens_finished: bool,
}

impl CheckpointOptions {
    /// The same for one revision of a job, in a folder of its own below [`directory`](Self::directory): a job that changes begins anew, and one
    /// that doesn't goes on. Removes the folders of other revisions.
    pub fn for_revision(self, cores: usize, max_parallelism: u32) -> io::Result<Self> {
        let revision = manifest::fingerprint(&format!("{}\n{cores} {max_parallelism}", self.definition));
        remove_others(&self.directory, &revision)?;
        Ok(Self { directory: self.directory.join(revision), ..self })
    }
}

fn remove_others(directory: &Path, revision: &str) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let is_revision = name.len() == revision.len() && name.to_str().is_some_and(|n| n.bytes().all(|b| b.is_ascii_hexdigit()));
        if is_revision && name != revision && entry.path().join(directory::JOB_FILE).is_file() {
            tracing::info!(folder = %entry.path().display(), "checkpoints of an earlier revision of the job are removed");
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
