//! The write-ahead log under crashes, errors and damage.

use std::time::Duration;

use tiderace_storage::{
    Commit, Device, DeviceOp, Done, Fault, FileName, Lsn, RepairPolicy, SimDevice, SourceOffset, Wal, WalEntry, WalError,
    WalOptions,
};

use super::{Random, Tally, setting};

fn options(salt: u64) -> WalOptions {
    WalOptions { segment_bytes: 8192, pending_bytes_max: 3000, commit_bytes: 1500, commit_interval_us: 50, salt }
}

/// One entry, as appended or recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Record(Vec<u8>),
    Commit(Commit),
}

/// What was appended: position, entry, number of its group.
type Model = Vec<(Lsn, Item, u64)>;

#[derive(Debug, Default)]
struct History {
    appended: Model,
    /// The log said that all below is durable.
    durable: u64,
    /// It was told that nothing below is needed.
    truncated: u64,
    /// The newest commit record that had been recovered before.
    commit_before: Option<Commit>,
}

fn commit(random: &mut Random) -> Commit {
    let offset = |random: &mut Random| SourceOffset {
        source: random.below(4) as u32,
        partition: random.below(9).to_le_bytes()[..random.below(3) as usize].to_vec(),
        offset: random.next().to_le_bytes().to_vec(),
    };
    let watermark_us = (random.below(3) > 0).then(|| random.next().cast_signed());
    Commit { epoch: random.next(), watermark_us, offsets: (0..random.below(4)).map(|_| offset(random)).collect() }
}

fn payload(random: &mut Random) -> Vec<u8> {
    let len = match random.below(10) {
        0 => 0,
        1..7 => random.below(60),
        7 | 8 => random.below(400),
        _ => random.below(1800),
    };
    (0..len).map(|_| if random.below(3) == 0 { 0 } else { random.next() as u8 }).collect()
}

/// Works with a log until its device fails or the work is done.
fn work<D: Device>(wal: &mut Wal<D>, random: &mut Random, steps: u64, history: &mut History) -> Result<(), WalError> {
    let mut groups = history.appended.last().map_or(0, |(_, _, g)| g + 1);
    let mut now = 0;
    for _ in 0..steps {
        now += random.below(30);
        let result = match random.below(12) {
            0..6 => {
                let count = if random.below(3) == 0 { 1 + random.below(5) } else { 1 };
                let payloads: Vec<_> = (0..count).map(|_| payload(random)).collect();
                let views: Vec<_> = payloads.iter().map(Vec::as_slice).collect();
                match wal.append_batch(&views) {
                    Ok(Lsn(mut at)) => {
                        for payload in payloads {
                            let bytes = (16 + payload.len()).next_multiple_of(8) as u64;
                            history.appended.push((Lsn(at), Item::Record(payload), groups));
                            at += bytes;
                        }
                        groups += 1;
                        assert_eq!(at, wal.tail().0);
                        Ok(())
                    }
                    Err(WalError::Full { .. } | WalError::TooLarge { .. }) => wal.poll(now),
                    Err(e) => Err(e),
                }
            }
            6 if random.below(2) == 0 => {
                let commit = commit(random);
                match wal.append_commit(&commit) {
                    Ok(lsn) => {
                        history.appended.push((lsn, Item::Commit(commit), groups));
                        groups += 1;
                        Ok(())
                    }
                    Err(WalError::Full { .. }) => wal.poll(now),
                    Err(e) => Err(e),
                }
            }
            6..8 => wal.commit().map(|_| ()),
            8 if random.below(3) == 0 => {
                let below = random.below(history.durable + 1);
                history.truncated = history.truncated.max(below);
                wal.truncate_before(Lsn(below))
            }
            9 if random.below(3) == 0 => wal.commit().and_then(|lsn| wal.wait_durable(lsn, Duration::from_secs(5))),
            _ => wal.poll(now),
        };
        history.durable = wal.durable().0;
        result?;
    }
    Ok(())
}

fn recover(device: SimDevice, salt: u64) -> Result<(Wal<SimDevice>, Vec<(Lsn, Item)>), WalError> {
    let mut items = Vec::new();
    let wal = Wal::open(device, options(salt), |lsn, entry| {
        items.push((
            lsn,
            match entry {
                WalEntry::Record(payload) => Item::Record(payload.to_vec()),
                WalEntry::Commit(commit) => Item::Commit(commit),
            },
        ));
    })?;
    Ok((wal, items))
}

