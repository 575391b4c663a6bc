//! Segments of a write-ahead log or a log.

use serde::Serialize;

use super::{InspectError, Problem};
use crate::device::{Device, DeviceOp, Done};
use crate::log::LogState;
use crate::segment::format::{HEADER_BYTES, SegmentHeader};
use crate::segment::recovery::{SEGMENT_BYTES_MAX, named, read, walk};
use crate::segment::repair::{RepairPolicy, repair};
use crate::segment::{LogError, SegmentKind};
use crate::wal::Commit;

/// Longest part of a payload that is shown.
const PREVIEW_BYTES: usize = 32;

/// One segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SegmentReport {
    /// The file.
    pub file: String,
    /// Its length.
    pub file_bytes: u64,
    /// Position of its first record.
    pub base: u64,
    /// Position behind its last record.
    pub end: u64,
    /// Records of the owner's.
    pub records: u64,
    /// Their payloads.
    pub payload_bytes: u64,
    /// Records of the log's own.
    pub control_records: u64,
    /// Of the newest segment: bytes behind its last record that a write left which was interrupted.
    pub torn_bytes: u64,
    /// Its salt, in hexadecimal.
    pub salt: String,
}

/// A commit record of a write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CommitReport {
    /// The epoch.
    pub epoch: u64,
    /// The watermark.
    pub watermark_us: Option<i64>,
    /// Source, partition and offset, as text where they are that, else in hexadecimal.
    pub offsets: Vec<(u32, String, String)>,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EntryReport {
    /// Where it begins.
    pub position: u64,
    /// `record`, `commit`, `state` or `unknown`.
    pub kind: &'static str,
    /// Bytes of its payload.
    pub bytes: usize,
    /// The beginning of its payload, as text where it is that, else in hexadecimal.
    pub preview: String,
}

/// A log of segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SegmentsReport {
    /// `wal` or `log`.
    pub kind: &'static str,
    /// All segments whose headers can be read, in order.
    pub segments: Vec<SegmentReport>,
    /// Records of the owner's in all.
    pub records: u64,
    /// Of a log: the first position that can be read.
    pub begin: u64,
    /// Position behind the last record.
    pub end: u64,
    /// Of a write-ahead log: how many commit records, and the newest.
    pub commits: u64,
    /// The newest commit record.
    pub last_commit: Option<CommitReport>,
    /// Of a log: named iterators.
    pub iterators: Vec<(String, u64)>,
    /// The entries that were asked for, from the first position that can be read on.
    pub entries: Vec<EntryReport>,
    /// What is damaged.
    pub problems: Vec<Problem>,
}

/// Bytes for a person: text if they are that, else hexadecimal.
fn readable(bytes: &[u8], max: usize) -> String {
    let shown = &bytes[..bytes.len().min(max)];
    let more = if bytes.len() > max { "…" } else { "" };
    match std::str::from_utf8(shown) {
        Ok(text) if !text.is_empty() && text.chars().all(|c| !c.is_control()) => format!("{text}{more}"),
        _ => shown.iter().map(|b| format!("{b:02x}")).collect::<String>() + more,
    }
}

fn commit_report(commit: &Commit) -> CommitReport {
    let offsets = commit.offsets.iter();
    CommitReport {
        epoch: commit.epoch,
        watermark_us: commit.watermark_us,
        offsets: offsets.map(|o| (o.source, readable(&o.partition, 200), readable(&o.offset, 200))).collect(),
    }
}

/// The write-ahead log of a directory, with its first `entries` entries.
pub fn inspect_wal(device: &mut (impl Device + ?Sized), entries: usize) -> Result<SegmentsReport, InspectError> {
    inspect(device, SegmentKind::Wal, entries)
}

/// The log of a directory, with its first `entries` entries.
pub fn inspect_log(device: &mut (impl Device + ?Sized), entries: usize) -> Result<SegmentsReport, InspectError> {
    inspect(device, SegmentKind::Log, entries)
}

