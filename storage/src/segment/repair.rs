//! What can be saved of a damaged log: only on request, with copies of every file that is changed, and a report of all that is lost.

use serde::Serialize;

use super::format::{HEADER_BYTES, HeaderError, SegmentHeader, filler};
use super::recovery::{self, Entry, SEGMENT_BYTES_MAX, is_unfinished, list, next_valid, walk};
use super::{LogError, Lsn, SegmentKind};
use crate::device::{Device, DeviceError, DeviceOp, Done, FileName};

/// Most copies of one file that repairs leave.
const COPIES_MAX: usize = 1000;
/// Copies are written in pieces of this size.
const COPY_BYTES: usize = 1 << 20;

/// What a repair keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RepairPolicy {
    /// All before the first damage: the log is then a state it once had. Positions behind are given out again.
    Truncate,
    /// All whole groups, around the damage: the log then lacks some of its records. Positions stay.
    Skip,
}

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// Which position in the log that is.
    pub position: u64,
    /// How many bytes of the log are lost by it; unknown where a segment's end can't be told.
    pub lost_bytes: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What a repair does about it.
    pub remedy: String,
}

/// What a repair found and did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// What it was to keep.
    pub policy: RepairPolicy,
    /// Damaged places, in order; none means that the log was whole and nothing was changed.
    pub findings: Vec<Finding>,
    /// Records that are kept, those of the log's own included.
    pub records_kept: u64,
    /// Bytes behind the last record that look as a write that was interrupted: no damage, the next opening removes them.
    pub torn_bytes: u64,
    /// Whether files were changed, or only looked at.
    pub applied: bool,
    /// Copies of the files as they were before.
    pub copies: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Write { file: FileName, offset: u64, data: Vec<u8> },
    Remove { file: FileName },
}

impl Change {
    fn file(&self) -> &FileName {
        match self {
            Self::Write { file, .. } | Self::Remove { file } => file,
        }
    }
}

struct Plan {
    report: RepairReport,
    /// In the order in which they are safe to make.
    changes: Vec<Change>,
}

/// Where the log, as far as it is understood, ends.
struct Chain {
    file: FileName,
    /// Offset of the end in the file.
    offset: u64,
    end: u64,
    salt: u64,
}

/// Looks for damage and, if `apply`, repairs it. The log must not be open.
pub(crate) fn repair(
    device: &mut (impl Device + ?Sized),
    kind: SegmentKind,
    policy: RepairPolicy,
    apply: bool,
) -> Result<RepairReport, LogError> {
    let Plan { mut report, changes } = plan(device, kind, policy)?;
    if !apply || changes.is_empty() {
        return Ok(report);
    }
    let mut files: Vec<&FileName> = changes.iter().map(Change::file).collect();
    files.sort();
    files.dedup();
    for file in files {
        report.copies.push(copy(device, file)?.as_str().to_owned());
    }
    for change in changes {
        match change {
            Change::Write { file, offset, data } => device.execute(DeviceOp::WriteSync { file, offset, data })?,
            Change::Remove { file } => {
                device.execute(DeviceOp::Remove { file })?;
                device.execute(DeviceOp::SyncDir)?
            }
        };
    }
    report.applied = true;
    Ok(report)
}

/// Writes a durable copy of a file beside it.
pub(crate) fn copy(device: &mut (impl Device + ?Sized), file: &FileName) -> Result<FileName, DeviceError> {
    let Done::Files(files) = device.execute(DeviceOp::List)? else {
        return Err(DeviceError::Io { what: "list the directory".to_owned(), message: "the device gave no files".to_owned() });
    };
    let is_free = |name: &FileName| files.binary_search_by(|(other, _)| other.cmp(name)).is_err();
    let to = (1..=COPIES_MAX)
        .filter_map(|n| FileName::new(&format!("before-repair-{n}-{file}")))
        .find(is_free)
        .ok_or_else(|| DeviceError::Io { what: format!("copy {file}"), message: "too many copies are there".to_owned() })?;
    let len = files.iter().find(|(name, _)| name == file).map_or(0, |(_, len)| *len);
    device.execute(DeviceOp::Create { file: to.clone() })?;
    let mut at = 0;
    while at < len {
        let data = recovery::read(device, file, at, COPY_BYTES)?;
        if data.is_empty() {
            break;
        }
        let read = data.len() as u64;
        device.execute(DeviceOp::Write { file: to.clone(), offset: at, data })?;
        at += read;
    }
    device.execute(DeviceOp::Sync { file: to.clone() })?;
    device.execute(DeviceOp::SyncDir)?;
    Ok(to)
}

