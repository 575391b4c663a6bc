//! What every device promises, on all of them; what a crash may do, on the simulated one; the real ones beside a second process's.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tiderace_storage::{
    Backend, Completion, Device, DeviceError, DeviceOp, DeviceOptions, DirectIo, Done, Fault, FileDevice, FileName, Opened,
    SimDevice, open_device, open_device_with,
};

/// Every way in which a directory can be opened.
fn all_options() -> [DeviceOptions; 5] {
    let usual = DeviceOptions::default();
    [
        usual,
        DeviceOptions { direct_io: true, ..usual },
        DeviceOptions { io_uring: false, ..usual },
        DeviceOptions { io_uring: false, direct_io: true, threads: 2 },
        DeviceOptions { io_uring: false, threads: 0, ..usual },
    ]
}

fn name(text: &str) -> FileName {
    FileName::new(text).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Write(u8, u16, Vec<u8>, bool),
    Read(u8, u16, u16),
    Truncate(u8, u16),
    Allocate(u8, u16),
    Create(u8),
    Remove(u8),
    Rename(u8, u8),
    Sync(u8),
    SyncDir,
    List,
}

fn step() -> impl Strategy<Value = Step> {
    let file = || 0_u8..4;
    prop_oneof![
        4 => file().prop_map(Step::Create),
        8 => (file(), 0_u16..3000, prop::collection::vec(any::<u8>(), 0..2000), any::<bool>()).prop_map(|(f, o, d, s)| Step::Write(f, o, d, s)),
        6 => (file(), 0_u16..4000, 0_u16..4000).prop_map(|(f, o, l)| Step::Read(f, o, l)),
        1 => (file(), 0_u16..4000).prop_map(|(f, l)| Step::Truncate(f, l)),
        1 => (file(), 0_u16..4000).prop_map(|(f, l)| Step::Allocate(f, l)),
        1 => file().prop_map(Step::Remove),
        2 => (file(), file()).prop_map(|(a, b)| Step::Rename(a, b)),
        1 => file().prop_map(Step::Sync),
        1 => Just(Step::SyncDir),
        1 => Just(Step::List),
    ]
}

fn op(step: &Step) -> DeviceOp {
    let file = |f: u8| name(&format!("file-{f}"));
    match step.clone() {
        Step::Create(f) => DeviceOp::Create { file: file(f) },
        Step::Write(f, offset, data, false) => DeviceOp::Write { file: file(f), offset: offset.into(), data },
        Step::Write(f, offset, data, true) => DeviceOp::WriteSync { file: file(f), offset: offset.into(), data },
        Step::Read(f, offset, len) => DeviceOp::Read { file: file(f), offset: offset.into(), len: len.into() },
        Step::Truncate(f, len) => DeviceOp::Truncate { file: file(f), len: len.into() },
        Step::Allocate(f, len) => DeviceOp::Allocate { file: file(f), len: len.into() },
        Step::Remove(f) => DeviceOp::Remove { file: file(f) },
        Step::Rename(a, b) => DeviceOp::Rename { from: file(a), to: file(b) },
        Step::Sync(f) => DeviceOp::Sync { file: file(f) },
        Step::SyncDir => DeviceOp::SyncDir,
        Step::List => DeviceOp::List,
    }
}

