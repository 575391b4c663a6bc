//! Checkpoints that a shard's own pages make up: manifests, the segments with the pages that they name, and what lives on those.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use serde::Serialize;

use super::{InspectError, Problem};
use crate::device::{Device, DeviceError, DeviceOp, Done, FileName};
use crate::ordered::{NO_ENTRIES, count_entries};
use crate::point::{PageRecord, read_page};
use crate::shard::manifest::{MANIFEST_BYTES_MAX, PagesManifest, TableKind, TablePages, manifest_name, manifest_version};
use crate::store::{FrameLabel, FramePlace, open_frame, segment_name, segment_number};

/// A table of a checkpoint of pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PagesTableReport {
    /// Its number.
    pub table: u64,
    /// `point` or `ordered`.
    pub kind: &'static str,
    /// Bytes of the values that it makes.
    pub value_width: u32,
    /// Its pages.
    pub pages: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Of a table whose data was read: keys that live.
    pub live_records: Option<u64>,
    /// The same: records on its pages, those that later ones replace included.
    pub written_records: Option<u64>,
    /// Of a point table whose data was read: tombstones.
    pub tombstones: Option<u64>,
}

/// A manifest of pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PagesManifestReport {
    /// Its version.
    pub version: u64,
    /// Its file.
    pub file: String,
    /// The shard's number.
    pub shard: u32,
    /// Bytes of the owner's note.
    pub note_bytes: u64,
    /// Its tables.
    pub tables: Vec<PagesTableReport>,
    /// Whether all pages were read and compared with their checksums.
    pub is_verified: bool,
}

/// A segment of pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PagesSegmentReport {
    /// Its file.
    pub file: String,
    /// Its length.
    pub file_bytes: u64,
    /// Bytes of frames that manifests name, each once.
    pub named_bytes: u64,
    /// Manifests that name pages in it.
    pub manifests: u64,
}

/// A directory of pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PagesReport {
    /// Manifests that can be read, ascending.
    pub manifests: Vec<PagesManifestReport>,
    /// Segments, ascending. One that no manifest names is removed when the shard is opened, unless it runs.
    pub segments: Vec<PagesSegmentReport>,
    /// What is damaged.
    pub problems: Vec<Problem>,
}

fn read(device: &mut (impl Device + ?Sized), file: FileName, offset: u64, len: usize) -> Result<Vec<u8>, DeviceError> {
    match device.execute(DeviceOp::Read { file, offset, len })? {
        Done::Data(bytes) => Ok(bytes),
        _ => Ok(Vec::new()),
    }
}

/// The pages of a directory; `reads_data`: read all pages and verify them, which takes memory for all keys of a table.
pub fn inspect_pages(device: &mut (impl Device + ?Sized), reads_data: bool) -> Result<PagesReport, InspectError> {
    let Done::Files(files) = device.execute(DeviceOp::List)? else { return Err(nothing()) };
    let mut report = PagesReport { manifests: Vec::new(), segments: Vec::new(), problems: Vec::new() };
    let mut lengths = BTreeMap::new();
    let mut versions = Vec::new();
    for (name, len) in &files {
        if let Some(segment) = segment_number(name) {
            lengths.insert(segment, *len);
        } else if let Some(version) = manifest_version(name) {
            versions.push(version);
        }
    }
    if versions.is_empty() && lengths.is_empty() {
        return Err(nothing());
    }
    versions.sort_unstable();
    let mut named: BTreeMap<u32, (u64, BTreeMap<u32, u32>)> = BTreeMap::new();
    for version in versions {
        let file = manifest_name(version);
        let bytes = read(device, file.clone(), 0, MANIFEST_BYTES_MAX)?;
        let manifest = match PagesManifest::decode(&bytes) {
            Ok(manifest) if manifest.version == version => manifest,
            Ok(other) => {
                let what = format!("it is of version {}", other.version);
                report.problems.push(Problem { file: file.as_str().to_owned(), offset: None, what });
                continue;
            }
            Err(what) => {
                report.problems.push(Problem { file: file.as_str().to_owned(), offset: None, what: what.to_string() });
                continue;
            }
        };
        for (segment, end) in manifest.segments() {
            named.entry(segment).or_default().0 += 1;
            let needed = FramePlace { segment, sector: end, sectors: 0, crc: 0 }.offset();
            let what = match lengths.get(&segment) {
                None => "a manifest names it, but it isn't there".to_owned(),
                Some(len) if *len < needed => format!("it has {len} B, version {version} needs {needed}"),
                Some(_) => continue,
            };
            report.problems.push(Problem { file: segment_name(segment).as_str().to_owned(), offset: None, what });
        }
        for page in manifest.tables.iter().flat_map(|t| &t.pages) {
            named.entry(page.place.segment).or_default().1.insert(page.place.sector, page.place.sectors);
        }
        let mut tables = Vec::new();
        for table in &manifest.tables {
            tables.push(table_report(device, &manifest, table, reads_data, &mut report.problems)?);
        }
        report.manifests.push(PagesManifestReport {
            version,
            file: file.as_str().to_owned(),
            shard: manifest.shard,
            note_bytes: manifest.note.len() as u64,
            tables,
            is_verified: reads_data,
        });
    }
    for (segment, file_bytes) in lengths {
        let (manifests, frames) = named.remove(&segment).unwrap_or_default();
        report.segments.push(PagesSegmentReport {
            file: segment_name(segment).as_str().to_owned(),
            file_bytes,
            named_bytes: frames.values().map(|sectors| u64::from(*sectors) * 512).sum(),
            manifests,
        });
    }
    // A page that several manifests name is damaged once.
    report.problems.sort_by(|a, b| (&a.file, a.offset, &a.what).cmp(&(&b.file, b.offset, &b.what)));
    report.problems.dedup();
    Ok(report)
}

