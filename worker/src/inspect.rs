//! `tiderace inspect`: what the files of logs and checkpoints say, for people and machines, without changing them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tiderace_engine::error::{Code, Diagnostic};
use tiderace_storage::inspect::{
    CheckpointReport, InspectError, KvReport, PagesReport, Problem, SegmentsReport, SetAsideReport, inspect_checkpoint,
    inspect_checkpoints, inspect_kv, inspect_log, inspect_pages, inspect_wal, set_damaged_checkpoints_aside,
    set_damaged_pages_aside,
};
use tiderace_storage::{FileDevice, Log, ReadOnlyDevice, RepairPolicy, RepairReport, Wal};

use crate::app::Console;
use crate::command::{InspectArgs, InspectKind, RepairKind};
use crate::device_probe;
use crate::exit::Exit;
use crate::serve::exceptions;
use crate::text_table::TextTable;

/// What was found: text for a person, JSON for a machine, and whether something is damaged.
struct Answer {
    text: String,
    json: serde_json::Value,
    is_damaged: bool,
}

/// Runs the command.
pub(crate) fn inspect(console: &Console, arguments: &InspectArgs) -> Exit {
    match answer(arguments) {
        Ok(answer) => {
            let written = if arguments.json { console.rows(&format!("{:#}\n", answer.json)) } else { console.rows(&answer.text) };
            // Damage is what `--verify` asks for; looking at damaged files is no failure else.
            if answer.is_damaged && arguments.verify && written == Exit::Success { Exit::Failed } else { written }
        }
        Err(error) => console.refuse_alone(error),
    }
}

fn answer(arguments: &InspectArgs) -> Result<Answer, Diagnostic> {
    match arguments.kind {
        InspectKind::Device => return device_answer(arguments),
        InspectKind::Exceptions => return exceptions_answer(arguments),
        _ => {}
    }
    let (directory, version) = place(&arguments.path, arguments.version)?;
    if let Some(policy) = arguments.repair {
        return repair(arguments.kind, &directory, policy);
    }
    let mut device = ReadOnlyDevice::open(&directory).map_err(|e| unreadable(&directory, &e.to_string()))?;
    let failed = |e: InspectError| unreadable(&directory, &e.to_string());
    Ok(match arguments.kind {
        InspectKind::Wal => segments_answer(&inspect_wal(&mut device, arguments.entries).map_err(failed)?),
        InspectKind::Log => segments_answer(&inspect_log(&mut device, arguments.entries).map_err(failed)?),
        InspectKind::Checkpoint => checkpoints_answer(&inspect_checkpoints(&mut device, arguments.verify).map_err(failed)?),
        InspectKind::Manifest => manifest_answer(&inspect_checkpoint(&mut device, version, arguments.verify).map_err(failed)?),
        InspectKind::Pages => pages_answer(&inspect_pages(&mut device, arguments.verify).map_err(failed)?),
        InspectKind::Kv => kv_answer(&inspect_kv(&mut device, version, arguments.verify).map_err(failed)?),
        InspectKind::Shard => shard_answer(&inspect_checkpoint(&mut device, version, true).map_err(failed)?),
        InspectKind::Device => return device_answer(arguments),
        InspectKind::Exceptions => return exceptions_answer(arguments),
    })
}

/// Refuses the options of logs and checkpoints for what is neither.
fn takes_json_alone(arguments: &InspectArgs) -> Result<(), Diagnostic> {
    if arguments.verify || arguments.entries > 0 || arguments.version.is_some() || arguments.repair.is_some() {
        return Err(Diagnostic::new(Code::InvalidConfig, "`inspect device` and `inspect exceptions` take no option but --json"));
    }
    Ok(())
}

/// The one kind that is about a directory and not about files in it.
fn device_answer(arguments: &InspectArgs) -> Result<Answer, Diagnostic> {
    takes_json_alone(arguments)?;
    let report = device_probe::probe(&arguments.path)?;
    Ok(Answer { text: report.text(), json: json(&report), is_damaged: false })
}