fn inspect(device: &mut (impl Device + ?Sized), kind: SegmentKind, entries_max: usize) -> Result<SegmentsReport, InspectError> {
    let names = match device.execute(DeviceOp::List)? {
        Done::Files(files) => named(files, kind),
        _ => Vec::new(),
    };
    let (name, what) = match kind {
        SegmentKind::Wal => ("wal", "write-ahead log (wal-….seg)"),
        SegmentKind::Log => ("log", "log (log-….seg)"),
    };
    if names.is_empty() {
        return Err(InspectError::Nothing { what: what.to_owned() });
    }
    let mut report = SegmentsReport {
        kind: name,
        segments: Vec::new(),
        records: 0,
        begin: 0,
        end: 0,
        commits: 0,
        last_commit: None,
        iterators: Vec::new(),
        entries: Vec::new(),
        problems: Vec::new(),
    };
    let mut entries = Vec::new();
    for (base, file, len) in &names {
        let bytes = read(device, file, 0, (*len).min(SEGMENT_BYTES_MAX) as usize)?;
        // What is wrong with it is among the problems below.
        let Ok(header) = SegmentHeader::decode(&bytes, kind) else { continue };
        if header.base != *base {
            continue;
        }
        let mut segment = SegmentReport {
            file: file.as_str().to_owned(),
            file_bytes: *len,
            base: *base,
            end: *base,
            records: 0,
            payload_bytes: 0,
            control_records: 0,
            torn_bytes: 0,
            salt: format!("{:016x}", header.salt),
        };
        let walked = walk(&bytes, &header, HEADER_BYTES, &mut |lsn, entry| {
            let kind = match (entry.is_control, Commit::decode(entry.payload), LogState::decode(entry.payload)) {
                (false, ..) => {
                    segment.records += 1;
                    segment.payload_bytes += entry.payload.len() as u64;
                    "record"
                }
                (true, Some((commit, is_here)), _) if kind == SegmentKind::Wal => {
                    report.commits += u64::from(is_here);
                    report.last_commit = Some(commit_report(&commit));
                    "commit"
                }
                (true, _, Some(state)) if kind == SegmentKind::Log => {
                    report.begin = state.begin;
                    report.iterators = state.iterators.into_iter().collect();
                    "state"
                }
                _ => "unknown",
            };
            segment.control_records += u64::from(entry.is_control);
            entries.push(EntryReport {
                position: lsn.0,
                kind,
                bytes: entry.payload.len(),
                preview: readable(entry.payload, PREVIEW_BYTES),
            });
            // What lies before the log's begin is dropped when that is known.
            if entries.len() > entries_max.saturating_mul(2).saturating_add(64) {
                entries.retain(|e| e.position >= report.begin);
                entries.truncate(entries_max);
            }
        });
        segment.end = walked.end;
        // Only the newest segment's end can be torn; what is behind damage is no end.
        if walked.evidence.is_none() && names.last().is_some_and(|(last, ..)| last == base) {
            let rest = bytes.get(walked.kept..).unwrap_or_default();
            segment.torn_bytes = rest.iter().rposition(|b| *b != 0).map_or(0, |last| last as u64 + 1);
        }
        report.records += segment.records;
        report.end = walked.end;
        report.segments.push(segment);
    }
    report.begin = report.begin.max(report.segments.first().map_or(0, |s| s.base));
    entries.retain(|e| e.position >= report.begin);
    entries.truncate(entries_max);
    report.entries = entries;
    // The same eyes as repair's, which changes nothing here.
    match repair(device, kind, RepairPolicy::Skip, false) {
        Ok(found) => {
            let problem = |f: crate::segment::Finding| Problem { file: f.file, offset: Some(f.offset), what: f.what };
            report.problems = found.findings.into_iter().map(problem).collect();
        }
        Err(LogError::Device(e)) => return Err(e.into()),
        Err(LogError::Unsupported { file, because }) => {
            report.problems.push(Problem { file: file.as_str().to_owned(), offset: Some(0), what: because });
        }
        Err(other) => report.problems.push(Problem { file: String::new(), offset: None, what: other.to_string() }),
    }
    Ok(report)
}
