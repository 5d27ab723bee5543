//! `cntlora.json`, the record beside an adapter: how the adapter was computed, and the hashes of its files.
//!
//! The caller gives the record as a JSON object. This module adds the hashes, and reads only the keys that it needs.

use crate::factors::{LayerShape, Start};
use crate::method::{Form, Method};
use crate::storage::{Access, Hashing, Piece, Problem, Schema, Source, folder_of, is_missing};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// The name of the record.
pub const RECORD_FILE: &str = "cntlora.json";

const SCHEMA: Schema = Schema {
    format: "cntlora-adapter",
    newest: 1,
    name: "adapter record",
    help: "write the adapter again, or remove the record to use the adapter without it",
};

/// Length and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal digits.
    pub sha256: String,
}

impl FileRecord {
    /// Reads and hashes a file.
    ///
    /// # Errors
    /// An I/O problem if the file cannot be read.
    pub fn of(source: &Source) -> Result<Self, Problem> {
        let mut hashing = Hashing::default();
        source.for_each_block(0..source.length(), |bytes| {
            hashing.update(&bytes);
            Ok(())
        })?;
        Ok(hashing.into())
    }
}

impl From<Hashing> for FileRecord {
    fn from(hashing: Hashing) -> Self {
        Self { bytes: hashing.bytes(), sha256: hashing.finish() }
    }
}

/// The keys of the record that are read. Other keys are ignored.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Record {
    #[serde(default)]
    pub(super) model: Option<String>,
    #[serde(default)]
    pub(super) residual: Option<String>,
    /// The rank to which all factors were padded.
    #[serde(default)]
    pub(super) uniform_rank: Option<u64>,
    #[serde(default)]
    pub(super) method: Option<RecordedMethod>,
    #[serde(default)]
    pub(super) layers: Vec<RecordedLayer>,
    #[serde(default)]
    pub(super) files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RecordedMethod {
    #[serde(default)]
    pub(super) method: Method,
    pub(super) start: Start,
}

#[derive(Debug, Deserialize)]
pub(super) struct RecordedLayer {
    /// The layer's name as text.
    pub(super) module: String,
    pub(super) tensor: String,
    /// The place of the weight, if it is not a complete tensor.
    #[serde(default)]
    pub(super) weight: Option<Vec<Piece>>,
    /// The fingerprint of each piece of the weight. Older records have none.
    #[serde(default)]
    pub(super) fingerprints: Vec<String>,
}

impl Record {
    /// The property that the factors of a layer must have, if the record has the method.
    pub(super) fn form(&self, shape: &LayerShape) -> Option<Form> {
        self.method.as_ref().map(|recorded| recorded.method.form(recorded.start, shape))
    }

    /// True if the initial update is subtracted by an anchor and not by a changed base.
    pub(super) fn is_anchored(&self) -> bool {
        self.residual.as_deref() == Some("anchor")
    }

    /// True if the adapter was written together with a changed base.
    pub(super) fn changes_base(&self) -> bool {
        self.start() == Some(Start::Residual) && !self.is_anchored()
    }

    /// The start of the adapter, if it is recorded.
    pub(super) fn start(&self) -> Option<Start> {
        self.method.as_ref().map(|recorded| recorded.start)
    }

    /// Reads a record; `None` if the file is missing.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, Problem> {
        if is_missing(path) {
            return Ok(None);
        }
        SCHEMA.read(&Source::open(path, Access::Read)?).map(Some)
    }
}

/// The first keys of every adapter record: format, version and tool version.
pub fn record_heading() -> Map<String, Value> {
    let entries = [
        ("format", SCHEMA.format.into()),
        ("version", SCHEMA.newest.into()),
        ("tool_version", env!("CARGO_PKG_VERSION").into()),
    ];
    entries.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}

/// The entry of a layer in a record: its module, the tensor of its weight, the pieces of the weight if it is not a complete tensor, and
/// the [fingerprint](super::weight_fingerprint) of each piece, if they are known.
pub fn recorded_layer(
    module: &str,
    tensor: &str,
    weight: Option<&[Piece]>,
    fingerprints: &[String],
) -> Value {
    let mut layer = serde_json::json!({ "module": module, "tensor": tensor });
    if let Some(weight) = weight {
        layer["weight"] = serde_json::json!(weight);
    }
    if !fingerprints.is_empty() {
        layer["fingerprints"] = serde_json::json!(fingerprints);
    }
    layer
}

/// The origin of an adapter, from the record beside it.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The start of the adapter.
    pub start: Option<Start>,
    /// The path or name of the model.
    pub model: Option<String>,
    /// The entries of the layers, for the record of a converted adapter.
    pub layers: Vec<Value>,
}

impl Origin {
    /// Reads the record in the folder of an adapter. Without a record, all fields are empty.
    ///
    /// # Errors
    /// A data problem if the record is invalid; an I/O problem if it cannot be read.
    pub fn read(folder: &Path) -> Result<Self, Problem> {
        let folder = if folder.is_dir() { folder } else { folder_of(folder) };
        let Some(record) = Record::read(&folder.join(RECORD_FILE))? else { return Ok(Self::default()) };
        let start = record.start();
        let layers = record.layers.into_iter();
        let layers = layers
            .map(|layer| {
                recorded_layer(&layer.module, &layer.tensor, layer.weight.as_deref(), &layer.fingerprints)
            })
            .collect();
        Ok(Self { start, model: record.model, layers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The oracle is the published digest of "abc" (FIPS 180-4, example 1).
    #[test]
    fn the_hash_is_sha256_of_all_blocks() {
        let record = FileRecord::of(&Source::from_bytes("abc", b"abc".to_vec())).unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(record, FileRecord { bytes: 3, sha256: expected.into() });

        let long = vec![7; (2 << 20) + 5];
        let mut at_once = Hashing::default();
        at_once.update(&long);
        assert_eq!(FileRecord::of(&Source::from_bytes("long", long)).unwrap(), FileRecord::from(at_once));
    }
}