fn plan(device: &mut (impl Device + ?Sized), kind: SegmentKind, policy: RepairPolicy) -> Result<Plan, LogError> {
    let report =
        RepairReport { policy, findings: Vec::new(), records_kept: 0, torn_bytes: 0, applied: false, copies: Vec::new() };
    let mut plan = Plan { report, changes: Vec::new() };
    let names = list(device, kind)?;
    let mut chain: Option<Chain> = None;
    for (i, (base, file, len)) in names.iter().enumerate() {
        let rest = &names[i..];
        let next_base = names.get(i + 1).map(|(base, ..)| *base);
        let whole = (*len).min(SEGMENT_BYTES_MAX) as usize;
        let bytes = recovery::read(device, file, 0, whole)?;
        let finding = |offset: usize, lost_bytes: Option<u64>, what: String, remedy: &str| Finding {
            file: file.as_str().to_owned(),
            offset: offset as u64,
            position: base.saturating_add(offset.saturating_sub(HEADER_BYTES) as u64),
            lost_bytes,
            what,
            remedy: remedy.to_owned(),
        };
        let header = match readable_header(&bytes, kind, *base) {
            Header::Fine(header) => header,
            Header::FromCopy(header, what) => {
                plan.report.findings.push(finding(0, Some(0), what, "the header is restored from its copy"));
                plan.changes.push(Change::Write { file: file.clone(), offset: 0, data: header.encode(kind) });
                header
            }
            Header::Unsupported(because) => return Err(LogError::Unsupported { file: file.clone(), because }),
            Header::None(_) if next_base.is_none() && is_unfinished(&bytes) && (*base == 0 || chain.is_some()) => break,
            Header::None(what) => {
                let lost = next_base.map(|next| next - base);
                if policy == RepairPolicy::Truncate {
                    plan.report.findings.push(finding(0, None, what, "the log ends before this segment"));
                    drop_segments(&mut plan, rest);
                    return Ok(plan);
                }
                plan.report.findings.push(finding(0, lost, what, "the segment is left out"));
                plan.changes.push(Change::Remove { file: file.clone() });
                continue;
            }
        };
        if let Some(what) = recovery::cut_short(&bytes, &header) {
            let remedy = "the file gets its length back, what was there is lost";
            plan.report.findings.push(finding(bytes.len(), None, what, remedy));
            // The last byte gives it its length; all between are zeros.
            if let Some(last) = header.file_bytes.min(SEGMENT_BYTES_MAX).checked_sub(1) {
                plan.changes.push(Change::Write { file: file.clone(), offset: last, data: vec![0] });
            }
        }
        if let Some(before) = chain.as_ref().filter(|c| c.end != header.base) {
            let gap = header.base.checked_sub(before.end).filter(|gap| *gap >= 16);
            let what = format!("the log before it ends at {}", before.end);
            let bridge = gap.filter(|_| policy == RepairPolicy::Skip).and_then(|gap| filler(before.salt, before.end, gap));
            let Some(data) = bridge else {
                plan.report.findings.push(finding(HEADER_BYTES, None, what, "the log ends before this segment"));
                drop_segments(&mut plan, rest);
                return Ok(plan);
            };
            plan.report.findings.push(finding(HEADER_BYTES, gap, what, "the gap is marked as lost"));
            plan.changes.push(Change::Write { file: before.file.clone(), offset: before.offset, data });
        }
        let end = match walk_segment(&mut plan, file, &bytes, &header, next_base) {
            Walked::To { offset, end } => Chain { file: file.clone(), offset, end, salt: header.salt },
            Walked::Cut => {
                drop_segments(&mut plan, &rest[1..]);
                return Ok(plan);
            }
        };
        chain = Some(end);
    }
    Ok(plan)
}

enum Header {
    Fine(SegmentHeader),
    FromCopy(SegmentHeader, String),
    Unsupported(String),
    None(String),
}