/// What the workers of a working directory wrote down.
fn exceptions_answer(arguments: &InspectArgs) -> Result<Answer, Diagnostic> {
    takes_json_alone(arguments)?;
    let (directory, _) = place(&arguments.path, None)?;
    let found = exceptions::of_directory(&directory).map_err(|e| unreadable(&directory, &e.to_string()))?;
    let found = found.ok_or_else(|| unreadable(&directory, "no worker has worked here, or nothing was written yet"))?;
    let time = |ms: i64| jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |at| format!("{at:.0}"));
    let mut table = TextTable::new(["last", "first", "count", "where", "code", "message"]).numeric([2]);
    for one in &found.exceptions {
        let place = one.operator.clone().unwrap_or_else(|| "the job".to_owned());
        let message = one.problem.message.lines().next().unwrap_or_default().to_owned();
        table.row([time(one.at_ms), time(one.first_ms), one.count.to_string(), place, one.problem.code.clone(), message]);
    }
    let mut text = if table.is_empty() { "Nothing went wrong.\n".to_owned() } else { table.plain() };
    if found.truncated {
        text += "Older causes had to make room.\n";
    }
    Ok(Answer { text, json: json(&found), is_damaged: false })
}

fn unreadable(path: &Path, because: &str) -> Diagnostic {
    Diagnostic::new(Code::FileUnreadable, format!("{}: {because}", path.display()))
}

/// The directory to look into, and the version that a file's name tells.
fn place(path: &Path, version: Option<u64>) -> Result<(PathBuf, Option<u64>), Diagnostic> {
    let metadata = std::fs::metadata(path).map_err(|e| unreadable(path, &e.to_string()))?;
    if metadata.is_dir() {
        return Ok((path.to_owned(), version));
    }
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let digits = name
        .strip_prefix("manifest-")
        .or_else(|| name.strip_prefix("pages-manifest-"))
        .or_else(|| name.strip_prefix("shard-").and_then(|n| n.strip_suffix(".data")));
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((directory.to_owned(), version.or_else(|| digits.and_then(|d| d.parse().ok()))))
}

fn repair(kind: InspectKind, directory: &Path, policy: RepairKind) -> Result<Answer, Diagnostic> {
    let is_log = matches!(kind, InspectKind::Wal | InspectKind::Log);
    let policy = match (is_log, policy) {
        (true, RepairKind::Truncate) => Some(RepairPolicy::Truncate),
        (true, RepairKind::Skip) => Some(RepairPolicy::Skip),
        (false, RepairKind::SetAside) => None,
        (true, RepairKind::SetAside) => {
            return Err(Diagnostic::new(Code::InvalidConfig, "`--repair set-aside` is for checkpoints")
                .hint("a wal or a log is repaired by `truncate` or `skip`"));
        }
        (false, RepairKind::Truncate | RepairKind::Skip) => {
            return Err(Diagnostic::new(Code::InvalidConfig, "only a wal or a log is repaired by `truncate` or `skip`")
                .hint("`--repair set-aside` makes the newest checkpoint that is whole the one that opens"));
        }
    };
    let failed = |because: String| unreadable(directory, &because);
    // Takes the directory's lock: what is in use isn't repaired.
    if !directory.is_dir() {
        return Err(failed("there is no such directory".to_owned()));
    }
    let mut device = FileDevice::open(directory).map_err(|e| failed(e.to_string()))?;
    let Some(policy) = policy else {
        let report = match kind {
            InspectKind::Pages => set_damaged_pages_aside(&mut device),
            _ => set_damaged_checkpoints_aside(&mut device),
        };
        return Ok(set_aside_answer(&report.map_err(|e| failed(e.to_string()))?));
    };
    let report = match kind {
        InspectKind::Log => Log::repair(&mut device, policy, true),
        _ => Wal::repair(&mut &mut device, policy),
    };
    Ok(repair_answer(&report.map_err(|e| failed(e.to_string()))?))
}

fn set_aside_answer(report: &SetAsideReport) -> Answer {
    let mut text = String::new();
    if report.set_aside.is_empty() {
        let _infallible = writeln!(text, "Version {}, the newest, is whole. Nothing was changed.", report.kept);
    } else {
        let mut table = TextTable::new(["version", "what is wrong", "its manifest is now"]).numeric([0]);
        for ((version, what), copy) in report.set_aside.iter().zip(&report.copies) {
            table.row([version.to_string(), what.clone(), copy.clone()]);
        }
        text += &table.plain();
        let _infallible = writeln!(text, "\nVersion {} opens now; what was done after it is lost with those above.", report.kept);
    }
    Answer { text, json: json(report), is_damaged: false }
}