/// Recovered records are a run of those appended that begins at or before what was truncated, ends behind all that was acknowledged, and
/// holds whole groups.
fn judge(history: &History, recovered: &[(Lsn, Item)], wal: &Wal<SimDevice>) -> Result<(), String> {
    let tail = wal.tail();
    let first = match recovered.first() {
        Some((lsn, _)) => history.appended.iter().position(|(l, _, _)| l == lsn).ok_or(format!("{lsn:?} was never appended"))?,
        None => history.appended.iter().position(|(l, _, _)| *l >= tail).unwrap_or(history.appended.len()),
    };
    for (i, (lsn, payload)) in recovered.iter().enumerate() {
        match history.appended.get(first + i) {
            Some((l, p, _)) if l == lsn && p == payload => {}
            other => return Err(format!("recovered {lsn:?} where {:?} was appended", other.map(|(l, ..)| l))),
        }
    }
    let missing_before = history.appended[..first].iter().find(|(l, ..)| l.0 >= history.truncated);
    if let Some((lsn, ..)) = missing_before {
        return Err(format!("{lsn:?} is missing at the beginning, truncated below {}", history.truncated));
    }
    let rest = &history.appended[first + recovered.len()..];
    if let Some((lsn, ..)) = rest.iter().find(|(l, ..)| l.0 < history.durable) {
        return Err(format!("{lsn:?} was acknowledged (durable {}) and is missing", history.durable));
    }
    if let (Some((_, _, group)), Some((.., next))) =
        (recovered.len().checked_sub(1).map(|n| &history.appended[first + n]), rest.first())
        && group == next
    {
        return Err(format!("group {group} was recovered in part"));
    }
    // The newest commit record that is recovered, wherever its own place has been truncated.
    let commits = history.appended[..first + recovered.len()].iter().rev().find_map(|(_, item, _)| match item {
        Item::Commit(commit) => Some(commit),
        Item::Record(_) => None,
    });
    if wal.last_commit() != commits.or(history.commit_before.as_ref()) {
        return Err(format!("the last commit is {:?} instead of {commits:?}", wal.last_commit()));
    }
    Ok(())
}

/// After recovery the log goes on: the model is what was recovered.
fn go_on(history: &History, recovered: Vec<(Lsn, Item)>, wal: &Wal<SimDevice>) -> History {
    let (tail, commit_before) = (wal.tail(), wal.last_commit().cloned());
    let group = |lsn: &Lsn| history.appended.iter().find(|(l, ..)| l == lsn).map_or(0, |(.., g)| *g);
    let appended = recovered.into_iter().map(|(lsn, payload)| (lsn, payload, group(&lsn))).collect();
    History { appended, durable: tail.0, truncated: history.truncated, commit_before }
}

/// One workload: where its device fails at operation `at`, if anywhere.
fn run(seed: u64, at: Option<(u64, Fault)>) -> (SimDevice, History) {
    let mut device = SimDevice::new(seed);
    if let Some((number, fault)) = at {
        device.inject(number, fault);
    }
    let mut history = History::default();
    let mut random = Random(seed);
    // The log owns its device; when it can't even be opened, the device is made again and brought to the same point.
    let mut probe = SimDevice::new(seed);
    if let Some((number, fault)) = at {
        probe.inject(number, fault);
    }
    match Wal::open(&mut probe, options(seed), |_, _| {}) {
        Err(_) => return (probe, history),
        Ok(wal) => drop(wal),
    }
    let Ok(mut wal) = Wal::open(device, options(seed), |_, _| {}) else { unreachable!("the probe could be opened") };
    let _ = work(&mut wal, &mut random, 60, &mut history);
    (wal.into_device(), history)
}