fn nothing() -> InspectError {
    InspectError::Nothing { what: "shard of pages (pages-manifest-…, pages-….seg)".to_owned() }
}

fn table_report(
    device: &mut (impl Device + ?Sized),
    manifest: &PagesManifest,
    table: &TablePages,
    reads_data: bool,
    problems: &mut Vec<Problem>,
) -> Result<PagesTableReport, InspectError> {
    let is_point = table.kind == TableKind::Point;
    let mut report = PagesTableReport {
        table: table.id.0,
        kind: if is_point { "point" } else { "ordered" },
        value_width: table.value_width,
        pages: table.pages.len() as u64,
        bytes: table.pages.iter().map(|p| p.place.bytes() as u64).sum(),
        live_records: None,
        written_records: None,
        tombstones: None,
    };
    if !reads_data {
        return Ok(report);
    }
    // Of each key the page with its newest record, as a recovery finds them.
    let mut live: HashMap<Vec<u8>, u64> = HashMap::new();
    let (mut written, mut tombstones) = (0, 0);
    for page in &table.pages {
        let file = segment_name(page.place.segment);
        let mut problem = |what: String| {
            problems.push(Problem { file: file.as_str().to_owned(), offset: Some(page.place.offset()), what });
        };
        let bytes = match read(device, file.clone(), page.place.offset(), page.place.bytes()) {
            Ok(bytes) => bytes,
            // Told with the manifest.
            Err(DeviceError::NotFound { .. }) => continue,
            Err(e) => return Err(e.into()),
        };
        let label = FrameLabel { shard: manifest.shard, table: table.id, page: page.number };
        let bytes = match open_frame(bytes, &label, &page.place) {
            Ok(bytes) => bytes,
            Err(because) => {
                problem(format!("page {} of table {}: {because}", page.number, table.id.0));
                continue;
            }
        };
        if !is_point {
            match count_entries(bytes) {
                Some(entries) => written += entries as u64,
                None => problem(format!("page {} of table {}: {NO_ENTRIES}", page.number, table.id.0)),
            }
            continue;
        }
        let read = read_page(&bytes, |record| match record {
            PageRecord::Live { key, .. } => {
                written += 1;
                live.insert(key.to_vec(), page.number);
            }
            PageRecord::Removed { key, below } => {
                tombstones += 1;
                if live.get(key).is_some_and(|number| *number < below) {
                    live.remove(key);
                }
            }
        });
        if read.is_none() {
            problem(format!("page {} of table {} holds no records as they should be", page.number, table.id.0));
        }
    }
    if !is_point {
        (report.live_records, report.written_records) = (Some(written), Some(written));
    } else {
        (report.live_records, report.written_records) = (Some(live.len() as u64), Some(written));
        report.tombstones = Some(tombstones);
    }
    Ok(report)
}
