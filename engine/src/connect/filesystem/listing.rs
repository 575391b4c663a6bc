//! Which files a path means.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use regex::Regex;

use crate::error::{Code, Diagnostic, Result};

/// More files than these are refused rather than kept in memory.
pub const FILES_MAX: usize = 1_000_000;
/// Folders inside folders; deeper ones are most likely a loop of links.
const DEPTH_MAX: usize = 64;

/// A file of the input, as it was when it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// The path, as found under the option's path.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// µs since 1970; 0 where the system does not say.
    pub modified_us: i64,
}

/// A path option: a file, a folder or a glob.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    is_recursive: bool,
    /// A pattern for each part of the path behind `base`; `None` in it stands for `**`. Empty: no glob.
    parts: Vec<Option<Regex>>,
    base: PathBuf,
}

impl Pattern {
    /// Takes the option's text apart; `Err` is the reason why it is no path.
    pub fn parse(text: &str, is_recursive: bool) -> std::result::Result<Self, String> {
        let plain = strip_scheme(text)?;
        if plain.is_empty() {
            return Err("is empty".into());
        }
        // A file whose name has such characters is meant before a glob is.
        let is_glob = plain.contains(['*', '?', '[', '{']) && fs::symlink_metadata(plain).is_err();
        let (mut base, mut parts) = (PathBuf::new(), Vec::new());
        if is_glob {
            if plain.starts_with('/') {
                base.push("/");
            }
            for part in plain.split('/').filter(|p| !p.is_empty()) {
                if parts.is_empty() && !part.contains(['*', '?', '[', '{']) {
                    base.push(part);
                } else if part == "**" {
                    parts.push(None);
                } else {
                    parts.push(Some(glob_regex(part)?));
                }
            }
            if base.as_os_str().is_empty() {
                base.push(".");
            }
        } else {
            base.push(plain);
        }
        Ok(Self { text: text.to_owned(), is_recursive, parts, base })
    }

    /// The path as given, for messages.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All files that it means now, sorted by path. Hidden files and folders, and those that start with `_`, are left out unless the path
    /// itself names them.
    pub fn list(&self) -> Result<Vec<FileInfo>> {
        let mut files = Vec::new();
        if self.parts.is_empty() {
            let metadata = fs::metadata(&self.base).map_err(|e| self.unreadable(&self.base, &e))?;
            if metadata.is_dir() {
                self.folder(&self.base, 0, &mut files)?;
            } else {
                files.push(info(self.base.clone(), &metadata));
            }
        } else {
            self.glob(&self.base, &self.parts, 0, &mut files)?;
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files.dedup_by(|a, b| a.path == b.path);
        Ok(files)
    }

    /// The error for a path that means no file.
    pub fn not_found(&self) -> Diagnostic {
        Diagnostic::new(Code::PathNotFound, format!("no file matches '{}'", self.text)).hint(
            "a relative path starts at the folder where the job is run; hidden files and those that start with '_' don't count",
        )
    }

    /// Whether an empty listing is an error: a glob that matches nothing is, an empty folder is not.
    pub fn is_glob(&self) -> bool {
        !self.parts.is_empty()
    }

    fn unreadable(&self, path: &Path, error: &io::Error) -> Diagnostic {
        match error.kind() {
            io::ErrorKind::NotFound => {
                Diagnostic::new(Code::PathNotFound, format!("there is no file or folder '{}'", path.display()))
                    .hint("a relative path starts at the folder where the job is run")
            }
            _ => Diagnostic::new(Code::SourceUnavailable, format!("'{}' can't be read: {error}", path.display())),
        }
    }

    fn folder(&self, folder: &Path, depth: usize, files: &mut Vec<FileInfo>) -> Result<()> {
        for (path, name) in self.entries(folder, depth)? {
            if name.starts_with(['.', '_']) {
                continue;
            }
            let Some(metadata) = self.metadata(&path)? else { continue };
            if metadata.is_dir() {
                if self.is_recursive {
                    self.folder(&path, depth + 1, files)?;
                }
            } else {
                self.add(path, &metadata, files)?;
            }
        }
        Ok(())
    }

    fn glob(&self, folder: &Path, parts: &[Option<Regex>], depth: usize, files: &mut Vec<FileInfo>) -> Result<()> {
        let Some((part, rest)) = parts.split_first() else { return Ok(()) };
        let Some(part) = part else {
            // `**`: no folder, or any number of them.
            self.glob(folder, rest, depth, files)?;
            if rest.is_empty() {
                return self.folder(folder, depth, files);
            }
            for (path, name) in self.entries(folder, depth)? {
                if !name.starts_with(['.', '_']) && self.metadata(&path)?.is_some_and(|m| m.is_dir()) {
                    self.glob(&path, parts, depth + 1, files)?;
                }
            }
            return Ok(());
        };
        for (path, name) in self.entries(folder, depth)? {
            let is_named = part.as_str().starts_with(r"^\.") || part.as_str().starts_with("^_");
            if !part.is_match(&name) || (name.starts_with(['.', '_']) && !is_named) {
                continue;
            }
            let Some(metadata) = self.metadata(&path)? else { continue };
            match (metadata.is_dir(), rest.is_empty()) {
                (true, true) => self.folder(&path, depth + 1, files)?,
                (true, false) => self.glob(&path, rest, depth + 1, files)?,
                (false, true) => self.add(path, &metadata, files)?,
                (false, false) => {}
            }
        }
        Ok(())
    }

    fn entries(&self, folder: &Path, depth: usize) -> Result<Vec<(PathBuf, String)>> {
        if depth > DEPTH_MAX {
            let message = format!("'{}' is nested deeper than {DEPTH_MAX} folders", folder.display());
            return Err(
                Diagnostic::new(Code::SourceUnavailable, message).hint("look for a link that leads back to a folder above it")
            );
        }
        let read = || -> io::Result<Vec<(PathBuf, String)>> {
            fs::read_dir(folder)?.map(|entry| entry.map(|e| (e.path(), e.file_name().to_string_lossy().into_owned()))).collect()
        };
        let mut entries = read().map_err(|e| self.unreadable(folder, &e))?;
        entries.sort();
        Ok(entries)
    }

    /// `None` when the file went away since its folder was read.
    fn metadata(&self, path: &Path) -> Result<Option<fs::Metadata>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.unreadable(path, &e)),
        }
    }

    fn add(&self, path: PathBuf, metadata: &fs::Metadata, files: &mut Vec<FileInfo>) -> Result<()> {
        if files.len() >= FILES_MAX {
            return Err(Diagnostic::new(Code::SourceUnavailable, format!("'{}' means more than {FILES_MAX} files", self.text))
                .hint("read a part of them with a narrower path"));
        }
        files.push(info(path, metadata));
        Ok(())
    }
}