#[test]
fn acknowledged_records_survive_a_crash_at_every_operation() {
    let tally = Tally::default();
    let base = setting("TIDERACE_CRASH_SEED", 1);
    for seed in base..base + setting("TIDERACE_CRASH_ROUNDS", 210) {
        let (whole, _) = run(seed, None);
        for at in 0..whole.submitted() {
            let (device, history) = run(seed, Some((at, Fault::PowerOff)));
            for crash in 0..12 {
                let place = || format!("workload {seed}, operation {at}, crash {crash}");
                let after = device.crash(crash * 7919 + at);
                match recover(after, seed + 1) {
                    Err(e) => tally.check(Err(format!("{}: {e}", place()))),
                    Ok((mut wal, recovered)) => {
                        tally.check(judge(&history, &recovered, &wal).map_err(|e| format!("{}: {e}", place())));
                        // Go on, crash again somewhere, recover again.
                        let mut second = go_on(&history, recovered, &wal);
                        let mut random = Random(seed * 1000 + at * 16 + crash);
                        let power_off = wal.device_mut().submitted() + random.below(40);
                        wal.device_mut().inject(power_off, Fault::PowerOff);
                        let _ = work(&mut wal, &mut random, 30, &mut second);
                        let after = wal.into_device().crash(crash);
                        let result = match recover(after, seed + 2) {
                            Err(e) => Err(format!("{}, again: {e}", place())),
                            Ok((wal, recovered)) => {
                                judge(&second, &recovered, &wal).map_err(|e| format!("{}, again: {e}", place()))
                            }
                        };
                        tally.check(result);
                    }
                }
            }
        }
    }
    tally.finish("wal", if base == 1 { 100_000 } else { 0 });
}

#[test]
fn a_crash_during_recovery_loses_nothing() {
    let tally = Tally::default();
    for seed in 1..30 {
        let (whole, _) = run(seed, None);
        for at in (0..whole.submitted()).step_by(3) {
            let (device, history) = run(seed, Some((at, Fault::PowerOff)));
            for crash in 0..4 {
                for recovery_op in 0..6 {
                    let mut after = device.crash(crash);
                    after.inject(recovery_op, Fault::PowerOff);
                    let mut records = 0;
                    if Wal::open(&mut after, options(seed + 1), |_, _| records += 1).is_ok() {
                        break;
                    }
                    let again = after.crash(crash + 100);
                    let place = || format!("workload {seed}, operation {at}, crash {crash}, recovery operation {recovery_op}");
                    tally.check(match recover(again, seed + 2) {
                        Err(e) => Err(format!("{}: {e}", place())),
                        Ok((wal, recovered)) => judge(&history, &recovered, &wal).map_err(|e| format!("{}: {e}", place())),
                    });
                }
            }
        }
    }
    tally.finish("wal recovery", 2500);
}

#[test]
fn an_error_poisons_the_log_and_what_it_acknowledged_survives() {
    let tally = Tally::default();
    for fault in [Fault::Io, Fault::NoSpace] {
        for seed in 1..25 {
            let (whole, _) = run(seed, None);
            for at in 0..whole.submitted() {
                let mut wal = Wal::open(SimDevice::new(seed), options(seed), |_, _| {}).unwrap();
                if wal.device_mut().submitted() > at {
                    continue;
                }
                wal.device_mut().inject(at, fault);
                let mut history = History::default();
                let result = work(&mut wal, &mut Random(seed), 60, &mut history);
                if result.is_err() {
                    assert!(matches!(wal.append(b"x"), Err(WalError::Poisoned { .. })), "after {result:?}");
                    assert!(matches!(wal.commit(), Err(WalError::Poisoned { .. })));
                }
                let device = wal.into_device();
                for crash in 0..4 {
                    tally.check(match recover(device.crash(crash), seed + 1) {
                        Err(e) => Err(format!("workload {seed}, {fault:?} at {at}, crash {crash}: {e}")),
                        Ok((wal, recovered)) => judge(&history, &recovered, &wal)
                            .map_err(|e| format!("workload {seed}, {fault:?} at {at}, crash {crash}: {e}")),
                    });
                }
            }
        }
    }
    tally.finish("wal errors", 3000);
}

/// A log of several segments, all durable, where each record is a write of its own. Its device, its records, and where the last write began.
fn settled(seed: u64) -> (SimDevice, Vec<(Lsn, Item)>, u64) {
    let mut wal = Wal::open(SimDevice::new(seed), options(seed), |_, _| {}).unwrap();
    let (mut random, mut records) = (Random(seed), Vec::new());
    for _ in 0..30 {
        let payload: Vec<u8> = (0..1 + random.below(700)).map(|_| random.next() as u8).collect();
        let lsn = wal.append(&payload).unwrap();
        wal.commit().unwrap();
        wal.wait_durable(wal.tail(), Duration::from_secs(5)).unwrap();
        records.push((lsn, Item::Record(payload)));
    }
    let last = records.last().unwrap().0.0;
    (wal.into_device(), records, last)
}

