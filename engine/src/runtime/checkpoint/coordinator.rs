//! Brings the parts of a checkpoint together: when all cores' tables and all sinks' pieces are durable, it is committed, and sinks show their pieces.
//!
//! Run by whichever thread delivers the last part. No core begins the next checkpoint before this one is complete, so there is never a second
//! one on its way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Directory;
use super::manifest::{FORMAT, Manifest};
use crate::connect::SinkRef;
use crate::error::Result;
use crate::ids::CoreId;
use crate::runtime::control::{Control, at_node};

/// See the module.
#[derive(Debug)]
pub(in crate::runtime) struct Coordinator {
    pub(super) directory: Directory,
    pub(super) max_parallelism: u32,
    /// All sinks, with their nodes' names.
    sinks: Vec<(String, SinkRef)>,
    /// For each of them what [`crate::connect::Sink::begin_checkpoints`] said.
    committed: Vec<bool>,
    /// The newest version that counts, and whose pieces are shown.
    complete: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    cores: Vec<Reached>,
    time_us: i64,
    /// Prepared since the last manifest, by sink.
    pieces: BTreeMap<usize, Vec<String>>,
    /// The last manifest there will be is written, or is being written.
    is_over: bool,
}

/// How far a core has come.
#[derive(Debug, Clone)]
struct Reached {
    /// The version of its tables.
    tables: u64,
    /// The version up to which each of its sinks has prepared.
    sinks: Vec<u64>,
    /// Nothing comes after that.
    last: bool,
    /// Its sources have come to the end of their input.
    finished: bool,
}

/// A part of a checkpoint that a core's sink delivers.
#[derive(Clone, Debug)]
pub(in crate::runtime) struct Prepared {
    pub(in crate::runtime) coordinator: Arc<Coordinator>,
    pub(in crate::runtime) core: CoreId,
    /// The sink's place among all.
    pub(in crate::runtime) sink: usize,
    /// What [`crate::connect::Sink::begin_checkpoints`] said.
    pub(in crate::runtime) is_committed: bool,
}

impl Prepared {
    /// Whether its rows are shown by checkpoints alone.
    pub(in crate::runtime) fn is_committed(&self) -> bool {
        self.is_committed
    }

    /// The pieces of checkpoint `version` are durable.
    pub(in crate::runtime) fn deliver(&self, version: u64, pieces: Vec<String>, control: &Control) -> Result<()> {
        self.coordinator.deliver(control, |state| {
            state.cores[usize::from(self.core.0)].sinks[self.sink] = version;
            state.pieces.entry(self.sink).or_default().extend(pieces);
        })
    }
}

impl Coordinator {
    /// For a job whose directory is open. Brings its sinks to where the checkpoint that was found says they are.
    pub(in crate::runtime) fn start(
        directory: Directory,
        cores: usize,
        max_parallelism: u32,
        sinks: Vec<(String, SinkRef)>,
    ) -> Result<Self> {
        let found = directory.found.as_ref();
        let mut committed = Vec::new();
        for (name, sink) in &sinks {
            let begun = sink.begin_checkpoints(&directory.job, directory.run());
            committed.push(begun.map_err(|failure| at_node(failure, "sink", name))?);
            let pieces =
                found.into_iter().flat_map(|found| &found.pieces).filter(|(of, _)| of == name).flat_map(|(_, pieces)| pieces);
            let pieces: Vec<String> = pieces.cloned().collect();
            if !directory.has_shown {
                sink.commit(&pieces).map_err(|failure| at_node(failure, "sink", name))?;
            }
        }
        if let Some(found) = found.filter(|_| !directory.has_shown) {
            directory.note_shown(found.version)?;
        }
        // Only now: two sinks may write to one folder.
        for (name, sink) in &sinks {
            sink.remove_uncommitted().map_err(|failure| at_node(failure, "sink", name))?;
        }
        let version = found.map_or(0, |found| found.version);
        let reached = Reached { tables: version, sinks: vec![version; sinks.len()], last: false, finished: false };
        let time_us = found.map_or(i64::MIN, |found| found.time_us);
        Ok(Self {
            max_parallelism,
            sinks,
            committed,
            complete: AtomicU64::new(version),
            state: Mutex::new(State { cores: vec![reached; cores], time_us, pieces: BTreeMap::new(), is_over: false }),
            directory,
        })
    }

