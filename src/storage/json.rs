//! Reading JSON: whole files up to a size limit, documents with a format and a version, objects without duplicate keys.

use super::visible::printable;
use super::{Problem, Source, quoted};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;

/// The largest JSON file that is read, in bytes.
pub(crate) const LARGEST: u64 = 1 << 28;

/// The largest JSON file of any form that is read, in bytes. In memory, it can be many times as large as its text.
const LARGEST_VALUE: u64 = 1 << 24;

/// Reads a JSON file. `name` says in messages what the file should contain, for example "plan".
///
/// # Errors
/// An I/O problem if the file cannot be read; a data problem if it has more than 256 MiB, or is not JSON of this form.
pub(crate) fn read_json<T: DeserializeOwned>(source: &Source, name: &str) -> Result<T, Problem> {
    let text = read_text(source, LARGEST)?;
    parse_json(&text, name).map_err(|problem| problem.in_file(source.path()))
}

/// As [`read_json`], for JSON of any form.
///
/// # Errors
/// As [`read_json`]; a data problem if the file has more than 16 MiB.
pub(crate) fn read_value(source: &Source, name: &str) -> Result<Value, Problem> {
    let text = read_text(source, LARGEST_VALUE)?;
    parse_json(&text, name).map_err(|problem| problem.in_file(source.path()))
}

fn read_text(source: &Source, largest: u64) -> Result<Vec<u8>, Problem> {
    let length = source.length();
    if length > largest {
        let what = format!("file is too large: {length} bytes, the limit for JSON is {largest} bytes");
        return Err(Problem::data(what).in_file(source.path()));
    }
    source.read_vec(0, length)
}

/// Parses JSON. The parser quotes the text, so control characters of its message are escaped.
pub(crate) fn parse_json<T: DeserializeOwned>(text: &[u8], name: &str) -> Result<T, Problem> {
    serde_json::from_slice(text)
        .map_err(|error| Problem::data(format!("invalid {name}: {}", printable(&error.to_string()))))
}

/// A kind of JSON document that cntlora writes. Each document has the keys `format` and `version`.
///
/// The same rule holds for all of them: `format` must be equal, and `version` must be from 1 to `newest`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schema {
    pub(crate) format: &'static str,
    /// The newest version that this program reads.
    pub(crate) newest: u64,
    /// Name of the document in messages.
    pub(crate) name: &'static str,
    /// Next step for the user if the document is damaged or of another kind.
    pub(crate) help: &'static str,
}

impl Schema {
    /// Reads a file that holds such a document and nothing else.
    pub(crate) fn read<T: DeserializeOwned>(&self, source: &Source) -> Result<T, Problem> {
        let text = read_text(source, LARGEST)?;
        self.parse(&text).map_err(|problem| problem.in_file(source.path()))
    }

    /// Parses such a document, after a check of its format and version.
    pub(crate) fn parse<T: DeserializeOwned>(&self, text: &[u8]) -> Result<T, Problem> {
        let Self { format, newest, name, help } = *self;
        let heading: Heading = parse_json(text, name).map_err(|problem| problem.help(help))?;
        if heading.format != format {
            let found = quoted(&heading.format);
            let what = format!("invalid {name}: expected format \"{format}\", found {found}");
            return Err(Problem::data(what).help(help));
        }
        if !(1..=newest).contains(&heading.version) {
            let version = heading.version;
            let what =
                format!("unsupported version {version} of the {name}: the newest known version is {newest}");
            return Err(Problem::data(what).help("use the version of cntlora that wrote it, or a newer one"));
        }
        parse_json(text, name).map_err(|problem| problem.help(help))
    }

    /// Returns whether a text has this format. Its version and content can still be unsupported or damaged.
    pub(crate) fn claims(&self, text: &[u8]) -> bool {
        serde_json::from_slice(text).is_ok_and(|heading: Heading| heading.format == self.format)
    }
}

#[derive(serde::Deserialize)]
#[serde(expecting = "an object with format and version")]
struct Heading {
    format: String,
    version: u64,
}

/// Inserts an entry.
///
/// # Errors
/// The key is in the map already.
pub(super) fn insert_unique<T, E: Error>(
    map: &mut BTreeMap<String, T>,
    key: String,
    value: T,
) -> Result<(), E> {
    match map.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(value);
            Ok(())
        }
        Entry::Occupied(entry) => Err(E::custom(format!("duplicate key {}", quoted(entry.key())))),
    }
}

