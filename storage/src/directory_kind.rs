//! What a directory is for: a write-ahead log, a log, checkpoints, or a shard's pages. Who opens one of another kind by mistake is told so,
//! instead of finding nothing there and beginning anew.

use crate::device::FileName;

/// What a directory holds, by the names of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DirectoryKind {
    WriteAheadLog,
    Log,
    Checkpoints,
    Pages,
}

impl DirectoryKind {
    const ALL: [Self; 4] = [Self::WriteAheadLog, Self::Log, Self::Checkpoints, Self::Pages];

    /// For messages.
    fn holds(self) -> &'static str {
        match self {
            Self::WriteAheadLog => "a write-ahead log",
            Self::Log => "a log",
            Self::Checkpoints => "checkpoints",
            Self::Pages => "the pages of a shard and its checkpoints",
        }
    }

    /// Whether only a directory of this kind has a file of this name.
    fn has(self, name: &FileName) -> bool {
        let (prefix, suffix) = match self {
            Self::WriteAheadLog => ("wal-", ".seg"),
            Self::Log => ("log-", ".seg"),
            Self::Checkpoints => ("manifest-", ""),
            Self::Pages => ("pages-manifest-", ""),
        };
        let digits = name.as_str().strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
        digits.is_some_and(|digits| digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
    }
}

/// A file that is there because the directory is of another kind than `wanted` (`None`: than one whose files may all be removed), and what
/// the directory holds then. None where there is anything of what is wanted.
pub(crate) fn foreign_file(files: &[(FileName, u64)], wanted: Option<DirectoryKind>) -> Option<(FileName, &'static str)> {
    if wanted.is_some_and(|wanted| files.iter().any(|(name, _)| wanted.has(name))) {
        return None;
    }
    files
        .iter()
        .find_map(|(name, _)| DirectoryKind::ALL.into_iter().find(|kind| kind.has(name)).map(|kind| (name.clone(), kind.holds())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_directory_is_foreign_by_files_of_another_kind_where_none_is_its_own() {
        let file = |name: &str| (FileName::new(name).unwrap(), 1);
        let (wal, log) = (file("wal-00000000000000000000.seg"), file("log-00000000000000000008.seg"));
        let (pages, spilled) = (file("pages-manifest-00000000000000000001"), file("pages-0000000001.seg"));
        let others =
            [file("notes.txt"), file("wal-1.seg"), spilled.clone(), file("before-repair-1-wal-00000000000000000000.seg")];
        for wanted in DirectoryKind::ALL.map(Some).into_iter().chain([None]) {
            assert_eq!(foreign_file(&others, wanted), None);
            assert_eq!(foreign_file(&[], wanted), None);
        }
        let (of_wal, of_pages) = (Some(DirectoryKind::WriteAheadLog), Some(DirectoryKind::Pages));
        assert_eq!(foreign_file(std::slice::from_ref(&log), of_wal), Some((log.0.clone(), "a log")));
        assert_eq!(foreign_file(&[log, wal.clone()], of_wal), None);
        assert_eq!(foreign_file(&[spilled, wal.clone()], of_pages), Some((wal.0, "a write-ahead log")));
        assert_eq!(foreign_file(std::slice::from_ref(&pages), of_pages), None);
        assert_eq!(foreign_file(std::slice::from_ref(&pages), None), Some((pages.0, "the pages of a shard and its checkpoints")));
    }
}