/// What a file system does, told by a map.
fn expected(model: &mut BTreeMap<FileName, Vec<u8>>, op: &DeviceOp) -> Result<Done, DeviceError> {
    let missing = |file: &FileName| DeviceError::NotFound { file: file.clone() };
    match op {
        DeviceOp::Create { file } if model.contains_key(file) => return Err(DeviceError::Exists { file: file.clone() }),
        DeviceOp::Create { file } => drop(model.insert(file.clone(), Vec::new())),
        DeviceOp::Write { file, offset, data } | DeviceOp::WriteSync { file, offset, data } => {
            let content = model.get_mut(file).ok_or_else(|| missing(file))?;
            let start = *offset as usize;
            if !data.is_empty() {
                content.resize(content.len().max(start + data.len()), 0);
                content[start..start + data.len()].copy_from_slice(data);
            }
        }
        DeviceOp::Read { file, offset, len } => {
            let content = model.get(file).ok_or_else(|| missing(file))?;
            let start = content.len().min(*offset as usize);
            return Ok(Done::Data(content[start..content.len().min(start + len)].to_vec()));
        }
        DeviceOp::Sync { file } => drop(model.get(file).ok_or_else(|| missing(file))?),
        DeviceOp::SyncDir => {}
        DeviceOp::Allocate { file, len } => {
            let content = model.get_mut(file).ok_or_else(|| missing(file))?;
            content.resize(content.len().max(*len as usize), 0);
        }
        DeviceOp::Truncate { file, len } => model.get_mut(file).ok_or_else(|| missing(file))?.resize(*len as usize, 0),
        DeviceOp::Rename { from, to } => {
            let content = model.remove(from).ok_or_else(|| missing(from))?;
            model.insert(to.clone(), content);
        }
        DeviceOp::Remove { file } => drop(model.remove(file).ok_or_else(|| missing(file))?),
        DeviceOp::List => return Ok(Done::Files(model.iter().map(|(f, c)| (f.clone(), c.len() as u64)).collect())),
    }
    Ok(Done::Nothing)
}