fn info(path: PathBuf, metadata: &fs::Metadata) -> FileInfo {
    let since_1970 = metadata.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    FileInfo { path, size: metadata.len(), modified_us: since_1970.map_or(0, |d| d.as_micros() as i64) }
}

/// A path without `file:` in front; other schemes are refused.
pub fn strip_scheme(text: &str) -> std::result::Result<&str, String> {
    let Some((scheme, rest)) = text.split_once(':') else { return Ok(text) };
    if scheme.eq_ignore_ascii_case("file") {
        return Ok(match rest.strip_prefix("//") {
            Some(rest) => rest.strip_prefix("localhost").filter(|r| r.starts_with('/')).unwrap_or(rest),
            None => rest,
        });
    }
    if rest.starts_with("//") {
        Err(format!("has the scheme '{scheme}://'; only local files can be read and written"))
    } else {
        Ok(text)
    }
}

/// One part of a glob as a regex.
fn glob_regex(part: &str) -> std::result::Result<Regex, String> {
    let mut out = String::from("^");
    let mut chars = part.chars().peekable();
    let mut in_braces = false;
    while let Some(c) = chars.next() {
        match c {
            '*' => out.push_str(".*"),
            '?' => out.push('.'),
            '{' if !in_braces => {
                in_braces = true;
                out.push_str("(?:");
            }
            '}' if in_braces => {
                in_braces = false;
                out.push(')');
            }
            ',' if in_braces => out.push('|'),
            '[' => {
                out.push('[');
                if chars.peek() == Some(&'!') {
                    chars.next();
                    out.push('^');
                }
                loop {
                    match chars.next() {
                        Some(']') => break,
                        Some('-') => out.push('-'),
                        Some(inner) => out.push_str(&regex::escape(&inner.to_string())),
                        None => return Err(format!("has an open '[' in '{part}'")),
                    }
                }
                out.push(']');
            }
            other => out.push_str(&regex::escape(&other.to_string())),
        }
    }
    if in_braces {
        return Err(format!("has an open '{{' in '{part}'"));
    }
    out.push('$');
    Regex::new(&out).map_err(|e| format!("is no glob: {e}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/1.json", "a/2.csv", "a/.hidden", "a/_SUCCESS", "a/b/3.json", "a/_tmp/4.json", "c/5.json"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        dir
    }

    fn list(dir: &Path, pattern: &str, is_recursive: bool) -> Vec<String> {
        let pattern = Pattern::parse(&format!("{}/{pattern}", dir.display()), is_recursive).unwrap();
        let files = pattern.list().unwrap();
        files.iter().map(|f| f.path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn folders_files_and_globs_are_listed_in_order_without_hidden_ones() {
        let dir = folder();
        assert_eq!(list(dir.path(), "a", true), ["a/1.json", "a/2.csv", "a/b/3.json"]);
        assert_eq!(list(dir.path(), "a/", false), ["a/1.json", "a/2.csv"]);
        assert_eq!(list(dir.path(), "a/1.json", true), ["a/1.json"]);
        assert_eq!(list(dir.path(), "a/.hidden", true), ["a/.hidden"]);
        assert_eq!(list(dir.path(), "*/*.json", true), ["a/1.json", "c/5.json"]);
        assert_eq!(list(dir.path(), "**/*.json", true), ["a/1.json", "a/b/3.json", "c/5.json"]);
        assert_eq!(list(dir.path(), "a/?.{json,csv}", true), ["a/1.json", "a/2.csv"]);
        assert_eq!(list(dir.path(), "a/[!1].*", true), ["a/2.csv"]);
        assert_eq!(list(dir.path(), "[b-z]", true), ["c/5.json"]);
        assert_eq!(list(dir.path(), "a/_*", true), ["a/_SUCCESS", "a/_tmp/4.json"]);
    }

    #[test]
    fn a_path_that_is_not_there_has_its_code() {
        let dir = folder();
        let pattern = Pattern::parse(&format!("{}/none", dir.path().display()), true).unwrap();
        assert_eq!(pattern.list().unwrap_err().code, Code::PathNotFound);
        assert!(Pattern::parse("s3://bucket/x", true).is_err());
        assert_eq!(strip_scheme("file:///tmp/x"), Ok("/tmp/x"));
        assert_eq!(strip_scheme("file:/tmp/x"), Ok("/tmp/x"));
    }

    #[test]
    fn a_loop_of_links_ends_with_an_error() {
        let dir = folder();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("c/up")).unwrap();
        let pattern = Pattern::parse(&dir.path().display().to_string(), true).unwrap();
        assert!(pattern.list().is_err());
    }
}