fn pages_answer(report: &PagesReport) -> Answer {
    let mut text = String::new();
    let mut manifests = TextTable::new(["version", "shard", "tables", "pages", "bytes", "note bytes", "state"]).numeric(0..6);
    let mut tables = TextTable::new(["version", "table", "kind", "pages", "bytes", "live", "written", "tombstones"])
        .numeric([0, 1, 3, 4, 5, 6, 7]);
    let shown = |n: Option<u64>| n.map_or_else(String::new, |n| n.to_string());
    for m in &report.manifests {
        let (pages, bytes) = m.tables.iter().fold((0, 0), |(pages, bytes), t| (pages + t.pages, bytes + t.bytes));
        let numbers = [m.version, u64::from(m.shard), m.tables.len() as u64, pages, bytes, m.note_bytes];
        let state = match (m.is_verified, report.problems.is_empty()) {
            (true, true) => "verified",
            (true, false) => "see below",
            (false, _) => "manifest is whole",
        };
        manifests.row(numbers.iter().map(u64::to_string).chain([state.to_owned()]));
        for t in &m.tables {
            let row = [m.version.to_string(), t.table.to_string(), t.kind.to_owned(), t.pages.to_string(), t.bytes.to_string()];
            tables.row(row.into_iter().chain([shown(t.live_records), shown(t.written_records), shown(t.tombstones)]));
        }
    }
    let mut segments = TextTable::new(["segment", "bytes", "named bytes", "manifests"]).numeric(1..4);
    for s in &report.segments {
        segments.row([s.file.clone(), s.file_bytes.to_string(), s.named_bytes.to_string(), s.manifests.to_string()]);
    }
    for table in [manifests, tables, segments] {
        if !table.is_empty() {
            text += &table.plain();
            text.push('\n');
        }
    }
    problems_text(&mut text, &report.problems);
    Answer { text, json: json(report), is_damaged: !report.problems.is_empty() }
}

fn kv_answer(report: &KvReport) -> Answer {
    let mut text = head(&report.checkpoint);
    let _infallible = writeln!(
        text,
        "\n{} sessions, the next is number {}; values of {} B are changed in place",
        report.sessions.len(),
        report.next_session,
        report.value_bytes
    );
    let mut sessions = TextTable::new(["session", "last serial"]).numeric([0, 1]);
    report.sessions.iter().for_each(|s| sessions.row([s.session.to_string(), s.serial.to_string()]));
    if !sessions.is_empty() {
        text += &sessions.plain();
    }
    problems_text(&mut text, &report.checkpoint.problems);
    Answer { text, json: json(report), is_damaged: !report.checkpoint.problems.is_empty() }
}

fn json<T: serde::Serialize>(report: &T) -> serde_json::Value {
    serde_json::to_value(report).unwrap_or_else(|e| serde_json::json!({ "error": e.to_string() }))
}

fn repair_answer(report: &RepairReport) -> Answer {
    let mut text = String::new();
    if report.findings.is_empty() {
        text += "Nothing is damaged, nothing was changed.\n";
    } else {
        let mut table = TextTable::new(["file", "offset", "lost bytes", "what", "done"]).numeric([1, 2]);
        for f in &report.findings {
            let lost = f.lost_bytes.map_or_else(|| "unknown".to_owned(), |b| b.to_string());
            table.row([f.file.clone(), f.offset.to_string(), lost, f.what.clone(), f.remedy.clone()]);
        }
        text += &table.plain();
        let _infallible = writeln!(text, "\n{} records are kept. As they were before:", report.records_kept);
        for copy in &report.copies {
            let _infallible = writeln!(text, "  {copy}");
        }
    }
    Answer { text, json: json(report), is_damaged: false }
}

fn problems_text(text: &mut String, problems: &[Problem]) {
    if problems.is_empty() {
        return;
    }
    let mut table = TextTable::new(["DAMAGED file", "offset", "what"]).numeric([1]);
    for p in problems {
        table.row([p.file.clone(), p.offset.map_or_else(String::new, |o| o.to_string()), p.what.clone()]);
    }
    text.push('\n');
    *text += &table.plain();
}

