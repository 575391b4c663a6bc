//! What this process may use: cores by affinity and cgroup, memory by cgroup and machine.

use std::fs;
use std::path::Path;

/// How many cores the affinity mask and the CPU quotas of cgroup v1 or v2 leave to this process; 1 at least.
#[must_use]
pub fn cores_available() -> usize {
    // The standard library reads the affinity mask and walks the cgroup's quotas, v1 and v2, and rounds down.
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How much memory the cgroup (v1 or v2, with all that are above it) and the machine leave to this process; `None` when neither says.
#[must_use]
pub fn memory_available_bytes() -> Option<u64> {
    memory_bytes_under(Path::new("/"))
}

/// The most memory this process has held so far.
#[must_use]
pub fn memory_peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    kibibytes(&status, "VmHWM:")
}

fn memory_bytes_under(root: &Path) -> Option<u64> {
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| kibibytes(&text, "MemTotal:"));
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut least = machine;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (mount, file) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        // In a container the group's own path may not be visible: then the mount itself is the group.
        let mount = root.join(mount);
        let mut folder = mount.join(group.trim_start_matches('/'));
        loop {
            if let Some(limit) = fs::read_to_string(folder.join(file)).ok().and_then(|text| text.trim().parse::<u64>().ok()) {
                least = Some(least.map_or(limit, |bytes| bytes.min(limit)));
            }
            if folder == mount || !folder.pop() {
                break;
            }
        }
    }
    least
}

fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn machine(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        memory_bytes_under(root.path())
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       16 kB\nMemFree: 1 kB\n");

    #[test]
    fn the_least_limit_holds() {
        assert_eq!(machine(&[]), None);
        assert_eq!(machine(&[MEMINFO]), Some(16384));
        let v2 = ("proc/self/cgroup", "0::/a/b\n");
        let parent = ("sys/fs/cgroup/a/memory.max", "4096\n");
        let child = ("sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(machine(&[MEMINFO, v2, parent, child]), Some(4096), "a parent's limit holds for its children");
        assert_eq!(
            machine(&[MEMINFO, v2, ("sys/fs/cgroup/memory.max", "8192\n")]),
            Some(8192),
            "a group seen from its container"
        );
        let v1 = ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n");
        assert_eq!(machine(&[MEMINFO, v1, ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "2048\n")]), Some(2048));
        assert_eq!(
            machine(&[MEMINFO, v1, ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n")]),
            Some(16384)
        );
    }

    #[test]
    fn this_machine_answers() {
        assert!(cores_available() >= 1);
        assert!(memory_peak_bytes().unwrap() > 0);
        assert!(memory_available_bytes().unwrap() > 0);
    }
}
