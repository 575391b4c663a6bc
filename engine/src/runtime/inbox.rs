//! What waits in front of a node on one core: a lane for each writer, and the alignment of their marks.

use std::collections::VecDeque;

use crate::batch::DeltaBatch;
use crate::ids::Epoch;
use crate::operators::{EpochMark, Port, Watermark};

/// What goes over an edge.
#[derive(Debug)]
pub enum Frame {
    /// Rows, and the bytes that they are charged for.
    Delta(DeltaBatch, usize),
    /// The end of an epoch on this lane.
    Mark(LaneMark),
}

/// A mark as it travels: one lane's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneMark {
    /// The writer's mark. After one with `last` nothing comes on this lane, and it no longer delays others.
    pub mark: EpochMark,
    /// Whether the writer's watermark is held by nobody, so that others need not wait for it.
    pub idle: bool,
}

#[derive(Debug)]
struct Lane {
    port: Port,
    queue: VecDeque<Frame>,
    queued_bytes: usize,
    /// Whether it has ended the node's epoch; what follows belongs to a later one and waits.
    marked: bool,
    ended: bool,
    idle: bool,
    watermark: Watermark,
}

/// The lanes of a node (a lane = an edge and a core that writes to it) and the epoch that the node is in.
#[derive(Debug)]
pub struct Inbox {
    lanes: Vec<Lane>,
    /// The time of the mark that is being aligned; equal on all lanes.
    mark_time_us: i64,
    unmarked: usize,
    epoch: Epoch,
    time_us: i64,
    watermark: Watermark,
    queued_bytes: usize,
    frames: usize,
}

impl Inbox {
    /// Empty lanes, given by the port that each feeds, before epoch 1.
    pub fn new(ports: impl IntoIterator<Item = Port>, start_us: i64) -> Self {
        let lane = |port| Lane {
            port,
            queue: VecDeque::new(),
            queued_bytes: 0,
            marked: false,
            ended: false,
            idle: false,
            watermark: Watermark::MIN,
        };
        let lanes: Vec<Lane> = ports.into_iter().map(lane).collect();
        let unmarked = lanes.len();
        Self {
            lanes,
            mark_time_us: start_us,
            unmarked,
            epoch: Epoch(1),
            time_us: start_us,
            watermark: Watermark::MIN,
            queued_bytes: 0,
            frames: 0,
        }
    }

    /// Takes up the watermark of another run's last mark.
    pub fn resume(&mut self, watermark: Watermark) {
        self.watermark = watermark;
    }

    /// The epoch that is running.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The watermark of the last completed mark.
    pub fn watermark(&self) -> Watermark {
        self.watermark
    }

    /// The time of the last completed mark (the job's start before the first).
    pub fn time_us(&self) -> i64 {
        self.time_us
    }

    /// What waits, in bytes.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// What waits on one lane, in bytes.
    pub fn lane_bytes(&self, lane: usize) -> usize {
        self.lanes[lane].queued_bytes
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Puts a frame at the end of a lane.
    pub fn push(&mut self, lane: usize, frame: Frame) {
        let lane = &mut self.lanes[lane];
        debug_assert!(!lane.ended, "nothing follows a last mark");
        if let Frame::Delta(_, bytes) = &frame {
            lane.queued_bytes += bytes;
            self.queued_bytes += bytes;
        }
        lane.queue.push_back(frame);
        self.frames += 1;
    }

    /// Takes in the marks that stand at the head of their lanes; whether there were any. Needs no room downstream, so it is never held back.
    pub fn take_marks(&mut self) -> bool {
        let mut any = false;
        for lane in self.lanes.iter_mut().filter(|lane| !lane.marked) {
            let Some(Frame::Mark(LaneMark { mark, idle })) = lane.queue.front() else { continue };
            assert_eq!(mark.epoch, self.epoch, "marks come one an epoch on each lane");
            (lane.marked, lane.ended, lane.idle, lane.watermark) = (true, mark.last, *idle, mark.watermark);
            self.mark_time_us = self.mark_time_us.max(mark.time_us);
            lane.queue.pop_front();
            self.frames -= 1;
            self.unmarked -= 1;
            any = true;
        }
        any
    }

    /// Rows of the current epoch, searching from lane `start % lanes()`: the lane, its port, the rows and what they were charged.
    pub fn pop(&mut self, start: usize) -> Option<(usize, Port, DeltaBatch, usize)> {
        let n = self.lanes.len();
        for at in (0..n).map(|i| (start + i) % n) {
            let lane = &mut self.lanes[at];
            if lane.marked || !matches!(lane.queue.front(), Some(Frame::Delta(..))) {
                continue;
            }
            if let Some(Frame::Delta(batch, bytes)) = lane.queue.pop_front() {
                lane.queued_bytes -= bytes;
                self.queued_bytes -= bytes;
                self.frames -= 1;
                return Some((at, lane.port, batch, bytes));
            }
        }
        None
    }

    /// Whether nothing waits at all.
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Whether [`Self::pop`] would find rows.
    pub fn has_rows(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.marked && matches!(lane.queue.front(), Some(Frame::Delta(..))))
    }