fn segments_answer(report: &SegmentsReport) -> Answer {
    let mut text = String::new();
    let mut table =
        TextTable::new(["segment", "base", "end", "records", "payload bytes", "own records", "torn bytes"]).numeric(1..7);
    for s in &report.segments {
        let numbers = [s.base, s.end, s.records, s.payload_bytes, s.control_records, s.torn_bytes];
        table.row(std::iter::once(s.file.clone()).chain(numbers.iter().map(u64::to_string)));
    }
    text += &table.plain();
    let _infallible = writeln!(
        text,
        "\n{}: positions {} to {}, {} records in {} segments",
        report.kind,
        report.begin,
        report.end,
        report.records,
        report.segments.len()
    );
    if let Some(commit) = &report.last_commit {
        let watermark = commit.watermark_us.map_or_else(|| "none".to_owned(), |us| format!("{us} µs"));
        let _infallible =
            writeln!(text, "{} commits, the newest of epoch {}, watermark {watermark}", report.commits, commit.epoch);
        let mut offsets = TextTable::new(["source", "partition", "offset"]).numeric([0]);
        commit.offsets.iter().for_each(|(s, p, o)| offsets.row([s.to_string(), p.clone(), o.clone()]));
        if !offsets.is_empty() {
            text += &offsets.plain();
        }
    }
    if !report.iterators.is_empty() {
        let mut iterators = TextTable::new(["iterator", "position"]).numeric([1]);
        report.iterators.iter().for_each(|(name, at)| iterators.row([name.clone(), at.to_string()]));
        text.push('\n');
        text += &iterators.plain();
    }
    if !report.entries.is_empty() {
        let mut entries = TextTable::new(["position", "kind", "bytes", "begins with"]).numeric([0, 2]);
        for e in &report.entries {
            entries.row([e.position.to_string(), e.kind.to_owned(), e.bytes.to_string(), e.preview.clone()]);
        }
        text.push('\n');
        text += &entries.plain();
    }
    problems_text(&mut text, &report.problems);
    Answer { text, json: json(report), is_damaged: !report.problems.is_empty() }
}

fn checkpoints_answer(reports: &[CheckpointReport]) -> Answer {
    let mut table = TextTable::new(["version", "records", "vnodes", "data bytes", "blocks", "note bytes", "state"]).numeric(0..6);
    let mut problems = Vec::new();
    for r in reports {
        let numbers = [r.version, r.records, u64::from(r.vnodes), r.data_bytes, r.blocks, r.note_bytes];
        let state = match (r.problems.is_empty(), r.is_verified) {
            (false, _) => "DAMAGED",
            (true, true) => "verified",
            (true, false) => "manifest is whole",
        };
        table.row(numbers.iter().map(u64::to_string).chain([state.to_owned()]));
        problems.extend(r.problems.iter().cloned());
    }
    let mut text = table.plain();
    problems_text(&mut text, &problems);
    Answer { text, json: json(&reports), is_damaged: !problems.is_empty() }
}

fn head(r: &CheckpointReport) -> String {
    let mut table = TextTable::new(["", ""]).numeric([1]);
    table.row(["version".to_owned(), r.version.to_string()]);
    table.row(["vnodes".to_owned(), r.vnodes.to_string()]);
    table.row(["records".to_owned(), r.records.to_string()]);
    table.row(["data bytes".to_owned(), r.data_bytes.to_string()]);
    table.row(["blocks".to_owned(), r.blocks.to_string()]);
    table.row(["of ordered tables".to_owned(), r.ordered_blocks.to_string()]);
    table.row(["note bytes".to_owned(), r.note_bytes.to_string()]);
    format!("{}{}", r.file, table.plain())
}

fn manifest_answer(r: &CheckpointReport) -> Answer {
    let mut text = head(r);
    if !r.largest_vnodes.is_empty() {
        let mut table = TextTable::new(["largest vnodes", "bytes"]).numeric([0, 1]);
        r.largest_vnodes.iter().for_each(|(vnode, bytes)| table.row([vnode.to_string(), bytes.to_string()]));
        text.push('\n');
        text += &table.plain();
    }
    problems_text(&mut text, &r.problems);
    Answer { text, json: json(r), is_damaged: !r.problems.is_empty() }
}

