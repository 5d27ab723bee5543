//! The description of a part of a divided run: `part.json`.

use crate::adapter::{BaseFormat, Format, Loading, UniformRank};
use crate::plan::{Request, Shard};
use crate::storage::{Problem, Schema, Source};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::PathBuf;

/// The file that makes a folder a part.
pub(super) const PART: &str = "part.json";

const SCHEMA: Schema = Schema {
    format: "adapter-part",
    newest: 1,
    name: "description of a part",
    help: "give the folders that `cntlora init --shard` wrote",
};

/// The content of `part.json`: the part, the request, and the output format.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    format: String,
    version: u64,
    /// Index and number of parts.
    pub shard: Shard,
    /// The request, which is the same for all parts.
    pub request: Request,
    /// The output of the joined parts.
    pub writing: Writing,
}

/// The output of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writing {
    /// Format of the adapter.
    pub format: Format,
    /// Folder of the changed base, if the user named one.
    pub base: Option<PathBuf>,
    /// True if a second adapter subtracts the initial update, in place of a changed base.
    pub anchored: bool,
    /// The number format of the changed base.
    #[serde(rename = "wide_base", default, skip_serializing_if = "BaseFormat::is_model")]
    pub base_format: BaseFormat,
    /// The rank that all layers get, if they get the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uniform: Option<UniformRank>,
    /// The facts about the model for loaders of the adapter.
    #[serde(default)]
    pub loading: Loading,
}

impl Part {
    /// The description of a part.
    pub fn new(shard: Shard, request: Request, writing: Writing) -> Self {
        Self { format: SCHEMA.format.into(), version: SCHEMA.newest, shard, request, writing }
    }

    /// Reads `part.json`.
    ///
    /// # Errors
    /// An I/O problem if it cannot be read; a data problem if it is another kind of file, or has another version.
    pub fn read(source: &Source) -> Result<Self, Problem> {
        let part: Self = SCHEMA.read(source)?;
        match Shard::new(part.shard.index, part.shard.count) {
            Some(_) => Ok(part),
            None => {
                let what = format!("expected a part I/N with I below N, found {}", part.shard);
                Err(Problem::data(what).in_file(source.path()))
            }
        }
    }

    /// The differences of two parts of the same job in the output of the adapter, in words.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let written = |part: &Self| json!({ "element": part.request.element, "writing": part.writing });
        super::job::differences(&written(self), &written(other))
    }

    /// The text of the file.
    ///
    /// # Errors
    /// A usage problem for paths that are not UTF-8.
    pub(super) fn text(&self) -> Result<String, Problem> {
        serde_json::to_string_pretty(self).map_err(|error| {
            Problem::usage(format!("cannot write the description of the part: {error}"))
                .help("use paths that are valid UTF-8")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::shown;
    use crate::storage::{Problems, snapshot};
    use expect_test::expect;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    #[test]
    fn paths_that_are_not_utf8_are_refused() {
        let path = OsStr::from_bytes(b"\xff").into();
        let part =
            Part::new(Shard { index: 0, count: 2 }, Request::new(path, Vec::new()), Writing::default());
        expect![[r#"
            cannot write the description of the part: path contains invalid UTF-8 characters; help: use paths that are valid UTF-8
        "#]].assert_eq(&snapshot(part.text().unwrap_err()));
    }

    #[test]
    fn descriptions_read_back_and_invalid_ones_are_refused() {
        let request = Request::new("model".into(), vec!["acts".into()]);
        let part = Part::new(Shard { index: 1, count: 2 }, request, Writing::default());
        let text = part.text().unwrap();
        let read = |text: &str| Part::read(&Source::from_bytes("part.json", text.into()));
        assert_eq!(read(&text).unwrap().text().unwrap(), text);
        let mut problems = Problems::default();
        for (from, to) in [
            ("{", "["),
            ("adapter-part", "moments"),
            ("\"version\": 1", "\"version\": 2"),
            ("\"index\": 1", "\"index\": 2"),
        ] {
            assert!(text.contains(from), "{text}");
            problems.push(read(&text.replacen(from, to, 1)).unwrap_err());
        }
        expect![[r#"
            Data: part.json: invalid description of a part: expected `,` or `]` at line 2 column 11
                help: give the folders that `cntlora init --shard` wrote
            Data: part.json: invalid description of a part: expected format "adapter-part", found "moments"
                help: give the folders that `cntlora init --shard` wrote
            Data: part.json: unsupported version 2 of the description of a part: the newest known version is 1
                help: use the version of cntlora that wrote it, or a newer one
            Data: part.json: expected a part I/N with I below N, found 2/2
        "#]]
        .assert_eq(&shown(&problems, Path::new("-")));
    }
}