/// An object without duplicate keys. Most JSON readers keep the last of several values; this one refuses them.
pub(crate) struct UniqueKeys<T>(pub(crate) BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for UniqueKeys<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = UniqueKeys<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map
                        .next_value()
                        .map_err(|error| A::Error::custom(format!("{}: {error}", quoted(&key))))?;
                    insert_unique(&mut entries, key, value)?;
                }
                Ok(UniqueKeys(entries))
            }
        }
        deserializer.deserialize_map(Keys(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::super::read_at::ReadAt;
    use super::super::snapshot;
    use super::*;
    use expect_test::expect;

    const SCHEMA: Schema = Schema {
        format: "moments",
        newest: 2,
        name: "moments file",
        help: "make it again with `cntlora moments`",
    };

    /// The results of reading, one per line.
    fn list(results: impl IntoIterator<Item = Result<Value, Problem>>) -> String {
        results.into_iter().map(|result| result.map_or_else(snapshot, |_| "ok\n".to_owned())).collect()
    }

    #[test]
    fn format_and_version_are_checked_before_the_content() {
        let texts = [
            r#"{"format":"moments","version":1}"#,
            r#"{"format":"moments","version":2,"more":[]}"#,
            r#"{"format":"moments","version":3}"#,
            r#"{"format":"moments","version":0}"#,
            r#"{"format":"moments","version":-1}"#,
            r#"{"format":"acti\u001bvations","version":1}"#,
            r#"{"version":1}"#,
            "[]",
            "",
        ];
        expect![[r#"
            ok
            ok
            unsupported version 3 of the moments file: the newest known version is 2; help: use the version of cntlora that wrote it, or a newer one
            unsupported version 0 of the moments file: the newest known version is 2; help: use the version of cntlora that wrote it, or a newer one
            invalid moments file: invalid value: integer `-1`, expected u64 at line 1 column 32; help: make it again with `cntlora moments`
            invalid moments file: expected format "moments", found "acti\u{1b}vations"; help: make it again with `cntlora moments`
            invalid moments file: missing field `format` at line 1 column 13; help: make it again with `cntlora moments`
            invalid moments file: invalid length 0, expected an object with format and version at line 1 column 2; help: make it again with `cntlora moments`
            invalid moments file: EOF while parsing a value at line 1 column 0; help: make it again with `cntlora moments`
        "#]].assert_eq(&list(texts.map(|text| SCHEMA.parse(text.as_bytes()))));
        assert_eq!(
            texts.map(|text| SCHEMA.claims(text.as_bytes())).iter().filter(|&&claims| claims).count(),
            4
        );
        let source = Source::from_bytes("x.json", b"{}".to_vec());
        expect![[r#"
            x.json: invalid moments file: missing field `format` at line 1 column 2; help: make it again with `cntlora moments`
        "#]].assert_eq(&list([SCHEMA.read(&source)]));
    }

    #[test]
    fn files_that_are_not_json_or_too_large_are_refused() {
        struct Huge(u64);
        impl ReadAt for Huge {
            fn len(&self) -> u64 {
                self.0 + 1
            }
            fn read_exact_at(&self, _: &mut [u8], _: u64) -> std::io::Result<()> {
                panic!("the length must be checked before reading")
            }
        }
        let huge = |largest| Source::from_reader("x.json".into(), Box::new(Huge(largest)));
        let (huge, huge_value) = (huge(LARGEST), huge(LARGEST_VALUE));
        let texts = ["{\"a\": 1}", "{} {}", "\u{1b}[31m", "\"a\u{7}\""];
        let sources = texts.map(|text| Source::from_bytes("x.json", text.into()));
        expect![[r#"
            ok
            x.json: invalid plan: trailing characters at line 1 column 4
            x.json: invalid plan: expected value at line 1 column 1
            x.json: invalid plan: control character (\u0000-\u001F) found while parsing a string at line 1 column 3
            x.json: file is too large: 268435457 bytes, the limit for JSON is 268435456 bytes
            x.json: file is too large: 16777217 bytes, the limit for JSON is 16777216 bytes
        "#]].assert_eq(&list(
            sources.iter().chain([&huge]).map(|source| read_json(source, "plan")).chain([read_value(&huge_value, "plan")])
        ));
    }

    /// The parser calls itself for each level, and the stack is limited.
    #[test]
    fn deeply_nested_json_is_refused() {
        let nested = "[".repeat(1_000_000);
        let texts = [nested.clone(), nested.replace('[', r#"{"a":"#), format!(r#"{{"a":{nested}"#)];
        let sources = texts.map(|text| Source::from_bytes("x.json", text.into()));
        expect![[r#"
            x.json: invalid plan: recursion limit exceeded at line 1 column 128
            x.json: invalid plan: recursion limit exceeded at line 1 column 636
            x.json: invalid plan: recursion limit exceeded at line 1 column 132
        "#]]
        .assert_eq(&list(sources.iter().map(|source| read_value(source, "plan"))));
    }

    #[test]
    fn duplicate_keys_are_refused_also_if_one_is_escaped() {
        let read = |text| serde_json::from_str::<UniqueKeys<u8>>(text).map(|keys| keys.0);
        assert_eq!(read(r#"{"b":1,"a":2}"#).unwrap(), BTreeMap::from([("a".into(), 2), ("b".into(), 1)]));
        let texts = [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":2}"#, r#"{"a":256}"#, "[1]"];
        expect![[r#"
            duplicate key "a" at line 1 column 13
            duplicate key "a" at line 1 column 18
            "a": invalid value: integer `256`, expected u8 at line 1 column 8
            invalid type: sequence, expected an object at line 1 column 0"#]]
        .assert_eq(&texts.map(|text| read(text).unwrap_err().to_string()).join("\n"));
    }
}