    /// The mark of the current epoch, once all lanes have ended it: the least watermark of the lanes that are not idle, never lower than
    /// before; the last, when all have sent their last.
    pub fn aligned(&self) -> Option<LaneMark> {
        if self.unmarked > 0 {
            return None;
        }
        let least = self.lanes.iter().filter(|lane| !lane.idle).map(|lane| lane.watermark).min();
        let mark = EpochMark {
            epoch: self.epoch,
            time_us: self.mark_time_us,
            watermark: least.map_or(self.watermark, |least| least.max(self.watermark)),
            last: self.lanes.iter().all(|lane| lane.ended),
        };
        Some(LaneMark { mark, idle: least.is_none() })
    }

    /// The node is through with `mark`: its watermark and time are in force, and the next epoch begins.
    pub fn complete(&mut self, mark: &LaneMark) {
        debug_assert_eq!(mark.mark.epoch, self.epoch);
        self.watermark = mark.mark.watermark;
        self.time_us = mark.mark.time_us;
        self.epoch = self.epoch.next();
        self.unmarked = 0;
        for lane in self.lanes.iter_mut().filter(|lane| !lane.ended) {
            lane.marked = false;
            self.unmarked += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn rows(n: i64) -> Frame {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let rows = RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![n]))]).expect("one column");
        Frame::Delta(DeltaBatch::append(rows), 10)
    }

    fn mark(epoch: u64, watermark: i64) -> Frame {
        lane_mark(epoch, watermark, false, false)
    }

    fn lane_mark(epoch: u64, watermark: i64, idle: bool, last: bool) -> Frame {
        let mark = EpochMark { epoch: Epoch(epoch), time_us: epoch as i64 * 100, watermark: Watermark(watermark), last };
        Frame::Mark(LaneMark { mark, idle })
    }

    /// Runs the inbox dry: the rows by epoch, and the marks that were completed.
    fn drain(inbox: &mut Inbox) -> (Vec<(u64, usize)>, Vec<(u64, i64)>) {
        let (mut rows, mut marks) = (Vec::new(), Vec::new());
        loop {
            inbox.take_marks();
            if let Some(mark) = inbox.aligned() {
                inbox.complete(&mark);
                marks.push((mark.mark.epoch.0, mark.mark.watermark.0));
                if mark.mark.last {
                    return (rows, marks);
                }
            } else if let Some((lane, ..)) = inbox.pop(0) {
                rows.push((inbox.epoch().0, lane));
            } else {
                return (rows, marks);
            }
        }
    }

    #[test]
    fn later_epochs_wait_for_all_lanes_although_their_marks_come_in_opposite_order() {
        let mut inbox = Inbox::new([0, 1], 0);
        for frame in [rows(1), mark(1, 5), rows(2), mark(2, 9), rows(3)] {
            inbox.push(0, frame);
        }
        assert_eq!(drain(&mut inbox), (vec![(1, 0)], vec![]), "lane 1 has not ended epoch 1");
        assert_eq!((inbox.queued_bytes(), inbox.lane_bytes(0)), (20, 20));
        inbox.push(1, rows(4));
        inbox.push(1, mark(1, 3));
        assert_eq!(drain(&mut inbox), (vec![(1, 1), (2, 0)], vec![(1, 3)]));
        assert_eq!((inbox.watermark(), inbox.time_us()), (Watermark(3), 100));
        inbox.push(1, mark(2, 20));
        assert_eq!(drain(&mut inbox), (vec![(3, 0)], vec![(2, 9)]));
        assert_eq!(inbox.queued_bytes(), 0);
    }

    #[test]
    fn the_watermark_is_the_least_of_the_lanes_that_count_and_never_goes_back() {
        let mut inbox = Inbox::new([0, 0, 0], 0);
        let epoch = |inbox: &mut Inbox, lanes: [(i64, bool); 3]| {
            let epoch = inbox.epoch().0;
            for (lane, (watermark, idle)) in lanes.into_iter().enumerate() {
                inbox.push(lane, lane_mark(epoch, watermark, idle, false));
            }
            inbox.take_marks();
            let mark = inbox.aligned().expect("all lanes have marked");
            inbox.complete(&mark);
            (mark.mark.watermark.0, mark.idle)
        };
        assert_eq!(epoch(&mut inbox, [(i64::MIN, false), (7, false), (8, false)]), (i64::MIN, false));
        assert_eq!(epoch(&mut inbox, [(4, true), (7, false), (9, false)]), (7, false));
        assert_eq!(
            epoch(&mut inbox, [(4, false), (7, false), (9, false)]),
            (7, false),
            "back from idleness, but not back in time"
        );
        assert_eq!(epoch(&mut inbox, [(4, true), (7, true), (9, true)]), (7, true), "nobody counts: the last value stays");
    }

    #[test]
    fn a_lane_that_has_ended_delays_nobody_and_the_last_mark_is_that_of_all() {
        let mut inbox = Inbox::new([0, 0], 0);
        inbox.push(0, lane_mark(1, i64::MAX, false, true));
        inbox.push(1, mark(1, 3));
        inbox.push(1, rows(1));
        inbox.push(1, mark(2, 4));
        assert_eq!(drain(&mut inbox), (vec![(2, 1)], vec![(1, 3), (2, 4)]));
        inbox.push(1, lane_mark(3, 4, false, true));
        inbox.take_marks();
        assert_eq!(
            inbox.aligned().map(|mark| (mark.mark.last, mark.mark.watermark)),
            Some((true, Watermark(4))),
            "it was stopped"
        );
    }
}
