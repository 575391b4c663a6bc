//! Logs under crashes, errors and truncation.

use std::collections::BTreeMap;
use std::time::Duration;

use tiderace_storage::{Fault, LogError, LogOptions, Lsn, OwnedLog, ReadOnlyLog, SimDevice};

use super::{Random, Tally, setting};

fn options(salt: u64) -> LogOptions {
    LogOptions { segment_bytes: 8192, pending_bytes_max: 3000, commit_bytes: 1200, commit_interval_us: 60, salt }
}

/// Begin and iterators as they were once the log reached a position.
type States = BTreeMap<u64, (u64, BTreeMap<String, u64>)>;

#[derive(Clone, Debug, Default)]
struct History {
    /// Position, payload, number of the group.
    appended: Vec<(u64, Vec<u8>, u64)>,
    states: States,
    durable: u64,
    begin: u64,
    iterators: BTreeMap<String, u64>,
}

impl History {
    fn note_state(&mut self, until: Lsn) {
        self.states.insert(until.0, (self.begin, self.iterators.clone()));
    }
}

fn work(log: &mut OwnedLog<SimDevice>, random: &mut Random, steps: u64, history: &mut History) -> Result<(), LogError> {
    let mut group = history.appended.last().map_or(0, |(_, _, g)| g + 1);
    let mut now = 0;
    for _ in 0..steps {
        now += random.below(30);
        let result = match random.below(12) {
            0..6 => {
                let count = if random.below(3) == 0 { 1 + random.below(5) } else { 1 };
                let payloads: Vec<Vec<u8>> = (0..count)
                    .map(|_| {
                        let longest = [40, 40, 300, 1400][random.below(4) as usize];
                        (0..random.below(longest)).map(|_| random.next() as u8 & 3).collect()
                    })
                    .collect();
                let views: Vec<_> = payloads.iter().map(Vec::as_slice).collect();
                match log.append_batch(&views) {
                    Ok(Lsn(mut at)) => {
                        for payload in payloads {
                            let bytes = (16 + payload.len()).next_multiple_of(8) as u64;
                            history.appended.push((at, payload, group));
                            at += bytes;
                        }
                        group += 1;
                        assert_eq!(at, log.tail().0);
                        Ok(())
                    }
                    Err(LogError::Full { .. } | LogError::TooLarge { .. }) => log.poll(now),
                    Err(e) => Err(e),
                }
            }
            6 => {
                let at = Lsn(random.below(log.tail().0 + 1));
                let name = ["a", "b", "c"][random.below(3) as usize];
                let removes = random.below(4) == 0;
                let result = if removes { log.remove_iterator(name) } else { log.set_iterator(name, at) };
                match result {
                    Ok(until) => {
                        if removes {
                            history.iterators.remove(name);
                        } else {
                            history.iterators.insert(name.to_owned(), at.0);
                        }
                        history.note_state(until);
                        Ok(())
                    }
                    Err(LogError::Full { .. }) => log.poll(now),
                    Err(e) => Err(e),
                }
            }
            7 | 8 => log.commit().map(|_| ()),
            9 if random.below(3) == 0 => {
                let below = random.below(log.durable().0 + 1).max(history.begin);
                match log.truncate_before(Lsn(below)) {
                    Ok(until) => {
                        if below > history.begin {
                            history.begin = below;
                            history.note_state(until);
                        }
                        Ok(())
                    }
                    Err(LogError::Full { .. }) => log.poll(now),
                    // Its own first write may have gone wrong, after it was noted in the log.
                    Err(e) => {
                        history.begin = below;
                        history.note_state(log.tail());
                        Err(e)
                    }
                }
            }
            10 if random.below(3) == 0 => log.commit().and_then(|lsn| log.wait_for_commit(lsn, Duration::from_secs(5))),
            _ => log.poll(now),
        };
        history.durable = log.durable().0;
        result?;
    }
    Ok(())
}

struct Found {
    log: OwnedLog<SimDevice>,
    records: Vec<(u64, Vec<u8>)>,
}

/// Opens the log for writing, then reads all by a reader that opens it beside.
fn recover(device: SimDevice, salt: u64) -> Result<Found, String> {
    let mut log = OwnedLog::open(device, options(salt)).map_err(|e| e.to_string())?;
    let (begin, end) = (log.begin(), log.durable());
    let mut beside = ReadOnlyLog::open(log.device_mut()).map_err(|e| format!("beside: {e}"))?;
    if beside.end() != end || beside.begin() != begin {
        return Err(format!("the reader sees {:?} to {:?}, the writer {begin:?} to {end:?}", beside.begin(), beside.end()));
    }
    let (mut cursor, mut records) = (begin, Vec::new());
    while let Some(record) = beside.next(&mut cursor).map_err(|e| format!("scan: {e}"))? {
        records.push((record.lsn.0, record.payload.to_vec()));
    }
    for (at, payload) in records.iter().step_by(7) {
        if beside.read(Lsn(*at)).as_deref() != Ok(payload.as_slice()) {
            return Err(format!("a read by position {at} differs from the scan"));
        }
    }
    Ok(Found { log, records })
}

