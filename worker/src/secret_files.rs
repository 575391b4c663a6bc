//! Secrets from a folder: one file a name, as Kubernetes mounts them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use tiderace_engine::connect::Secrets;
use tiderace_engine::error::{Code, Diagnostic};

/// The largest value.
pub(crate) const SECRET_BYTES_MAX: u64 = 64 << 10;
/// The most files.
pub(crate) const SECRETS_MAX: usize = 256;

/// Reads every file of `folder` whose name doesn't begin with a dot (the kubelet keeps its own things there). One line break at the end of
/// a file is not part of the value: editors and `echo` put it there.
pub(crate) fn read(folder: &Path) -> Result<Secrets, Diagnostic> {
    let unreadable = |path: &Path, error: io::Error| {
        Diagnostic::new(Code::FileUnreadable, format!("{} can't be read: {error}", path.display()))
    };
    let mut values = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|error| unreadable(folder, error))? {
        let path = entry.map_err(|error| unreadable(folder, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.')) else { continue };
        if path.is_dir() {
            continue;
        }
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(|error| unreadable(&path, error))?;
        file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&path, error))?;
        if bytes.len() as u64 > SECRET_BYTES_MAX {
            return Err(unreadable(&path, io::Error::other(format!("a secret may have {SECRET_BYTES_MAX} bytes"))));
        }
        let mut value = String::from_utf8(bytes).map_err(|_| unreadable(&path, io::Error::other("a secret must be UTF-8")))?;
        if value.ends_with('\n') {
            value.pop();
            if value.ends_with('\r') {
                value.pop();
            }
        }
        values.insert(name.to_owned(), value);
        if values.len() > SECRETS_MAX {
            return Err(unreadable(folder, io::Error::other(format!("there may be {SECRETS_MAX} secrets"))));
        }
    }
    Ok(Secrets::new(values))
}

/// [`read`], where the folder need not be there.
pub(crate) fn read_if_any(folder: &Path) -> Result<Secrets, Diagnostic> {
    if folder.exists() { read(folder) } else { Ok(Secrets::default()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn each_file_is_a_secret_as_the_kubelet_mounts_it() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("..2026");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("password"), "p4ss\n").unwrap();
        std::os::unix::fs::symlink("..2026", folder.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/password", folder.path().join("password")).unwrap();
        std::fs::write(folder.path().join("plain"), "a\n\nb \r\n").unwrap();
        let secrets = read(folder.path()).unwrap();
        assert_eq!(secrets.names().collect::<Vec<_>>(), ["password", "plain"]);
        assert_eq!((secrets.value("password"), secrets.value("plain")), (Some("p4ss"), Some("a\n\nb ")));
    }

    #[test]
    fn what_is_no_text_or_too_large_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for bytes in [vec![0xff], vec![b'a'; SECRET_BYTES_MAX as usize + 1]] {
            std::fs::write(&path, bytes).unwrap();
            let refused = read(folder.path()).unwrap_err();
            assert!(refused.code == Code::FileUnreadable && refused.message.contains("key"), "{refused}");
        }
        assert!(read(&folder.path().join("none")).is_err());
        assert_eq!(read_if_any(&folder.path().join("none")).unwrap().names().count(), 0);
    }
}
