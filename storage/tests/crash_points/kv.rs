//! The concurrent store's checkpoints under crashes. Sessions take turns here, so that every run is the same; threads are in `tests/kv.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use tiderace_storage::{Fault, KvError, KvKeys, KvOptions, KvSlot, Session, ShardedKv, SimDevice};

use super::{Random, Tally, setting};

fn options() -> KvOptions {
    KvOptions { shards: 4, ..KvOptions::new(1) }
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// What each version held, and the serials of its sessions; which ones were acknowledged.
#[derive(Debug, Default)]
struct History {
    cuts: BTreeMap<u64, (Model, Vec<(u64, u64)>)>,
    acknowledged: u64,
}

fn change(session: &mut Session, model: &mut Model, random: &mut Random) -> Result<(), KvError> {
    let keys: Vec<Vec<u8>> = (0..random.below(12)).map(|_| vec![random.below(30) as u8; 1 + random.below(2) as usize]).collect();
    let batch: KvKeys = keys.iter().collect();
    match random.below(3) {
        0 => {
            session.delete_batch(&batch)?;
            keys.iter().for_each(|k| drop(model.remove(k)));
        }
        _ => {
            let by = random.below(200) as u8;
            session.rmw_batch(&batch, |_, slot| {
                let (KvSlot::Initial(value) | KvSlot::InPlace(value)) = slot;
                value[0] = value[0].wrapping_add(by);
            })?;
            for key in keys {
                let value = model.entry(key).or_insert(vec![0; 8]);
                value[0] = value[0].wrapping_add(by);
            }
        }
    }
    Ok(())
}

fn work(device: SimDevice, seed: u64, history: &mut History) -> (Result<(), KvError>, SimDevice) {
    let kv = match ShardedKv::open(device, options()) {
        Ok(kv) => kv,
        Err(e) => return (Err(e), SimDevice::new(0)),
    };
    let mut random = Random(seed);
    let mut model = Model::new();
    kv.for_each(|k, v| drop(model.insert(k.to_vec(), v.to_vec()))).unwrap();
    let mut sessions: Vec<Session> =
        kv.sessions().iter().map(|(id, serial)| kv.resume_session(*id, serial + 1).unwrap()).collect();
    while sessions.len() < 3 {
        sessions.push(kv.start_session().unwrap());
    }
    let mut result = Ok(());
    for _ in 0..4 {
        for _ in 0..random.below(8) {
            let at = random.below(3) as usize;
            change(&mut sessions[at], &mut model, &mut random).unwrap();
        }
        let (cut, serials) = (model.clone(), kv.sessions());
        // The version is one above the last, whether that was committed or not.
        let next = history.cuts.keys().next_back().map_or(2, |v| v + 1);
        history.cuts.insert(next, (cut, serials));
        match kv.checkpoint(Duration::from_secs(5)) {
            Ok(checkpoint) => {
                assert_eq!(checkpoint.version, next);
                history.acknowledged = next;
            }
            Err(e) => {
                result = Err(e);
                break;
            }
        }
    }
    drop(sessions);
    (result, kv.into_device().unwrap())
}

fn judge(device: SimDevice, history: &History) -> Result<(), String> {
    let kv = ShardedKv::open(device, options()).map_err(|e| e.to_string())?;
    let mut found = Model::new();
    kv.for_each(|k, v| drop(found.insert(k.to_vec(), v.to_vec()))).map_err(|e| e.to_string())?;
    let sessions = kv.sessions();
    let fits = |(model, serials): &(Model, Vec<(u64, u64)>)| *model == found && *serials == sessions;
    let empty = history.acknowledged == 0 && found.is_empty() && sessions.is_empty();
    if empty || history.cuts.range(history.acknowledged..).any(|(_, cut)| fits(cut)) {
        return Ok(());
    }
    Err(format!("{} keys and {sessions:?} are no cut from {} on", found.len(), history.acknowledged))
}

#[test]
fn checkpoints_of_a_store_are_cuts_of_all_sessions_after_a_crash_at_every_operation() {
    let tally = Tally::default();
    let base = setting("TIDERACE_CRASH_SEED", 1);
    for seed in base..base + setting("TIDERACE_CRASH_ROUNDS", 20).min(2000) {
        let (result, whole) = work(SimDevice::new(seed), seed, &mut History::default());
        result.unwrap();
        for at in 1..whole.submitted() {
            let (mut device, mut history) = (SimDevice::new(seed), History::default());
            device.inject(at, Fault::PowerOff);
            let (_, device) = work(device, seed, &mut history);
            for crash in 0..8 {
                let result = judge(device.crash(crash * 13 + at), &history);
                tally.check(result.map_err(|e| format!("store workload {seed}, operation {at}, crash {crash}: {e}")));
            }
        }
    }
    tally.finish("kv", if base == 1 { 4000 } else { 0 });
}
