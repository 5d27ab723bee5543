//! `cntlora.json`: what is recorded beside an adapter of how it came about, and the hashes of its files.
//!
//! The record is the caller's, an open JSON object; this room adds the hashes, and knows the few keys that checking
//! needs.

use crate::factors::Start;
use crate::storage::{Hashing, Problem, Source};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    pub(super) method: Option<RecordedMethod>,
    #[serde(default)]
    pub(super) layers: Vec<RecordedLayer>,
    #[serde(default)]
    pub(super) files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RecordedMethod {
    pub(super) start: Start,
}

#[derive(Debug, Deserialize)]
pub(super) struct RecordedLayer {
    pub(super) module: String,
    pub(super) tensor: String,
}

impl Record {
    /// The `format` of a record.
    pub(super) const FORMAT: &str = "cntlora-adapter";
    /// The newest `version` that is understood.
    pub(super) const VERSION: u64 = 1;

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