fn conforms(device: &mut dyn Device, steps: &[Step]) {
    let mut model = BTreeMap::new();
    for step in steps {
        let op = op(step);
        assert_eq!(device.execute(op.clone()), expected(&mut model, &op), "{op:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_device_behaves_as_a_map_of_files(steps in prop::collection::vec(step(), 1..60), seed in any::<u64>()) {
        conforms(&mut SimDevice::new(seed), &steps);
        let directory = tempfile::tempdir().unwrap();
        conforms(&mut FileDevice::open(directory.path()).unwrap(), &steps);
        for options in all_options() {
            let directory = tempfile::tempdir().unwrap();
            conforms(&mut *open_device_with(directory.path(), &options).unwrap().device, &steps);
        }
    }

    // What is large and aligned goes around the cache, its neighbours through it; both see the same bytes, wherever the file ends.
    #[test]
    fn large_aligned_and_small_odd_pieces_of_one_file_fit_together(
        writes in prop::collection::vec((0_usize..200, 1_usize..160, any::<bool>(), any::<u8>(), any::<bool>()), 1..14),
        reads in prop::collection::vec((0_usize..250, 1_usize..160, any::<bool>()), 1..14),
    ) {
        let file = name("file");
        // In sectors, or a few bytes off.
        let place = |sector: usize, sectors: usize, odd: bool| (sector * 512 + usize::from(odd) * 7, sectors * 512 - usize::from(odd) * 3);
        for options in all_options() {
            let directory = tempfile::tempdir().unwrap();
            let mut device = open_device_with(directory.path(), &options).unwrap().device;
            device.execute(DeviceOp::Create { file: file.clone() }).unwrap();
            let mut model = Vec::new();
            for (sector, sectors, odd, byte, sync) in &writes {
                let (offset, len) = place(*sector, *sectors, *odd);
                let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
                model.resize(model.len().max(offset + len), 0);
                model[offset..offset + len].copy_from_slice(&data);
                let offset = offset as u64;
                let op = match sync {
                    true => DeviceOp::WriteSync { file: file.clone(), offset, data },
                    false => DeviceOp::Write { file: file.clone(), offset, data },
                };
                prop_assert_eq!(device.execute(op), Ok(Done::Nothing));
            }
            for (sector, sectors, odd) in &reads {
                let (offset, len) = place(*sector, *sectors, *odd);
                let expected = model.get(offset.min(model.len())..(offset + len).min(model.len())).unwrap().to_vec();
                let read = DeviceOp::Read { file: file.clone(), offset: offset as u64, len };
                prop_assert_eq!(device.execute(read), Ok(Done::Data(expected)));
            }
            drop(device);
            prop_assert!(std::fs::read(directory.path().join("file")).unwrap() == model);
        }
    }

    #[test]
    fn what_was_synced_survives_a_crash_and_the_rest_is_old_or_new_by_sector(
        seed in any::<u64>(),
        crash_seed in any::<u64>(),
        writes in prop::collection::vec((0_usize..8, 1_u8..255), 1..20),
        synced in 0_usize..20,
    ) {
        let mut device = SimDevice::new(seed);
        let file = name("file");
        for op in [DeviceOp::Create { file: file.clone() }, DeviceOp::Allocate { file: file.clone(), len: 8 * 512 }, DeviceOp::Sync { file: file.clone() }, DeviceOp::SyncDir] {
            device.execute(op).unwrap();
        }
        let mut possible = vec![vec![0_u8]; 8];
        for (i, (sector, byte)) in writes.iter().enumerate() {
            device.execute(DeviceOp::Write { file: file.clone(), offset: *sector as u64 * 512, data: vec![*byte; 512] }).unwrap();
            possible[*sector].push(*byte);
            if i == synced {
                device.execute(DeviceOp::Sync { file: file.clone() }).unwrap();
                possible.iter_mut().for_each(|p| *p = vec![*p.last().unwrap()]);
            }
        }
        let after = device.crash(crash_seed);
        let content = after.content(&file).unwrap();
        prop_assert_eq!(content.len(), 8 * 512);
        for (sector, possible) in possible.iter().enumerate() {
            let bytes = &content[sector * 512..(sector + 1) * 512];
            prop_assert!(bytes.iter().all(|b| *b == bytes[0]) && possible.contains(&bytes[0]));
        }
    }
}

#[test]
fn a_crash_keeps_any_part_of_what_was_not_synced_and_all_parts_occur() {
    let mut device = SimDevice::new(1);
    let file = name("a");
    device.execute(DeviceOp::Create { file: file.clone() }).unwrap();
    device.execute(DeviceOp::Write { file: file.clone(), offset: 0, data: vec![1; 1024] }).unwrap();
    let outcomes: std::collections::BTreeSet<Option<Vec<u8>>> =
        (0..200).map(|seed| device.crash(seed).content(&file).map(|c| c.chunks(512).map(|s| s[0]).collect())).collect();
    // No entry, no sector, the first, the second behind a hole, both.
    let all = [None, Some(vec![]), Some(vec![1]), Some(vec![0, 1]), Some(vec![1, 1])];
    assert_eq!(outcomes, all.into_iter().collect());
}

#[test]
fn a_failed_sync_loses_what_was_dirty_even_if_the_next_succeeds() {
    let mut lost = 0;
    for seed in 0..50 {
        let mut device = SimDevice::new(seed);
        let file = name("a");
        device.execute(DeviceOp::Create { file: file.clone() }).unwrap();
        device.execute(DeviceOp::SyncDir).unwrap();
        device.inject(3, Fault::Io);
        device.execute(DeviceOp::Write { file: file.clone(), offset: 0, data: vec![1; 512] }).unwrap();
        assert!(device.execute(DeviceOp::Sync { file: file.clone() }).is_err());
        device.execute(DeviceOp::Sync { file: file.clone() }).unwrap();
        assert_eq!(device.content(&file), Some([1; 512].as_slice()));
        lost += usize::from(device.crash(seed).content(&file) != Some([1; 512].as_slice()));
    }
    assert!((10..50).contains(&lost), "{lost} of 50");
}

#[test]
fn faults_do_what_they_say() {
    let mut device = SimDevice::new(7);
    let file = name("a");
    device.execute(DeviceOp::Create { file: file.clone() }).unwrap();
    device.inject(1, Fault::Misdirected(512));
    device.inject(2, Fault::Lost);
    device.inject(3, Fault::Zeroed);
    device.inject(5, Fault::BitFlip);
    let write = |byte| DeviceOp::Write { file: file.clone(), offset: 0, data: vec![byte; 1024] };
    device.execute(write(1)).unwrap();
    assert_eq!(device.content(&file).unwrap()[..512], [0; 512]);
    assert_eq!(device.content(&file).unwrap()[512..], [1; 1024]);
    device.execute(write(2)).unwrap();
    assert!(!device.content(&file).unwrap().contains(&2));
    device.execute(write(3)).unwrap();
    assert_eq!(device.content(&file).unwrap()[..512], [0; 512]);
    assert_eq!(device.content(&file).unwrap()[512..1024], [3; 512]);
    let read = || DeviceOp::Read { file: file.clone(), offset: 0, len: 4096 };
    let good = device.execute(read()).unwrap();
    let bad = device.execute(read()).unwrap();
    let (Done::Data(good), Done::Data(bad)) = (good, bad) else { panic!("data") };
    assert_eq!(good.iter().zip(&bad).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>(), 1);
    device.set_capacity_bytes(2000);
    assert_eq!(
        device.execute(DeviceOp::Write { file: file.clone(), offset: 1900, data: vec![1; 200] }),
        Err(DeviceError::NoSpace { file: file.clone() })
    );
    device.inject(7, Fault::PowerOff);
    assert_eq!(device.execute(read()), Err(DeviceError::Gone));
    assert!(device.is_off());
}

#[test]
fn many_operations_on_their_way_complete_each_once() {
    for options in all_options() {
        many_operations(options);
    }
}

fn many_operations(options: DeviceOptions) {
    let directory = tempfile::tempdir().unwrap();
    let Opened { mut device, backend, direct_io } = open_device_with(directory.path(), &options).unwrap();
    println!("{backend:?}, {direct_io:?}");
    let file = name("file");
    device.execute(DeviceOp::Create { file: file.clone() }).unwrap();
    let mut tokens: std::collections::BTreeSet<_> = (0..1000_u64)
        .map(|i| {
            let (offset, data) = (i * 4096, vec![i as u8; 4096]);
            let op = DeviceOp::Write { file: file.clone(), offset, data };
            device.submit(if i % 100 == 0 { DeviceOp::Sync { file: file.clone() } } else { op })
        })
        .collect();
    assert_eq!(tokens.len(), 1000);
    let mut done: Vec<Completion> = Vec::new();
    while !tokens.is_empty() {
        device.wait(Duration::from_secs(10));
        device.poll(&mut done);
        for completion in done.drain(..) {
            assert!(tokens.remove(&completion.token));
            completion.result.unwrap();
        }
    }
    let Done::Data(data) = device.execute(DeviceOp::Read { file, offset: 999 * 4096, len: 5000 }).unwrap() else {
        panic!("data")
    };
    assert_eq!(data, vec![999_u64 as u8; 4096]);
}

#[test]
fn a_device_dropped_with_operations_on_their_way_waits_for_them() {
    for options in all_options() {
        let directory = tempfile::tempdir().unwrap();
        let mut device = open_device_with(directory.path(), &options).unwrap().device;
        let file = name("file");
        device.execute(DeviceOp::Create { file: file.clone() }).unwrap();
        for i in 0..50_u64 {
            let (offset, data) = (i * 102_400, vec![9; 102_400]);
            device.submit(DeviceOp::WriteSync { file: file.clone(), offset, data });
        }
        drop(device);
        assert_eq!(std::fs::metadata(directory.path().join("file")).unwrap().len(), 5_120_000, "{options:?}");
    }
}

/// Reads on their way, more than there are registered buffers, each get their own bytes.
#[test]
fn reads_on_their_way_get_each_their_own_bytes() {
    for options in all_options() {
        let directory = tempfile::tempdir().unwrap();
        let mut device = open_device_with(directory.path(), &options).unwrap().device;
        let file = name("file");
        device.execute(DeviceOp::Create { file: file.clone() }).unwrap();
        for i in 0..120_u64 {
            let (offset, data) = (i * 66_048, vec![i as u8; 66_048]);
            device.execute(DeviceOp::Write { file: file.clone(), offset, data }).unwrap();
        }
        let mut expected: BTreeMap<_, _> = (0..120_u64)
            .map(|i| (device.submit(DeviceOp::Read { file: file.clone(), offset: i * 66_048, len: 66_048 }), i as u8))
            .collect();
        let mut done = Vec::new();
        while !expected.is_empty() {
            device.wait(Duration::from_secs(10));
            device.poll(&mut done);
            for completion in done.drain(..) {
                let byte = expected.remove(&completion.token).unwrap();
                assert_eq!(completion.result, Ok(Done::Data(vec![byte; 66_048])), "{options:?}");
            }
        }
    }
}

/// A removed file isn't kept open, and one that comes under its name is another, although both were registered with the kernel.
#[test]
fn a_file_that_was_removed_or_replaced_is_not_written_any_more() {
    for options in all_options() {
        let directory = tempfile::tempdir().unwrap();
        let mut device = open_device_with(directory.path(), &options).unwrap().device;
        let (a, b) = (name("a"), name("b"));
        for round in 1..5_u8 {
            // More files than can be registered at once.
            for i in 0..70 {
                let file = name(&format!("many-{round}-{i}"));
                device.execute(DeviceOp::Create { file: file.clone() }).unwrap();
                device.execute(DeviceOp::Write { file, offset: 0, data: vec![round; 32 << 10] }).unwrap();
            }
            for file in [&a, &b] {
                device.execute(DeviceOp::Create { file: file.clone() }).unwrap();
                device.execute(DeviceOp::Write { file: file.clone(), offset: 0, data: vec![round; 32 << 10] }).unwrap();
            }
            device.execute(DeviceOp::Write { file: a.clone(), offset: 0, data: vec![100 + round; 32 << 10] }).unwrap();
            device.execute(DeviceOp::Rename { from: a.clone(), to: b.clone() }).unwrap();
            let read = DeviceOp::Read { file: b.clone(), offset: 0, len: 32 << 10 };
            assert_eq!(device.execute(read).unwrap(), Done::Data(vec![100 + round; 32 << 10]));
            device.execute(DeviceOp::Remove { file: b.clone() }).unwrap();
            let gone = device.execute(DeviceOp::Read { file: b.clone(), offset: 0, len: 32 << 10 });
            assert_eq!(gone, Err(DeviceError::NotFound { file: b.clone() }));
        }
        let open: Vec<_> = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|path| path.starts_with(directory.path()) && path.to_string_lossy().ends_with(" (deleted)"))
            .collect();
        assert!(open.is_empty(), "{options:?}: {open:?}");
    }
}