    /// What a core's writer of the sink of this name needs.
    pub(in crate::runtime) fn share(self: &Arc<Self>, core: CoreId, name: &str) -> Option<Prepared> {
        let sink = self.sinks.iter().position(|(of, _)| of == name)?;
        Some(Prepared { coordinator: self.clone(), core, sink, is_committed: self.committed[sink] })
    }

    /// Whether the job had come to its end.
    pub(in crate::runtime) fn has_finished(&self) -> bool {
        self.directory.found.as_ref().is_some_and(|found| found.finished)
    }

    /// The time of the checkpoint that was found: the job's time doesn't go back behind it.
    pub(in crate::runtime) fn found_time_us(&self) -> Option<i64> {
        self.directory.found.as_ref().map(|found| found.time_us)
    }

    /// The newest version that counts, and whose pieces are shown.
    pub(in crate::runtime) fn complete(&self) -> u64 {
        self.complete.load(Ordering::Acquire)
    }

    /// A core's tables are durable. `last`: it has nothing more to do; `Some(true)`: as all input has been read.
    pub(super) fn written(&self, core: CoreId, version: u64, time_us: i64, last: Option<bool>, control: &Control) -> Result<()> {
        self.deliver(control, |state| {
            let reached = &mut state.cores[usize::from(core.0)];
            reached.tables = version;
            (reached.last, reached.finished) = (last.is_some(), last == Some(true));
            state.time_us = state.time_us.max(time_us);
        })
    }

    fn deliver(&self, control: &Control, part: impl FnOnce(&mut State)) -> Result<()> {
        let Some(manifest) = self.take_part(part) else { return Ok(()) };
        let (version, cores) = (manifest.version, manifest.cores.clone());
        let pieces = manifest.pieces.clone();
        self.directory.commit(manifest)?;
        for (name, pieces) in &pieces {
            if let Some((_, sink)) = self.sinks.iter().find(|(of, _)| of == name) {
                sink.commit(pieces).map_err(|failure| at_node(failure, "sink", name))?;
            }
        }
        self.directory.note_shown(version)?;
        self.directory.clean(version, &cores);
        self.complete.store(version, Ordering::Release);
        tracing::debug!(version, "a checkpoint is complete");
        (0..cores.len()).for_each(|core| control.wake_core(CoreId(core as u16)));
        Ok(())
    }

    /// Takes a part in; what is to be committed, if it was the last one.
    fn take_part(&self, part: impl FnOnce(&mut State)) -> Option<Manifest> {
        let mut state = self.state();
        part(&mut state);
        let version = self.complete() + 1;
        let has_come = |core: &Reached| {
            let sinks = core.sinks.iter().all(|sink| *sink >= core.tables);
            sinks && (core.tables >= version || core.last)
        };
        let over = state.cores.iter().all(|core| core.last);
        if state.is_over || !state.cores.iter().all(has_come) {
            return None;
        }
        state.is_over = over;
        let named = |(sink, pieces): (usize, Vec<String>)| (self.sinks[sink].0.clone(), pieces);
        let pieces = std::mem::take(&mut state.pieces).into_iter().map(named).filter(|(_, pieces)| !pieces.is_empty());
        Some(Manifest {
            format: FORMAT,
            version,
            run: self.directory.run(),
            definition: String::new(),
            max_parallelism: self.max_parallelism,
            pieces: pieces.collect(),
            cores: state.cores.iter().map(|core| core.tables).collect(),
            time_us: state.time_us,
            finished: over && state.cores.iter().all(|core| core.finished),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is made whole before the lock is given back.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
