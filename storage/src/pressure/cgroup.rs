//! What the kernel says of the memory of this process's group: how much it may have, how much it has, how long it stood for lack of it.
//!
//! ```text
//! cgroup v2   memory.current  memory.high  memory.max  memory.stat (inactive_file)  memory.pressure (PSI)
//! cgroup v1   memory/memory.usage_in_bytes  memory/memory.limit_in_bytes  memory/memory.stat (total_inactive_file)
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A limit of version 1 at or above this means that there is none.
const NO_LIMIT_BYTES: u64 = 1 << 60;
/// Longest file that is read: all of these are much shorter.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What was read at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryReading {
    /// Memory that can't be given back just so: what the group has, without file pages that nobody has used lately.
    pub working_bytes: u64,
    /// Above this the kernel slows the group down (`memory.high`), or ends it (`memory.max`): the lower of both.
    pub limit_bytes: Option<u64>,
    /// Of the last ten seconds, the share in which some of the group's threads waited for memory, in thousandths.
    pub stalled_permille: Option<u32>,
}

/// Where a process's group is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Version 2.
    Unified(PathBuf),
    /// Version 1, the folder of the memory controller.
    Legacy(PathBuf),
}

impl Group {
    /// The group that `membership` (`/proc/self/cgroup`) names, below `root` (`/sys/fs/cgroup`). In a container the root is often the group's own
    /// folder, whatever it is called outside.
    pub(super) fn find(root: &Path, membership: &Path) -> Option<Self> {
        let lines = read(membership).unwrap_or_default();
        let mut groups = Vec::new();
        for line in lines.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
            let path = path.trim_start_matches('/');
            if controllers.is_empty() {
                groups.push(Self::Unified(root.join(path)));
            } else if controllers.split(',').any(|c| c == "memory") {
                groups.push(Self::Legacy(root.join("memory").join(path)));
            }
        }
        groups.push(Self::Unified(root.to_owned()));
        groups.push(Self::Legacy(root.join("memory")));
        groups.into_iter().find(|group| group.file(group.usage_name()).is_file())
    }

    fn folder(&self) -> &Path {
        let (Self::Unified(folder) | Self::Legacy(folder)) = self;
        folder
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn usage_name(&self) -> &'static str {
        match self {
            Self::Unified(_) => "memory.current",
            Self::Legacy(_) => "memory.usage_in_bytes",
        }
    }

    /// Reads everything. What isn't there, limits and stalls, isn't told; without the usage there is nothing to tell.
    pub(super) fn read(&self) -> io::Result<MemoryReading> {
        let path = self.file(self.usage_name());
        let usage = number(&read(&path)?).ok_or_else(|| senseless(&path))?;
        let stat = read(&self.file("memory.stat")).unwrap_or_default();
        let (limits, inactive, stalls): (&[&str], _, _) = match self {
            Self::Unified(_) => (&["memory.high", "memory.max"], "inactive_file", read(&self.file("memory.pressure")).ok()),
            Self::Legacy(_) => (&["memory.limit_in_bytes"], "total_inactive_file", None),
        };
        let inactive = stat.lines().find_map(|line| number(line.strip_prefix(inactive)?)).unwrap_or(0);
        let limits = limits.iter().filter_map(|name| number(&read(&self.file(name)).ok()?));
        Ok(MemoryReading {
            working_bytes: usage.saturating_sub(inactive),
            limit_bytes: limits.filter(|bytes| *bytes < NO_LIMIT_BYTES).min(),
            stalled_permille: stalls.and_then(|text| stalled_permille(&text)),
        })
    }
}

fn senseless(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: it holds no number", path.display()))
}

fn read(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// A number alone; `max` is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `some avg10=1.23 avg60=… avg300=… total=…`, in thousandths.
fn stalled_permille(pressure: &str) -> Option<u32> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    let average = some.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?;
    let percent: f64 = average.parse().ok()?;
    (0.0..=100.0).contains(&percent).then(|| (percent * 10.0).round() as u32)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn found(folder: &tempfile::TempDir) -> Option<Group> {
        Group::find(folder.path(), &folder.path().join("membership"))
    }

    #[test]
    fn the_lower_limit_counts_and_idle_file_pages_do_not() {
        let folder = folder(&[
            ("membership", "0::/pods/one\n"),
            ("pods/one/memory.current", "900\n"),
            ("pods/one/memory.high", "1000\n"),
            ("pods/one/memory.max", "max\n"),
            ("pods/one/memory.stat", "anon 700\ninactive_anon 3\ninactive_file 150\nactive_file 50\n"),
            (
                "pods/one/memory.pressure",
                "some avg10=1.25 avg60=0.00 avg300=0.00 total=7\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=3\n",
            ),
        ]);
        let reading = found(&folder).unwrap().read().unwrap();
        assert_eq!(reading, MemoryReading { working_bytes: 750, limit_bytes: Some(1000), stalled_permille: Some(13) });
        fs::write(folder.path().join("pods/one/memory.max"), "800\n").unwrap();
        assert_eq!(found(&folder).unwrap().read().unwrap().limit_bytes, Some(800));
    }

    #[test]
    fn in_a_container_the_root_is_the_group() {
        let folder = folder(&[("membership", "0::/kubepods/pod1/x\n"), ("memory.current", "5\n"), ("memory.max", "max\n")]);
        let reading = found(&folder).unwrap().read().unwrap();
        assert_eq!(reading, MemoryReading { working_bytes: 5, limit_bytes: None, stalled_permille: None });
    }

    #[test]
    fn version_one_has_limits_but_no_stalls() {
        let folder = folder(&[
            ("membership", "5:cpu:/a\n4:memory,hugetlb:/a\n"),
            ("memory/a/memory.usage_in_bytes", "70\n"),
            ("memory/a/memory.limit_in_bytes", "100\n"),
            ("memory/a/memory.stat", "inactive_file 1\ntotal_inactive_file 20\n"),
        ]);
        let group = found(&folder).unwrap();
        assert_eq!(group.read().unwrap(), MemoryReading { working_bytes: 50, limit_bytes: Some(100), stalled_permille: None });
        fs::write(folder.path().join("memory/a/memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(group.read().unwrap().limit_bytes, None);
    }

    #[test]
    fn a_folder_without_a_group_has_none_and_nonsense_is_an_error() {
        assert_eq!(found(&folder(&[("membership", "0::/\n")])), None);
        let folder = folder(&[("memory.current", "many\n")]);
        assert!(found(&folder).unwrap().read().is_err());
    }

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic(usage in ".{0,40}", stat in ".{0,80}", pressure in "(some avg10=)?.{0,40}", high in ".{0,20}") {
            let folder = folder(&[
                ("memory.current", &usage), ("memory.stat", &stat), ("memory.pressure", &pressure), ("memory.high", &high),
            ]);
            if let Some(group) = found(&folder) {
                let _ = group.read();
            }
        }
    }
}
