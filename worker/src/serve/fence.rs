//! The highest token of an operator that this worker has heard of. An operator that led before, was paused, and doesn't know that another leads
//! by now has a lower one: its orders are refused.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::work_directory::replace_file;

const FILE: &str = "operator-token.json";
const FILE_BYTES_MAX: u64 = 4096;
const VERSION: u32 = 1;

/// The token, and where it is written down so that a process after this one knows it.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    seen: u64,
    folder: Option<PathBuf>,
}

/// A lower token than one that was heard before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stale {
    /// The highest so far.
    pub seen: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    version: u32,
    token: u64,
}

impl Fence {
    /// From now on the token is kept in `folder`, where an earlier process may have left one. A token that was heard before this call is written.
    pub fn keep_in(&mut self, folder: PathBuf) -> io::Result<()> {
        let before = read(&folder)?.unwrap_or(0);
        self.folder = Some(folder);
        if before >= self.seen {
            self.seen = before;
            return Ok(());
        }
        self.write()
    }

    /// Hears a token; a higher one is durable when this returns. What can't be written is logged and counts as long as the process lives: an
    /// order to stop must not fail because a disk is full.
    pub fn hear(&mut self, token: u64) -> Result<(), Stale> {
        if token < self.seen {
            return Err(Stale { seen: self.seen });
        }
        if token > self.seen {
            self.seen = token;
            if let Err(error) = self.write() {
                tracing::warn!(%error, "the operator's token can't be written to the working directory; a restart of this process forgets it");
            }
        }
        Ok(())
    }

    /// Whether [`Self::hear`] would write.
    pub fn is_news(&self, token: u64) -> bool {
        token > self.seen
    }

    fn write(&self) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let text = serde_json::to_vec(&Written { version: VERSION, token: self.seen }).map_err(io::Error::other)?;
        replace_file(folder, FILE, &text)
    }
}

/// The token that is written there; none where there is none, or none that can be read.
fn read(folder: &std::path::Path) -> io::Result<Option<u64>> {
    let mut text = Vec::new();
    match File::open(folder.join(FILE)) {
        Ok(file) => file.take(FILE_BYTES_MAX).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match serde_json::from_slice::<Written>(&text) {
        Ok(written) if written.version == VERSION => Ok(Some(written.token)),
        Ok(written) => {
            tracing::warn!(version = written.version, "{FILE} is of another version and not used");
            Ok(None)
        }
        Err(error) => {
            tracing::warn!(%error, "{FILE} can't be read: any operator's token is taken anew");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_lower_token_is_refused_by_this_process_and_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let mut fence = Fence::default();
        fence.hear(4).unwrap();
        fence.keep_in(folder.path().to_owned()).unwrap();
        assert_eq!(fence.hear(3), Err(Stale { seen: 4 }), "heard before there was a folder");
        fence.hear(7).unwrap();
        fence.hear(7).unwrap();

        let mut next = Fence::default();
        next.keep_in(folder.path().to_owned()).unwrap();
        assert_eq!(next.hear(6), Err(Stale { seen: 7 }));
        assert!(!next.is_news(7) && next.is_news(8));
        next.hear(7).unwrap();
    }

    #[test]
    fn what_was_heard_before_the_folder_is_written_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut fence = Fence::default();
        fence.hear(9).unwrap();
        fence.keep_in(folder.path().to_owned()).unwrap();
        let mut next = Fence::default();
        next.keep_in(folder.path().to_owned()).unwrap();
        assert_eq!(next.hear(8), Err(Stale { seen: 9 }));
    }

    #[test]
    fn a_damaged_file_and_a_folder_that_is_gone_keep_nobody_from_giving_orders() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        let mut fence = Fence::default();
        fence.keep_in(folder.path().to_owned()).unwrap();
        fence.hear(1).unwrap();
        folder.close().unwrap();
        fence.hear(2).unwrap();
        assert_eq!(fence.hear(1), Err(Stale { seen: 2 }), "what can't be written counts for this process");
    }
}
