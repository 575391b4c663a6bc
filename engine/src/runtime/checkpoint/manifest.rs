//! What is written of a checkpoint besides tables: JSON behind a line with its checksum.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::connect::Position;

/// Grows when a job of an older build could not read it.
pub(super) const FORMAT: u32 = 1;

/// The commit point of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub format: u32,
    /// Its number; checkpoints of all runs of a job count on.
    pub version: u64,
    /// The run that made it, from 1.
    pub run: u64,
    /// The hash of [`super::CheckpointOptions::definition`].
    pub definition: String,
    pub max_parallelism: u32,
    /// Of each core the version that its folder and its note have.
    pub cores: Vec<u64>,
    /// The time of the last mark, µs since 1970: time doesn't go back.
    pub time_us: i64,
    /// All input has been read and is at the sinks.
    pub finished: bool,
    /// What sinks have prepared since the checkpoint before, by the node's name.
    pub pieces: Vec<(String, Vec<String>)>,
}

/// What a core knew besides its tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::runtime) struct CoreNote {
    /// How many records the tables hold.
    pub records: u64,
    /// In the order of the graph.
    pub nodes: Vec<NodeNote>,
}

/// The same of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::runtime) struct NodeNote {
    pub name: String,
    /// The watermark of its last mark, µs.
    pub watermark_us: i64,
    /// What an operator keeps besides its tables ([`crate::operators::Operator::save`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numbers: Vec<u64>,
    /// Where a source's reader is ([`crate::connect::SourceReader::position`]).
    #[serde(default, skip_serializing_if = "Position::is_empty")]
    pub position: Position,
}

/// The checkpoint that a job would go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub version: u64,
    /// Cores of the job that made it; only as many can go on.
    pub cores: usize,
    /// The job's time then, µs since 1970.
    pub time_us: i64,
    /// The job had come to its end: there is nothing to go on with.
    pub finished: bool,
}

pub(super) fn encode(value: &impl Serialize) -> Result<Vec<u8>, String> {
    let json = serde_json::to_string_pretty(value).map_err(|e| e.to_string())?;
    Ok(format!("xxh3 {:016x}\n{json}\n", XxHash3_64::oneshot(json.as_bytes())).into_bytes())
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let (head, json) = text.split_once('\n').ok_or("it has no checksum")?;
    let json = json.strip_suffix('\n').ok_or("its end is missing")?;
    if head != format!("xxh3 {:016x}", XxHash3_64::oneshot(json.as_bytes())) {
        return Err("its checksum is not that of its content".to_owned());
    }
    serde_json::from_str(json).map_err(|e| e.to_string())
}

/// What stands in a manifest for the job's definition.
pub(super) fn fingerprint(definition: &str) -> String {
    format!("{:016x}", XxHash3_64::oneshot(definition.as_bytes()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_manifest_comes_back_and_no_damage_passes() {
        let manifest = Manifest {
            format: FORMAT,
            version: 7,
            run: 2,
            definition: fingerprint("SELECT 1"),
            max_parallelism: 256,
            cores: vec![7, 6],
            time_us: 1_700_000_000_000_000,
            finished: false,
            pieces: vec![("out".to_owned(), vec!["part-1.json".to_owned()])],
        };
        let bytes = encode(&manifest).unwrap();
        assert_eq!(decode::<Manifest>(&bytes).unwrap(), manifest);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode::<Manifest>(&damaged).is_err(), "byte {at}");
            assert!(decode::<Manifest>(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