fn shard_answer(r: &CheckpointReport) -> Answer {
    let mut text = head(r);
    let mut table = TextTable::new(["table", "kind", "records", "key bytes", "value bytes"]).numeric([0, 2, 3, 4]);
    for t in &r.tables {
        let numbers = [t.records, t.key_bytes, t.value_bytes].map(|n| n.to_string());
        table.row([t.table.to_string(), t.kind.to_owned()].into_iter().chain(numbers));
    }
    text.push('\n');
    text += &table.plain();
    problems_text(&mut text, &r.problems);
    Answer { text, json: json(r), is_damaged: !r.problems.is_empty() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use tiderace_storage::{
        Checkpoints, Commit, Image, KvOptions, LogOptions, OpenAt, Shard, ShardOptions, ShardedKv, SourceOffset, StoreOptions,
        TableId, TableLayout,
    };

    use super::*;

    fn arguments(kind: InspectKind, path: &Path) -> InspectArgs {
        InspectArgs { kind, path: path.to_owned(), json: false, verify: true, entries: 3, version: None, repair: None }
    }

    #[test]
    fn what_went_wrong_is_shown_from_the_working_directory() {
        let folder = tempfile::tempdir().unwrap();
        let mut arguments = arguments(InspectKind::Exceptions, folder.path());
        arguments.verify = false;
        arguments.entries = 0;
        assert!(answer(&arguments).err().unwrap().message.contains("no worker"));
        let mut all = exceptions::Exceptions::new(7);
        all.keep_in(folder.path(), "orders");
        let write = |all: &mut exceptions::Exceptions| all.take_write(true, 0, str::to_owned).unwrap().write().unwrap();
        write(&mut all);
        assert_eq!(answer(&arguments).unwrap().text, "Nothing went wrong.\n");
        let problem = tiderace_crds::admin::Problem {
            code: "TR-3008".into(),
            message: "the folder\nis away".into(),
            hint: None,
            line: None,
            column: None,
        };
        all.add(String::new(), problem, 1, 1_700_000_000_000);
        write(&mut all);
        let found = answer(&arguments).unwrap();
        for word in ["2023-11-14T22:13:20Z", "the job", "TR-3008", "the folder"] {
            assert!(found.text.contains(word), "{}", found.text);
        }
        assert_eq!(found.json["exceptions"][0]["occurrences"][0]["epoch"], 7);
        arguments.verify = true;
        assert!(answer(&arguments).is_err(), "an option that says nothing here");
    }

    fn options() -> LogOptions {
        LogOptions { segment_bytes: 16 << 10, ..LogOptions::new(7) }
    }

    fn wal(directory: &Path) {
        let mut wal = Wal::open(FileDevice::open(directory).unwrap(), options(), |_, _| {}).unwrap();
        for i in 0..40_u8 {
            wal.append(format!("row {i} {}", "x".repeat(900)).as_bytes()).unwrap();
            if i % 10 == 9 {
                let offset = SourceOffset { source: 1, partition: b"p0".to_vec(), offset: vec![0, i] };
                wal.append_commit(&Commit { epoch: i.into(), watermark_us: Some(5), offsets: vec![offset] }).unwrap();
            }
            let until = wal.commit().unwrap();
            wal.wait_durable(until, Duration::from_secs(20)).unwrap();
        }
    }

    #[test]
    fn a_whole_log_is_shown_and_a_damaged_one_named_and_repaired_on_request_with_a_copy() {
        let directory = tempfile::tempdir().unwrap();
        wal(directory.path());
        let shown = answer(&arguments(InspectKind::Wal, directory.path())).unwrap();
        assert!(!shown.is_damaged);
        assert!(shown.text.contains("40 records in 4 segments") && shown.text.contains("epoch 39"), "{}", shown.text);
        assert_eq!(shown.json["entries"][0]["preview"], format!("row 0 {}…", "x".repeat(26)));
        assert_eq!(shown.json["last_commit"]["offsets"][0], serde_json::json!([1, "p0", "0027"]));
        let file = directory.path().join(shown.json["segments"][1]["file"].as_str().unwrap());
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[6000] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        let before: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        let shown = answer(&arguments(InspectKind::Wal, &file)).unwrap();
        assert!(shown.is_damaged && shown.text.contains("DAMAGED file"), "{}", shown.text);
        let after: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(before, after, "looking changes nothing");
        let mut repairing = arguments(InspectKind::Wal, directory.path());
        repairing.repair = Some(RepairKind::Skip);
        let repaired = answer(&repairing).unwrap();
        let copy = repaired.json["copies"][0].as_str().unwrap();
        assert!(std::fs::read(directory.path().join(copy)).unwrap() == bytes && repaired.text.contains(copy));
        let shown = answer(&arguments(InspectKind::Wal, directory.path())).unwrap();
        assert!(!shown.is_damaged && shown.text.contains("39 records"), "{}", shown.text);
        // A log that is open isn't repaired, but can be looked at.
        let open = FileDevice::open(directory.path()).unwrap();
        assert!(answer(&repairing).map(|a| a.text).unwrap_err().to_string().contains("in use"));
        assert!(answer(&arguments(InspectKind::Wal, directory.path())).is_ok());
        drop(open);
    }

    #[test]
    fn iterators_and_begin_of_a_log_are_shown() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open_directory(directory.path(), options(), false).unwrap();
        let lsn = log.append(b"one").unwrap();
        log.set_iterator("audit", lsn).unwrap();
        log.close().unwrap();
        let shown = answer(&arguments(InspectKind::Log, directory.path())).unwrap();
        assert!(shown.text.contains("audit") && shown.text.contains("1 records in 1 segments"), "{}", shown.text);
        assert!(answer(&arguments(InspectKind::Wal, directory.path())).is_err(), "there is no write-ahead log");
    }

    #[test]
    fn checkpoints_are_shown_by_version_by_manifest_and_by_table() {
        let directory = tempfile::tempdir().unwrap();
        let mut shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
        for i in 0..100_u64 {
            shard.point(TableId(3), 8).put(i << 56, &i.to_be_bytes(), &[1; 8]);
            shard.ordered(TableId(4)).put(&i.to_be_bytes(), b"value");
        }
        let mut checkpoints = Checkpoints::open(FileDevice::open(directory.path()).unwrap(), 2).unwrap();
        checkpoints.commit(5, &Image::of(&shard, 16), b"note").unwrap();
        checkpoints.commit(6, &Image::of(&shard, 16), b"note").unwrap();
        drop(checkpoints);
        let shown = answer(&arguments(InspectKind::Checkpoint, directory.path())).unwrap();
        assert_eq!(shown.text.matches("verified").count(), 2, "{}", shown.text);
        let manifest = directory.path().join("manifest-00000000000000000005");
        let shown = answer(&arguments(InspectKind::Manifest, &manifest)).unwrap();
        assert_eq!((shown.json["version"].as_u64(), shown.json["records"].as_u64()), (Some(5), Some(200)));
        let shown = answer(&arguments(InspectKind::Shard, directory.path())).unwrap();
        assert_eq!(shown.json["tables"][0]["records"], 100, "{}", shown.json);
        assert_eq!(shown.json["tables"][1]["value_bytes"], 500);
        let data = directory.path().join("shard-00000000000000000006.data");
        let mut bytes = std::fs::read(&data).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&data, bytes).unwrap();
        let shown = answer(&arguments(InspectKind::Checkpoint, directory.path())).unwrap();
        assert!(shown.is_damaged && shown.text.contains("DAMAGED") && shown.text.contains("checksum"), "{}", shown.text);
        let mut repairing = arguments(InspectKind::Checkpoint, directory.path());
        repairing.repair = Some(RepairKind::Truncate);
        assert!(answer(&repairing).is_err(), "checkpoints aren't truncated");
        repairing.repair = Some(RepairKind::SetAside);
        let repaired = answer(&repairing).unwrap();
        assert_eq!(repaired.json["kept"], 5, "{}", repaired.text);
        assert!(directory.path().join(repaired.json["copies"][0].as_str().unwrap()).exists());
        let shown = answer(&arguments(InspectKind::Checkpoint, directory.path())).unwrap();
        assert!(!shown.is_damaged && shown.text.matches("verified").count() == 1, "{}", shown.text);
        let again = answer(&repairing).unwrap();
        assert!(again.text.contains("Nothing was changed"), "{}", again.text);
        let mut log = arguments(InspectKind::Wal, directory.path());
        log.repair = Some(RepairKind::SetAside);
        assert!(answer(&log).is_err(), "logs aren't set aside");
        assert!(answer(&arguments(InspectKind::Wal, Path::new("/no/such/place"))).is_err());
    }

    #[test]
    fn pages_of_a_shard_are_shown_verified_and_set_aside_when_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let device = || Box::new(FileDevice::open(directory.path()).unwrap());
        let options = || ShardOptions { budget_bytes: 1 << 20 };
        let (mut shard, _) =
            Shard::open(options(), TableLayout::for_device(), device(), StoreOptions::default(), 3, OpenAt::Newest).unwrap();
        for version in 1..4_u64 {
            for i in 100 * (version - 1)..100 * version {
                shard.point(TableId(3), 8).put(i << 40, &i.to_be_bytes(), &version.to_be_bytes());
            }
            if let Some(old) = version.checked_sub(2) {
                assert!(shard.point(TableId(3), 8).remove(old << 40, &old.to_be_bytes()));
            }
            shard.ordered(TableId(4)).put(&version.to_be_bytes(), b"value");
            shard.checkpoint_now(version, b"note").unwrap();
        }
        drop(shard);
        let before: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        let shown = answer(&arguments(InspectKind::Pages, directory.path())).unwrap();
        assert!(!shown.is_damaged, "{}", shown.text);
        let newest = &shown.json["manifests"][2];
        assert_eq!((newest["version"].as_u64(), newest["tables"][0]["live_records"].as_u64()), (Some(3), Some(298)), "{newest}");
        assert!(newest["tables"][0]["tombstones"].as_u64() > Some(0) && shown.text.contains("verified"), "{}", shown.text);
        let after: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(before, after, "looking changes nothing");
        let manifest = directory.path().join("pages-manifest-00000000000000000003");
        let mut bytes = std::fs::read(&manifest).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&manifest, &bytes).unwrap();
        let shown = answer(&arguments(InspectKind::Pages, &manifest)).unwrap();
        assert!(shown.is_damaged && shown.text.contains("checksum"), "{}", shown.text);
        let mut repairing = arguments(InspectKind::Pages, directory.path());
        repairing.repair = Some(RepairKind::SetAside);
        let repaired = answer(&repairing).unwrap();
        assert_eq!(repaired.json["kept"], 2, "{}", repaired.text);
        let copy = directory.path().join(repaired.json["copies"][0].as_str().unwrap());
        assert!(std::fs::read(copy).unwrap() == bytes, "the copy is what was there");
        let (mut shard, recovered) =
            Shard::open(options(), TableLayout::for_device(), device(), StoreOptions::default(), 3, OpenAt::Newest).unwrap();
        assert_eq!((recovered.unwrap().version, shard.point(TableId(3), 8).len()), (2, 199));
        drop(shard);
        // A byte of a page that both versions have: nothing whole is left, and nothing is changed.
        let segment = directory.path().join("pages-0000000000.seg");
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        let shown = answer(&arguments(InspectKind::Pages, directory.path())).unwrap();
        assert!(shown.is_damaged && shown.text.contains("pages-0000000000.seg"), "{}", shown.text);
    }

    #[test]
    fn sessions_of_a_key_value_store_are_shown() {
        let directory = tempfile::tempdir().unwrap();
        let kv =
            ShardedKv::open(FileDevice::open(directory.path()).unwrap(), KvOptions { shards: 4, ..KvOptions::new(1) }).unwrap();
        let mut session = kv.start_session().unwrap();
        for i in 0..50_u64 {
            session.upsert(&i.to_be_bytes(), &[1; 8]).unwrap();
        }
        kv.checkpoint(Duration::from_secs(10)).unwrap();
        drop((session, kv));
        let shown = answer(&arguments(InspectKind::Kv, directory.path())).unwrap();
        assert!(!shown.is_damaged && shown.text.contains("1 sessions"), "{}", shown.text);
        assert_eq!(
            (shown.json["sessions"][0]["serial"].as_u64(), shown.json["checkpoint"]["records"].as_u64()),
            (Some(50), Some(50))
        );
        assert_eq!(shown.json["checkpoint"]["vnodes"], 4);
        // A shard's checkpoint is no store's.
        let other = tempfile::tempdir().unwrap();
        let shard = Shard::new(ShardOptions { budget_bytes: usize::MAX });
        let mut checkpoints = Checkpoints::open(FileDevice::open(other.path()).unwrap(), 2).unwrap();
        checkpoints.commit(1, &Image::of(&shard, 4), b"note").unwrap();
        drop(checkpoints);
        let shown = answer(&arguments(InspectKind::Kv, other.path())).unwrap();
        assert!(shown.is_damaged && shown.text.contains("no table of sessions"), "{}", shown.text);
    }
}
