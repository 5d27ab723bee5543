//! `cntlora.json`: what is recorded beside an adapter of how it came about, and the hashes of its files.
//!
//! The record is the caller's, an open JSON object; this room adds the hashes, and knows the few keys that checking
//! needs.

use crate::factors::{LayerShape, Start};
use crate::method::{Form, Method};
use crate::storage::{Access, Hashing, Piece, Problem, Source, is_missing};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// The file that holds the record.
pub const RECORD_FILE: &str = "cntlora.json";

/// Length and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal digits.
    pub sha256: String,
}

impl FileRecord {
    /// Reads a file and hashes it.
    ///
    /// # Errors
    /// An I/O problem if the file cannot be read.
    pub fn of(source: &Source) -> Result<Self, Problem> {
        const BLOCK: u64 = 1 << 20;
        let mut hashing = Hashing::default();
        while hashing.bytes() < source.length() {
            let length = BLOCK.min(source.length() - hashing.bytes());
            hashing.update(&source.read_vec(hashing.bytes(), length)?);
        }
        Ok(hashing.into())
    }
}

impl From<Hashing> for FileRecord {
    fn from(hashing: Hashing) -> Self {
        Self { bytes: hashing.bytes(), sha256: hashing.finish() }
    }
}

/// What checking needs of the record. Other keys are ignored.
#[derive(Debug, Deserialize)]
pub(super) struct Record {
    pub(super) format: String,
    pub(super) version: u64,
    #[serde(default)]
    pub(super) model: Option<String>,
    #[serde(default)]
    pub(super) residual: Option<String>,
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
    pub(super) module: String,
    pub(super) tensor: String,
    /// Where the weight is, if it is no tensor of its own.
    #[serde(default)]
    pub(super) weight: Option<Vec<Piece>>,
}

impl Record {
    /// What the factors of a layer of this shape promise, if the record says how they came about.
    pub(super) fn form(&self, shape: &LayerShape) -> Option<Form> {
        self.method.as_ref().map(|recorded| recorded.method.form(recorded.start, shape))
    }

    /// Whether a second adapter takes the update away, and not a changed base.
    pub(super) fn is_anchored(&self) -> bool {
        self.residual.as_deref() == Some("anchor")
    }

    /// What the model computes before the first step, if the record says so.
    pub(super) fn start(&self) -> Option<Start> {
        self.method.as_ref().map(|recorded| recorded.start)
    }

    /// The `format` of a record.
    pub(super) const FORMAT: &str = "cntlora-adapter";
    /// The newest `version` that is understood.
    pub(super) const VERSION: u64 = 1;

    /// Reads a record, if the file is there.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, Problem> {
        if is_missing(path) {
            return Ok(None);
        }
        let source = Source::open(path, Access::Read)?;
        let bytes = source.read_vec(0, source.length())?;
        Self::parse(&bytes).map(Some).map_err(|problem| problem.in_file(path))
    }

    /// Parses a record that this version of the tool understands.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| {
            Problem::data(format!("expected the record of an adapter, found other JSON: {error}"))
        })?;
        if record.format != Self::FORMAT {
            let found = crate::storage::quoted(&record.format);
            return Err(Problem::data(format!("expected the format \"{}\", found {found}", Self::FORMAT)));
        }
        if record.version > Self::VERSION {
            return Err(Problem::data(format!(
                "expected version {} of the format or an older one, found {}",
                Self::VERSION,
                record.version
            ))
            .help("check it with a newer version of cntlora"));
        }
        Ok(record)
    }
}

/// What every record of an adapter begins with: its format, the version of that, and the version of the tool.
pub fn record_heading() -> Map<String, Value> {
    let entries = [
        ("format", Record::FORMAT.into()),
        ("version", Record::VERSION.into()),
        ("tool_version", env!("CARGO_PKG_VERSION").into()),
    ];
    entries.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}

/// What a record says of where the weight of a layer is: the names of its tensors, and its pieces, if it is no tensor of its own.
pub fn recorded_layer(module: &str, tensor: &str, weight: Option<&[Piece]>) -> Value {
    let mut layer = serde_json::json!({ "module": module, "tensor": tensor });
    if let Some(weight) = weight {
        layer["weight"] = serde_json::json!(weight);
    }
    layer
}

/// Where an adapter comes from, as far as that is recorded beside it.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// What the model computes before the first step.
    pub start: Option<Start>,
    /// The model as it was named.
    pub model: Option<String>,
    /// What the record has of each layer, for the record of what is made of it: its module, and where its weight is.
    pub layers: Vec<Value>,
}

impl Origin {
    /// Reads the record in the folder of an adapter. Without one, nothing is known.
    ///
    /// # Errors
    /// A data problem for a record that cannot be understood; an I/O problem.
    pub fn read(folder: &Path) -> Result<Self, Problem> {
        let Some(record) = Record::read(&folder.join(RECORD_FILE))? else { return Ok(Self::default()) };
        let start = record.start();
        let layers = record.layers.into_iter();
        let layers = layers
            .map(|layer| recorded_layer(&layer.module, &layer.tensor, layer.weight.as_deref()))
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

    #[test]
    fn other_formats_and_newer_versions_are_refused() {
        let parse = |text: &str| Record::parse(text.as_bytes());
        assert!(parse(r#"{"format":"cntlora-adapter","version":1,"unknown":[1]}"#).is_ok());
        for (text, complaint) in [
            (r#"{"format":"moments","version":1}"#, "found \"moments\""),
            (r#"{"format":"cntlora-adapter","version":2}"#, "found 2"),
            ("[]", "expected the record"),
            ("{", "expected the record"),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.to_string().contains(complaint), "{problem}");
        }
    }
}