#[test]
fn direct_io_is_told_and_where_a_file_system_has_none_the_cache_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let with_direct = DeviceOptions { direct_io: true, ..DeviceOptions::default() };
    assert_eq!(open_device_with(directory.path(), &DeviceOptions::default()).unwrap().direct_io, DirectIo::Off);
    match open_device_with(directory.path(), &with_direct).unwrap().direct_io {
        DirectIo::On { alignment_bytes } => assert!([512, 4096].contains(&alignment_bytes)),
        DirectIo::Refused { because } => assert!(!because.is_empty()),
        DirectIo::Off => panic!("it was asked for"),
    }
    // A file system in memory: kernels before 6.6 refuse, later ones take it and do nothing of it. Either way the device works.
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
    let Opened { mut device, direct_io, .. } = open_device_with(memory.path(), &with_direct).unwrap();
    println!("in memory: {direct_io:?}");
    let file = name("file");
    device.execute(DeviceOp::Create { file: file.clone() }).unwrap();
    device.execute(DeviceOp::WriteSync { file: file.clone(), offset: 0, data: vec![3; 65_536] }).unwrap();
    assert_eq!(device.execute(DeviceOp::Read { file, offset: 0, len: 65_536 }).unwrap(), Done::Data(vec![3; 65_536]));
}

#[test]
fn a_directory_is_opened_by_one_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let (device, _) = open_device(directory.path(), true).unwrap();
    assert!(matches!(FileDevice::open(directory.path()), Err(DeviceError::Locked { .. })));
    drop(device);
    let (_, backend) = open_device(directory.path(), false).unwrap();
    assert_eq!(backend, Backend::Threads { threads: 4, because: "io_uring is switched off".to_owned() });
}

#[test]
fn names_that_could_leave_the_directory_are_none() {
    for bad in ["", ".", "..", "../a", "a/b", ".lock", "ü", "a b", "a\0"] {
        assert!(FileName::new(bad).is_none(), "{bad}");
    }
    assert!(FileName::new(&"x".repeat(129)).is_none());
    assert_eq!(name("wal-00.seg").as_str(), "wal-00.seg");
}