fn readable_header(bytes: &[u8], kind: SegmentKind, base: u64) -> Header {
    let what = match SegmentHeader::decode(bytes, kind) {
        Ok(header) if header.base == base => return Header::Fine(header),
        Ok(_) => "the base in the header is not that of the name".to_owned(),
        Err(e @ HeaderError::Unsupported { .. }) => return Header::Unsupported(e.to_string()),
        Err(HeaderError::Damaged(what)) => what,
    };
    match SegmentHeader::decode_copy(bytes, kind) {
        Ok(header) if header.base == base => Header::FromCopy(header, what),
        _ => Header::None(what),
    }
}

/// Plans the removal of segments, newest first, so that what is left is a log at each moment. Goes before all other changes.
fn drop_segments(plan: &mut Plan, segments: &[(u64, FileName, u64)]) {
    let removals = segments.iter().rev().map(|(_, file, _)| Change::Remove { file: file.clone() });
    let others = std::mem::take(&mut plan.changes);
    plan.changes = removals.chain(others).collect();
}

enum Walked {
    /// The segment's records end here.
    To { offset: u64, end: u64 },
    /// The log ends in this segment, at damage.
    Cut,
}

fn walk_segment(plan: &mut Plan, file: &FileName, bytes: &[u8], header: &SegmentHeader, next_base: Option<u64>) -> Walked {
    let position = |at: usize| header.base + (at - HEADER_BYTES) as u64;
    let mut from = HEADER_BYTES;
    loop {
        let mut kept = 0;
        let walk = walk(bytes, header, from, &mut |_: Lsn, _: Entry<'_>| kept += 1);
        plan.report.records_kept += kept;
        let ends_right = next_base.is_none_or(|next| next == walk.end);
        if walk.evidence.is_none() && ends_right {
            let torn = bytes.get(walk.kept..).unwrap_or_default().iter().rposition(|b| *b != 0);
            if next_base.is_none() {
                plan.report.torn_bytes = torn.map_or(0, |last| last as u64 + 1);
            }
            return Walked::To { offset: walk.kept as u64, end: walk.end };
        }
        // Positions behind the next segment's beginning can't be this segment's.
        let limit = next_base.map_or(bytes.len(), |next| {
            usize::try_from(next.saturating_sub(header.base))
                .map_or(bytes.len(), |n| n.saturating_add(HEADER_BYTES).min(bytes.len()))
        });
        // A file may end before its header's sectors do.
        let within = &bytes[..limit.max(walk.kept).min(bytes.len())];
        let resume = next_valid(within, header, (walk.broken_at + 8).max(walk.kept + 16), |r| r.is_first);
        let what = match walk.evidence {
            Some(valid) => format!("no valid record, but valid ones of a later write at offset {valid}"),
            None => "its records end before the next segment begins".to_owned(),
        };
        let lost_until = resume.map(position).or(next_base);
        let bridge = lost_until
            .and_then(|until| until.checked_sub(position(walk.kept)))
            .filter(|gap| *gap >= 16 && plan.report.policy == RepairPolicy::Skip)
            .and_then(|gap| filler(header.salt, position(walk.kept), gap));
        let Some(data) = bridge else {
            plan.report.findings.push(Finding {
                file: file.as_str().to_owned(),
                offset: walk.broken_at as u64,
                position: position(walk.kept),
                lost_bytes: None,
                what,
                remedy: "the log ends here".to_owned(),
            });
            let rest = bytes.get(walk.kept..).unwrap_or_default();
            let zeros = vec![0; rest.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1)];
            plan.changes.push(Change::Write { file: file.clone(), offset: walk.kept as u64, data: zeros });
            return Walked::Cut;
        };
        plan.report.findings.push(Finding {
            file: file.as_str().to_owned(),
            offset: walk.broken_at as u64,
            position: position(walk.kept),
            lost_bytes: lost_until.map(|until| until - position(walk.kept)),
            what,
            remedy: "it is marked as lost, the records behind are kept".to_owned(),
        });
        plan.changes.push(Change::Write { file: file.clone(), offset: walk.kept as u64, data });
        match resume {
            Some(at) => from = at,
            None => {
                let end = next_base.unwrap_or_else(|| position(walk.kept));
                return Walked::To { offset: walk.kept as u64, end };
            }
        }
    }
}
