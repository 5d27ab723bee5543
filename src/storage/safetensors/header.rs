//! Reading and checking a header, without reading tensors.

use super::super::json::{LARGEST, UniqueKeys, insert_unique};
use super::super::recognize::{PREFIX, recognize};
use super::super::visible::printable;
use super::super::{Problem, Source, quoted};
use super::dtype;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// The key of the metadata in the header. No tensor can have this name.
pub(super) const METADATA: &str = "__metadata__";

/// Number of bytes before the header. They contain its length.
pub(super) const LENGTH_BYTES: u64 = 8;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name of the number format in the file, such as `F32` or `I64`.
    pub dtype: String,
    /// Lengths of the axes.
    pub shape: Vec<u64>,
    /// Offset of the first byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// A checked header: names are unique, and the data of the tensors fill the rest of the file without overlaps and gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The `__metadata__` entries.
    pub metadata: BTreeMap<String, String>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Offset of the first byte of data, from the start of the file.
    pub data_start: u64,
}

/// The length of the shortest file. Its header is `{}`.
const SHORTEST: u64 = LENGTH_BYTES + 2;

impl Header {
    /// The longest header, in bytes: the limit of all JSON. The reference implementation reads headers of up to 100 MB, but moments of
    /// 200 000 sites have longer ones.
    pub(crate) const LONGEST: u64 = LARGEST;

    /// Reads and checks the header of a file.
    ///
    /// # Errors
    /// Violations of the format. Also refused are cases that the format leaves open and that readers treat differently: duplicate
    /// keys, unknown keys and number formats, and white space other than the padding after the header.
    pub fn read(source: &Source) -> Result<Self, Problem> {
        let text = read_text(source)?;
        let data_start = LENGTH_BYTES + text.len() as u64;
        let Entries { metadata, tensors } = serde_json::from_str(&text).map_err(|error| {
            malformed(source, format!("invalid safetensors header: {}", printable(&error.to_string())))
        })?;
        // No overflow: the header was read, so the file is longer than it.
        let tensors = place(source, tensors, data_start, source.length() - data_start)?;
        Ok(Self { metadata, tensors, data_start })
    }

    /// The tensors in the order of their data in the file.
    ///
    /// The bytes before [`data_start`](Self::data_start) and the data of these tensors, in order, are the complete file.
    pub fn in_file_order(&self) -> Vec<(&str, &Tensor)> {
        let mut tensors: Vec<_> = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        // An empty tensor comes before the tensor that begins at the same offset.
        tensors.sort_by_key(|(_, tensor)| (tensor.offset, tensor.length));
        tensors
    }
}

/// Reads the text of the header, with its padding.
fn read_text(source: &Source) -> Result<String, Problem> {
    let size = source.length();
    let prefix = source.read_vec(0, size.min(PREFIX))?;
    let not_safetensors = |otherwise: String| match recognize(&prefix) {
        Some(other) => Problem::data(format!("expected a safetensors file, found {}", other.found))
            .in_file(source.path())
            .help(other.help),
        None => malformed(source, otherwise),
    };
    let (Some(length), true) = (prefix.first_chunk(), size >= SHORTEST) else {
        return Err(not_safetensors(format!(
            "the file has {size} bytes, but a safetensors file has at least {SHORTEST}"
        )));
    };
    let length = u64::from_le_bytes(*length);
    if prefix.get(8) != Some(&b'{') {
        return Err(not_safetensors(
            "not a safetensors file: its header does not begin with \"{\" at byte 8".into(),
        ));
    }
    if length > Header::LONGEST {
        let longest = Header::LONGEST;
        return Err(malformed(source, format!("the header has {length} bytes, the limit is {longest}")));
    }
    if length > size - LENGTH_BYTES {
        let found = size - LENGTH_BYTES;
        return Err(malformed(
            source,
            format!("the header should have {length} bytes, but only {found} bytes follow its length"),
        ));
    }
    let bytes = source.read_vec(LENGTH_BYTES, length)?;
    if bytes.iter().rfind(|&&byte| byte != b' ') != Some(&b'}') {
        return Err(malformed(source, "the header does not end with \"}\" and spaces".into()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to() as u64 + LENGTH_BYTES;
        malformed(source, format!("the header is not valid UTF-8 at byte {offset}"))
    })
}

fn malformed(source: &Source, what: String) -> Problem {
    Problem::data(what)
        .in_file(source.path())
        .help("the file is damaged or incomplete: download it again, or write it with a safetensors library")
}

/// Checks lengths and offsets. The returned offsets are from the start of the file.
fn place(
    source: &Source,
    entries: BTreeMap<String, Entry>,
    data_start: u64,
    data_length: u64,
) -> Result<BTreeMap<String, Tensor>, Problem> {
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut previous: Option<&String> = None;
    let mut expected = 0;
    for (name, entry) in order {
        let refused = |what| Err(malformed(source, what).in_tensor(name));
        let [begin, end] = entry.data_offsets;
        if begin > end {
            return refused(format!("data_offsets decrease from {begin} to {end}"));
        }
        let length = match dtype::byte_length(&entry.dtype, &entry.shape) {
            Ok(length) => length,
            Err(what) => return refused(what),
        };
        if end - begin != length {
            let (dtype, shape) = (&entry.dtype, &entry.shape);
            let found = end - begin;
            return refused(format!(
                "{dtype} of shape {shape:?} needs {length} bytes, but data_offsets span {found}"
            ));
        }
        match previous {
            _ if begin == expected => {}
            Some(previous) if begin < expected => {
                let previous = quoted(previous);
                return refused(format!(
                    "data begin at {begin} and overlap with {previous}, which ends at {expected}"
                ));
            }
            _ => {
                return refused(format!("data begin at {begin}, but the data before them end at {expected}"));
            }
        }
        (previous, expected) = (Some(name), end);
    }
    if expected != data_length {
        let truncated_or_longer = if expected > data_length { "truncated" } else { "too long" };
        let what = format!(
            "the file is {truncated_or_longer}: its tensors have {expected} bytes, but {data_length} follow the header"
        );
        return Err(malformed(source, what));
    }
    Ok(entries
        .into_iter()
        .map(|(name, Entry { dtype, shape, data_offsets: [begin, end] })| {
            (name, Tensor { dtype, shape, offset: data_start + begin, length: end - begin })
        })
        .collect())
}

/// The header as written in the file.
#[derive(Default)]
struct Entries {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut metadata = None;
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let within = |error| A::Error::custom(format!("{}: {error}", quoted(&name)));
                    if name == METADATA {
                        let UniqueKeys(entries) = map.next_value().map_err(within)?;
                        if metadata.replace(entries).is_some() {
                            return Err(A::Error::duplicate_field(METADATA));
                        }
                    } else {
                        let ObjectOnly(entry) = map.next_value().map_err(within)?;
                        insert_unique(&mut tensors, name, entry)?;
                    }
                }
                Ok(Entries { metadata: metadata.unwrap_or_default(), tensors })
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// An entry that must be an object. The derived implementation would also accept an array of the fields.
struct ObjectOnly(Entry);

impl<'de> Deserialize<'de> for ObjectOnly {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor;

        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = ObjectOnly;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ObjectOnly, A::Error> {
                Entry::deserialize(MapAccessDeserializer::new(map)).map(ObjectOnly)
            }
        }
        deserializer.deserialize_map(EntryVisitor)
    }
}