#[test]
fn damage_inside_is_an_error_and_never_garbage_or_emptiness() {
    let (mut errors, mut cut) = (0, 0);
    let (device, records, last) = settled(3);
    let Done::Files(files) = device.crash(1).execute(DeviceOp::List).unwrap() else { panic!("files") };
    assert!(files.len() >= 3);
    for (file, len) in &files {
        for offset in (0..*len as usize).step_by(5) {
            for (what, mask) in [("bit", 1_u8), ("byte", 0xFF)] {
                let mut damaged = device.crash(1);
                assert!(damaged.corrupt(file, offset, mask));
                match recover(damaged, 9) {
                    Err(WalError::Damaged { .. }) => errors += 1,
                    Err(e) => panic!("{file} {offset}: {e}"),
                    Ok((_, recovered)) => {
                        // Unused bytes, padding, or the last write, which can't be told from a torn one.
                        let whole = recovered == records;
                        let but_last = recovered == records[..records.len() - 1];
                        assert!(whole || but_last, "{what} {offset} of {file}: {} of {} records", recovered.len(), records.len());
                        cut += usize::from(but_last);
                    }
                }
            }
        }
    }
    assert!(errors > 2000 && cut > 0, "{errors} errors, {cut} cut");
    assert!(last > 0);
}

#[test]
fn zeroed_sectors_and_missing_segments_are_errors() {
    let (device, records, last) = settled(4);
    let Done::Files(files) = device.crash(1).execute(DeviceOp::List).unwrap() else { panic!("files") };
    for (i, (file, len)) in files.iter().enumerate() {
        let base: u64 = file.as_str()[4..24].parse().unwrap();
        for sector in 0..*len / 512 {
            let mut damaged = device.crash(1);
            let zeros = DeviceOp::WriteSync { file: file.clone(), offset: sector * 512, data: vec![0; 512] };
            damaged.execute(zeros).unwrap();
            let end = base + (sector * 512 + 512).saturating_sub(4096);
            match recover(damaged, 9) {
                Err(_) => {}
                Ok((_, recovered)) => {
                    // A sector that the last write shares with the one before takes the only proof with it.
                    let kept = recovered == records || records.starts_with(&recovered) && end > last;
                    assert!(kept, "sector {sector} of {file}: {} of {}", recovered.len(), records.len());
                }
            }
        }
        let mut damaged = device.crash(1);
        assert!(damaged.lose(file));
        match recover(damaged, 9) {
            Err(WalError::Damaged { .. }) => assert!(i > 0),
            Ok((_, recovered)) if i == 0 => assert_eq!(recovered, records[records.len() - recovered.len()..]),
            // The newest segment's loss leaves a shorter log that looks whole: the directory entry was durable, so no crash does this.
            Ok((_, recovered)) if i + 1 == files.len() => assert_eq!(recovered, records[..recovered.len()]),
            other => panic!("{file}: {:?}", other.map(|(_, r)| r.len())),
        }
    }
}

#[test]
fn lying_writes_are_found_out_when_later_ones_prove_them() {
    for (name, fault) in [("lost", Fault::Lost), ("misdirected", Fault::Misdirected(512)), ("zeroed", Fault::Zeroed)] {
        let mut found = 0;
        let (whole, _, _) = settled(5);
        for at in 4..whole.submitted() - 8 {
            let mut wal = Wal::open(SimDevice::new(5), options(5), |_, _| {}).unwrap();
            wal.device_mut().inject(at, fault);
            let (mut random, mut records) = (Random(5), Vec::new());
            for _ in 0..30 {
                let payload: Vec<u8> = (0..1 + random.below(700)).map(|_| random.next() as u8).collect();
                let Ok(lsn) = wal.append(&payload) else { break };
                if wal.commit().and_then(|_| wal.wait_durable(wal.tail(), Duration::from_secs(5))).is_err() {
                    break;
                }
                records.push((lsn, Item::Record(payload)));
            }
            match recover(wal.into_device().crash(3), 9) {
                Err(_) => found += 1,
                Ok((_, recovered)) => {
                    assert!(records.starts_with(&recovered) && (recovered.len() + 1 >= records.len()), "{name} at {at}")
                }
            }
        }
        assert!(found > 15, "{name}: {found}");
    }
}

#[test]
fn segments_below_the_truncation_are_removed_and_others_not() {
    let (device, records, _) = settled(6);
    let (mut wal, _) = recover(device, 9).unwrap();
    let middle = records[15].0;
    wal.truncate_before(middle).unwrap();
    while !wal.is_idle() {
        wal.poll(0).unwrap();
    }
    assert!(wal.begin() <= middle && wal.begin().0 > 0);
    let begin = wal.begin();
    let (_, recovered) = recover(wal.into_device(), 10).unwrap();
    assert_eq!(recovered, records[records.iter().position(|(l, _)| *l == begin).unwrap()..]);
}