fn judge(history: &History, found: &Found) -> Result<(), String> {
    let (begin, end) = (found.log.begin().0, found.log.durable().0);
    if end < history.durable {
        return Err(format!("{} was acknowledged, the log ends at {end}", history.durable));
    }
    let expected: Vec<_> = history.appended.iter().filter(|(l, ..)| (begin..end).contains(l)).collect();
    if expected.iter().map(|(l, p, _)| (l, p)).ne(found.records.iter().map(|(l, p)| (l, p))) {
        return Err(format!("{} records from {begin} to {end}, {} were appended", found.records.len(), expected.len()));
    }
    if let Some(pair) = history.appended.windows(2).find(|w| w[0].2 == w[1].2 && w[0].0 < end && w[1].0 >= end) {
        return Err(format!("group {} is there in part", pair[0].2));
    }
    let state = history.states.range(..=end).next_back().map(|(_, s)| s.clone()).unwrap_or_default();
    let iterators: BTreeMap<String, u64> =
        ["a", "b", "c"].iter().filter_map(|n| Some(((*n).to_owned(), found.log.iterator(n)?.0))).collect();
    if (begin, &iterators) != (state.0, &state.1) {
        return Err(format!("begin and iterators are {begin} {iterators:?} instead of {state:?}"));
    }
    Ok(())
}

fn go_on(history: &History, found: &Found) -> History {
    let (begin, end) = (found.log.begin().0, found.log.durable().0);
    let state = history.states.range(..=end).next_back().map(|(_, s)| s.clone()).unwrap_or_default();
    History {
        appended: history.appended.iter().filter(|(l, ..)| (begin..end).contains(l)).cloned().collect(),
        states: BTreeMap::from([(0, state.clone())]),
        durable: end,
        begin,
        iterators: state.1,
    }
}

fn run(seed: u64, at: Option<(u64, Fault)>) -> (SimDevice, History) {
    let (mut device, mut history) = (SimDevice::new(seed), History::default());
    if let Some((number, fault)) = at {
        device.inject(number, fault);
    }
    // An owned log keeps its device; one that can't be opened has made its operations on a copy.
    let mut probe = SimDevice::new(seed);
    if let Some((number, fault)) = at {
        probe.inject(number, fault);
    }
    if OwnedLog::open(&mut probe, options(seed)).is_err() {
        return (probe, history);
    }
    let Ok(mut log) = OwnedLog::open(device, options(seed)) else { unreachable!("the probe could be opened") };
    let _ = work(&mut log, &mut Random(seed), 70, &mut history);
    (log.into_device(), history)
}

#[test]
fn committed_records_state_and_begin_survive_a_crash_at_every_operation() {
    let tally = Tally::default();
    let base = setting("TIDERACE_CRASH_SEED", 1);
    for seed in base..base + setting("TIDERACE_CRASH_ROUNDS", 70) {
        let (whole, _) = run(seed, None);
        for at in 0..whole.submitted() {
            let (device, history) = run(seed, Some((at, Fault::PowerOff)));
            for crash in 0..8 {
                let place = format!("log workload {seed}, operation {at}, crash {crash}");
                let found = match recover(device.crash(crash * 7919 + at), seed + 1) {
                    Ok(found) => found,
                    Err(e) => {
                        tally.check(Err(format!("{place}: {e}")));
                        continue;
                    }
                };
                tally.check(judge(&history, &found).map_err(|e| format!("{place}: {e}")));
                // Go on, crash again somewhere, recover again.
                let mut second = go_on(&history, &found);
                let mut log = found.log;
                let mut random = Random(seed * 1000 + at * 16 + crash);
                let power_off = log.device_mut().submitted() + random.below(40);
                log.device_mut().inject(power_off, Fault::PowerOff);
                let _ = work(&mut log, &mut random, 30, &mut second);
                let again = recover(log.into_device().crash(crash), seed + 2).and_then(|found| judge(&second, &found));
                tally.check(again.map_err(|e| format!("{place}, again: {e}")));
            }
        }
    }
    tally.finish("log", if base == 1 { 30_000 } else { 0 });
}

#[test]
fn an_error_poisons_a_log_and_what_it_acknowledged_survives() {
    let tally = Tally::default();
    for fault in [Fault::Io, Fault::NoSpace] {
        for seed in 1..12 {
            let (whole, _) = run(seed, None);
            for at in 0..whole.submitted() {
                let mut log = OwnedLog::open(SimDevice::new(seed), options(seed)).unwrap();
                if log.device_mut().submitted() > at {
                    continue;
                }
                log.device_mut().inject(at, fault);
                let mut history = History::default();
                if work(&mut log, &mut Random(seed), 70, &mut history).is_err() {
                    assert!(matches!(log.append_batch(&[b"x"]), Err(LogError::Poisoned { .. })));
                    assert!(matches!(log.truncate_before(Lsn(8)), Err(LogError::Poisoned { .. })));
                }
                let device = log.into_device();
                for crash in 0..3 {
                    let result = recover(device.crash(crash), seed + 1).and_then(|found| judge(&history, &found));
                    tally.check(result.map_err(|e| format!("log workload {seed}, {fault:?} at {at}, crash {crash}: {e}")));
                }
            }
        }
    }
    tally.finish("log errors", 1500);
}
