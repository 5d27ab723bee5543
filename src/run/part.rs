//! What a part of a divided run says of itself: `part.json`.

use crate::adapter::Format;
use crate::plan::{Request, Shard};
use crate::storage::{Problem, Source, quoted};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::PathBuf;

/// The file that makes a folder a part.
pub(super) const PART: &str = "part.json";

const FORMAT: &str = "adapter-part";
const VERSION: u64 = 1;

/// What `part.json` says: which part it is, and how the whole goes on from there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    format: String,
    version: u64,
    /// Which part.
    pub shard: Shard,
    /// What was asked for, of all parts alike.
    pub request: Request,
    /// How the adapter is written, when the parts are joined.
    pub writing: Writing,
}

/// How an adapter is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writing {
    /// In which format.
    pub format: Format,
    /// Folder for the changed base, if one was named.
    pub base: Option<PathBuf>,
    /// Whether a second adapter takes the update away, in place of a changed base.
    pub anchored: bool,
}

impl Part {
    /// What a part says of itself.
    pub fn new(shard: Shard, request: Request, writing: Writing) -> Self {
        Self { format: FORMAT.into(), version: VERSION, shard, request, writing }
    }

    /// Reads `part.json`.
    ///
    /// # Errors
    /// An I/O problem if it cannot be read; a data problem if it is another file, or of a newer version.
    pub fn read(source: &Source) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        struct Kind {
            format: String,
            version: u64,
        }
        let refused = |what: String| Problem::data(what).in_file(source.path());
        let malformed =
            |error: serde_json::Error| refused(format!("expected the description of a part: {error}"));
        let bytes = source.read_vec(0, source.length())?;
        let kind: Kind = serde_json::from_slice(&bytes).map_err(malformed)?;
        if (kind.format.as_str(), kind.version) != (FORMAT, VERSION) {
            let (format, version) = (quoted(&kind.format), kind.version);
            let what =
                format!("expected version {VERSION} of \"{FORMAT}\", found version {version} of {format}");
            return Err(refused(what).help("join parts with the version of cntlora that made them"));
        }
        let part: Self = serde_json::from_slice(&bytes).map_err(malformed)?;
        match Shard::new(part.shard.index, part.shard.count) {
            Some(_) => Ok(part),
            None => Err(refused(format!("expected a part I/N with I below N, found {}", part.shard))),
        }
    }

    /// What another part of the same job says otherwise of the adapter that both are for, in words.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let written = |part: &Self| json!({ "element": part.request.element, "writing": part.writing });
        super::job::differences(&written(self), &written(other))
    }

    /// As it is written.
    ///
    /// # Errors
    /// A usage problem for paths that are not UTF-8.
    pub(super) fn text(&self) -> Result<String, Problem> {
        serde_json::to_string_pretty(self).map_err(|error| {
            Problem::usage(format!("a part cannot be described: {error}")).help("give paths of UTF-8 text")
        })
    }
}
