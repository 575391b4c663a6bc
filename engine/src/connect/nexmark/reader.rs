//! One core's blocks of events.

use std::ops::Range;
use std::time::Instant;

use serde_json::{Value, json};

use super::timeline::{Kind, Run};
use super::{BATCH_ROWS_MAX, NexmarkSource};
use crate::batch::Weights;
use crate::connect::{CoreInit, Position, SourceBatch, SourceEvent, SourcePoll, SourceReader};
use crate::error::{Code, Diagnostic, Result};
use crate::ids::SplitId;

/// The most events that one poll passes over, when most of them are of a kind that is not wanted.
const POLL_EVENTS_MAX: u64 = 1 << 16;

/// Reads blocks `core`, `core + cores`, … as one split.
pub struct NexmarkReader {
    source: NexmarkSource,
    split: SplitId,
    /// The next event.
    next: u64,
    /// Where its block ends.
    block_end: u64,
    block_events: u64,
    /// Events of the other cores between two blocks of this one.
    gap_events: u64,
    progress: Progress,
    /// The event that pacing counts from.
    paced_from: u64,
    left_out: u64,
    /// Kept for its capacity.
    runs: [Vec<Run>; 3],
}

#[derive(Debug, PartialEq)]
enum Progress {
    Unopened,
    /// Since when; `None` without pacing.
    Open(Option<Instant>),
    Finished,
}

impl NexmarkReader {
    /// The reader of one core.
    pub fn new(source: NexmarkSource, init: CoreInit) -> Self {
        let block_events = source.block_events();
        let next = u64::from(init.core.0) * block_events;
        Self {
            split: SplitId(u32::from(init.core.0)),
            next,
            block_end: next + block_events,
            block_events,
            gap_events: (init.cores as u64 - 1) * block_events,
            progress: Progress::Unopened,
            paced_from: 0,
            left_out: 0,
            runs: Default::default(),
            source,
        }
    }

    /// Takes the next events of this core, at most `events_max` and to the end of the block. Empty at `end`.
    fn advance(&mut self, events_max: u64, end: u64) -> Range<u64> {
        let range = self.next..self.block_end.min(end).min(self.next.saturating_add(events_max)).max(self.next);
        self.next = range.end;
        if self.next == self.block_end {
            self.next += self.gap_events;
            self.block_end = self.next + self.block_events;
        }
        range
    }
}

impl SourceReader for NexmarkReader {
    fn position(&mut self, changed: &mut Vec<(u64, Value)>) {
        changed.push((
            0,
            json!({ "next": self.next, "block_end": self.block_end, "finished": self.progress == Progress::Finished }),
        ));
    }

    fn resume(&mut self, position: &Position) -> Result<()> {
        let number = |key: &str| position.get(&0).and_then(|at| at[key].as_u64());
        let (Some(next), Some(block_end)) = (number("next"), number("block_end")) else {
            return Err(Diagnostic::new(Code::CheckpointMismatch, "the checkpoint has no position of this Nexmark stream"));
        };
        (self.next, self.block_end, self.paced_from) = (next, block_end, next);
        Ok(())
    }

    fn poll(&mut self, rows_max: usize, out: &mut Vec<SourceEvent>) -> Result<SourcePoll> {
        let since = match self.progress {
            Progress::Unopened => {
                let since = self.source.paced_rate.map(|_| Instant::now());
                self.progress = Progress::Open(since);
                out.push(SourceEvent::SplitOpened(self.split));
                since
            }
            Progress::Open(since) => since,
            Progress::Finished => return Ok(SourcePoll::Finished),
        };
        let limit = self.source.events_num.unwrap_or(self.source.events_max);
        if self.next >= limit {
            if self.source.events_num.is_none() {
                return Err(Diagnostic::new(Code::Overflow, format!("event time ends: there is none for event {limit}")));
            }
            if self.source.keep_alive {
                return Ok(SourcePoll::Idle);
            }
            self.progress = Progress::Finished;
            out.push(SourceEvent::SplitFinished(self.split));
            return Ok(SourcePoll::Finished);
        }
        let end = match (since, self.source.paced_rate) {
            (Some(since), Some(rate)) => {
                let due = since.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000;
                limit.min(u64::try_from(due).unwrap_or(u64::MAX).saturating_add(self.paced_from))
            }
            _ => limit,
        };
        if self.next >= end {
            return Ok(SourcePoll::Idle);
        }

        let timeline = self.source.generator.timeline();
        let wanted: u64 =
            Kind::ALL.iter().filter(|k| self.source.kinds[**k as usize]).map(|k| timeline.proportions[*k as usize]).sum();
        let round_events = timeline.round_events();
        let rows_max = rows_max.clamp(1, BATCH_ROWS_MAX) as u64;
        let (mut rows, mut events) = ([0usize; 3], 0);
        self.runs.iter_mut().for_each(Vec::clear);
        loop {
            // So many events have no more than the missing rows: whole rounds, or events that are all wanted at the worst.
            let missing = rows_max - rows.iter().sum::<usize>() as u64;
            let events_max = match wanted {
                0 => POLL_EVENTS_MAX,
                _ if wanted == round_events || wanted > missing => missing,
                _ => missing / wanted * round_events,
            };
            let range = self.advance(events_max.min(POLL_EVENTS_MAX - events), end);
            events += range.end - range.start;
            for kind in Kind::ALL {
                if self.source.kinds[kind as usize] {
                    rows[kind as usize] += self.source.generator.timeline().runs(kind, &range, &mut self.runs[kind as usize]);
                }
            }
            let total = rows.iter().sum::<usize>() as u64;
            if range.is_empty() || 2 * total >= rows_max || events >= POLL_EVENTS_MAX {
                break;
            }
        }
        self.left_out += events - rows.iter().sum::<usize>() as u64;
        for kind in Kind::ALL {
            let (count, runs) = (rows[kind as usize], &self.runs[kind as usize]);
            if count > 0 {
                out.push(SourceEvent::Rows(SourceBatch {
                    split: self.split,
                    rows: self.source.batch(kind, runs, count)?,
                    weights: Weights::Ones(count),
                    rejected: Vec::new(),
                }));
            }
        }
        Ok(SourcePoll::More)
    }

    fn rows_left_out(&self) -> u64 {
        self.left_out
    }
}