#[test]
fn a_full_log_refuses_and_takes_again_when_it_has_been_committed() {
    let mut wal = Wal::open(SimDevice::new(1), options(1), |_, _| {}).unwrap();
    let mut accepted = 0;
    let refused = loop {
        match wal.append(&[7; 100]) {
            Ok(_) => accepted += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(refused, WalError::Full { pending_bytes: accepted * 120, limit_bytes: 3000 });
    assert_eq!(accepted, 25);
    let lsn = wal.commit().unwrap();
    wal.wait_durable(lsn, Duration::from_secs(5)).unwrap();
    wal.append(&[7; 100]).unwrap();
    assert!(matches!(wal.append(&[0; 5000]), Err(WalError::TooLarge { limit_bytes: 2232, .. })));
    let (_, recovered) = recover(wal.into_device().crash(1), 2).unwrap();
    assert_eq!(recovered.len(), accepted);
}

#[test]
fn files_of_others_are_left_alone() {
    let mut device = SimDevice::new(1);
    let other = FileName::new("wal-notes.txt").unwrap();
    device.execute(DeviceOp::Create { file: other.clone() }).unwrap();
    let wal = Wal::open(device, options(1), |_, _| {}).unwrap();
    assert!(wal.into_device().content(&other).is_some());
}

/// A log of groups, several in a segment, with the numbers of their groups.
fn grouped(seed: u64) -> (SimDevice, Vec<(Lsn, Item, u64)>) {
    let mut wal = Wal::open(SimDevice::new(seed), options(seed), |_, _| {}).unwrap();
    let (mut random, mut history) = (Random(seed), Model::new());
    for group in 0..40 {
        let payloads: Vec<Vec<u8>> = (0..1 + random.below(3)).map(|_| payload(&mut random)).collect();
        let views: Vec<_> = payloads.iter().map(Vec::as_slice).collect();
        let Ok(Lsn(mut at)) = wal.append_batch(&views) else { continue };
        for payload in payloads {
            let bytes = (16 + payload.len()).next_multiple_of(8) as u64;
            history.push((Lsn(at), Item::Record(payload), group));
            at += bytes;
        }
        let end = wal.commit().unwrap();
        wal.wait_durable(end, Duration::from_secs(5)).unwrap();
    }
    (wal.into_device(), history)
}

/// What a repaired log holds: whole groups of those appended, in order; under `Truncate` a beginning of them.
fn judge_repaired(
    appended: &Model,
    recovered: &[(Lsn, Item)],
    policy: RepairPolicy,
    (before, after): (u64, u64),
) -> Result<(), String> {
    let mut rest = appended.iter();
    for (lsn, item) in recovered {
        if !rest.any(|(l, i, _)| l == lsn && i == item) {
            return Err(format!("{lsn:?} was never appended"));
        }
    }
    let kept = |lsn: &Lsn| recovered.iter().any(|(l, _)| l == lsn);
    if let Some((lsn, ..)) = appended.iter().find(|(l, _, g)| {
        let group_end = appended.iter().filter(|(.., other)| other == g).map(|(l, ..)| l.0).max().unwrap_or(0);
        let behind = appended.iter().find(|(l, ..)| l.0 > group_end).map_or(u64::MAX, |(l, ..)| l.0);
        behind <= before && !kept(l)
    }) {
        return Err(format!("{lsn:?} lies before the damage at {before} and is gone"));
    }
    for pair in appended.windows(2) {
        if pair[0].2 == pair[1].2 && kept(&pair[0].0) != kept(&pair[1].0) {
            return Err(format!("group {} is there in part", pair[0].2));
        }
    }
    let gap = appended.iter().position(|(l, ..)| !kept(l)).unwrap_or(appended.len());
    match policy {
        RepairPolicy::Truncate if recovered.len() != gap => Err("there is something behind the damage".to_owned()),
        RepairPolicy::Truncate => Ok(()),
        // Damage costs the groups it touches alone.
        RepairPolicy::Skip => {
            let begins_behind = |g: &u64| appended.iter().find(|(.., other)| other == g).is_some_and(|(l, ..)| l.0 >= after);
            match appended.iter().find(|(l, _, g)| begins_behind(g) && !kept(l)) {
                Some((lsn, ..)) => Err(format!("{lsn:?} begins behind the damage, which ends at {after}, and is gone")),
                None => Ok(()),
            }
        }
    }
}

#[test]
fn repair_saves_what_is_whole_and_keeps_copies_through_crashes_of_its_own() {
    let tally = Tally::default();
    let mut repaired = 0;
    for seed in 1..12 {
        let (device, appended) = grouped(seed);
        let Done::Files(files) = device.crash(1).execute(DeviceOp::List).unwrap() else { panic!("files") };
        let mut random = Random(seed);
        for round in 0..60 {
            let mut damaged = device.crash(1);
            let (file, len) = &files[random.below(files.len() as u64) as usize];
            let base: u64 = file.as_str()[4..24].parse().unwrap();
            let start = random.below(len - 600) as usize;
            let bytes = [1, 8, 512][random.below(3) as usize];
            for at in start..start + bytes {
                damaged.corrupt(file, at, random.next() as u8);
            }
            let damage = (base + (start as u64).saturating_sub(4096), base + (start as u64 + bytes as u64).saturating_sub(4096));
            let policy = if round % 2 == 0 { RepairPolicy::Truncate } else { RepairPolicy::Skip };
            let place = format!("log {seed}, round {round}: {file} at {start}, {bytes} B, {policy:?}");
            let opens = recover(damaged.crash(1), 77).is_ok();
            let mut device = damaged.crash(1);
            let examined = Wal::examine(&mut device, policy).unwrap();
            assert!(!examined.applied && examined.findings.is_empty() == opens, "{place}: {examined:?}");
            let first_op = device.submitted();
            let report = Wal::repair(&mut device, policy).unwrap();
            let ops = device.submitted() - first_op;
            assert_eq!(report.findings, examined.findings);
            if opens {
                assert!(report.copies.is_empty() && !report.applied, "{place}");
                continue;
            }
            repaired += 1;
            for copy in &report.copies {
                let original = FileName::new(copy.strip_prefix("before-repair-1-").unwrap()).unwrap();
                assert_eq!(device.content(&FileName::new(copy).unwrap()), damaged.content(&original), "{place}");
            }
            tally.check(match recover(device.crash(9), 78) {
                Ok((_, recovered)) => judge_repaired(&appended, &recovered, policy, damage).map_err(|e| format!("{place}: {e}")),
                Err(e) => Err(format!("{place}: {e}")),
            });
            for at in 0..ops {
                let mut device = damaged.crash(1);
                device.inject(at, Fault::PowerOff);
                let _ = Wal::repair(&mut device, policy);
                let mut after = device.crash(at + seed);
                let again = Wal::repair(&mut after, policy).and_then(|_| recover(after, 79));
                tally.check(match again {
                    Ok((_, recovered)) => judge_repaired(&appended, &recovered, policy, damage)
                        .map_err(|e| format!("{place}, crash at operation {at}: {e}")),
                    Err(e) => Err(format!("{place}, crash at operation {at}: {e}")),
                });
            }
        }
    }
    assert!(repaired > 100, "{repaired}");
    tally.finish("wal repair", 1000);
}

#[test]
fn a_lost_segment_is_bridged_or_ends_the_log() {
    let (device, records, _) = settled(3);
    let Done::Files(files) = device.crash(1).execute(DeviceOp::List).unwrap() else { panic!("files") };
    assert!(files.len() >= 3);
    for (policy, keeps_end) in [(RepairPolicy::Truncate, false), (RepairPolicy::Skip, true)] {
        let mut damaged = device.crash(1);
        assert!(damaged.lose(&files[1].0));
        let report = Wal::repair(&mut damaged, policy).unwrap();
        assert_eq!(report.findings.len(), 1, "{report:?}");
        let (wal, recovered) = recover(damaged, 9).unwrap();
        assert!(recovered.first() == records.first() && recovered.len() < records.len());
        assert_eq!(recovered.last() == records.last(), keeps_end);
        // The log goes on.
        let mut wal = wal;
        let lsn = wal.append(b"behind").unwrap();
        let end = wal.commit().unwrap();
        wal.wait_durable(end, Duration::from_secs(5)).unwrap();
        let (_, again) = recover(wal.into_device().crash(4), 10).unwrap();
        assert_eq!(again.len(), recovered.len() + 1);
        assert_eq!(again.last(), Some(&(lsn, Item::Record(b"behind".to_vec()))));
    }
}
