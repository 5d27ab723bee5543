//! Writing: the same tensors give the same bytes.

use super::dtype::{alignment, byte_length};
use super::{LENGTH_BYTES, METADATA, Tensor};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// What a file is going to hold: fixes the header and every offset before a byte is written.
///
/// Tensors of wider numbers come first, and those of equally wide ones in order of name. The data start is aligned to 8 bytes by
/// padding the header with spaces. So every tensor is aligned to its numbers.
#[derive(Clone, Debug)]
pub struct Layout {
    header: Vec<u8>,
    tensors: BTreeMap<String, Tensor>,
    in_file_order: Vec<String>,
    file_length: u64,
}

impl Layout {
    /// `metadata` and `tensors` (name → dtype name, shape) in sorted order: the same input gives the same
    /// bytes.
    ///
    /// # Panics
    /// If a dtype name is not one of the format, a tensor is called `__metadata__`, or the file would be
    /// longer than a u64 can count.
    pub fn new(metadata: &BTreeMap<String, String>, tensors: &BTreeMap<String, (String, Vec<u64>)>) -> Self {
        assert!(!tensors.contains_key(METADATA), "no tensor can be called {METADATA}");
        let mut in_file_order: Vec<String> = tensors.keys().cloned().collect();
        in_file_order.sort_by_cached_key(|name| Reverse(alignment(&tensors[name].0)));
        // Offsets are counted from the end of the header, until its length is known.
        let mut end = 0u64;
        let mut placed = BTreeMap::new();
        for name in &in_file_order {
            let (dtype, shape) = &tensors[name];
            let length = byte_length(dtype, shape).unwrap_or_else(|what| panic!("tensor {name:?}: {what}"));
            let offset = end;
            end = end.checked_add(length).expect("a file has fewer than 2^64 bytes");
            let tensor = Tensor { dtype: dtype.clone(), shape: shape.clone(), offset, length };
            placed.insert(name.clone(), tensor);
        }
        let header = header_bytes(metadata, &placed);
        let data_start = header.len() as u64;
        for tensor in placed.values_mut() {
            tensor.offset = tensor.offset.checked_add(data_start).expect("a file has fewer than 2^64 bytes");
        }
        let file_length = end.checked_add(data_start).expect("a file has fewer than 2^64 bytes");
        Self { header, tensors: placed, in_file_order, file_length }
    }

    /// The eight bytes of length and the header itself.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The tensors by name. Offsets are from the start of the file.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The names of the tensors in the order in which their data follow the header.
    pub fn in_file_order(&self) -> &[String] {
        &self.in_file_order
    }

    /// Length of the whole file.
    pub fn file_length(&self) -> u64 {
        self.file_length
    }
}

/// A whole small file: header and data of every tensor. `data` gives little-endian bytes.
///
/// # Errors
/// Those of `out`, and `InvalidInput` before anything is written if the data of a tensor are not as long as
/// its shape and number format say.
///
/// # Panics
/// As [`Layout::new`].
pub fn write(
    out: &mut dyn Write,
    metadata: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, (String, Vec<u64>, Vec<u8>)>,
) -> io::Result<()> {
    let shapes = tensors
        .iter()
        .map(|(name, (dtype, shape, _))| (name.clone(), (dtype.clone(), shape.clone())))
        .collect();
    let layout = Layout::new(metadata, &shapes);
    for (name, (_, _, data)) in tensors {
        let expected = layout.tensors[name].length;
        if data.len() as u64 != expected {
            let what = format!("tensor {name:?}: expected {expected} bytes, found {}", data.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
    }
    out.write_all(layout.header())?;
    layout.in_file_order().iter().try_for_each(|name| out.write_all(&tensors[name].2))
}

/// Length and header, padded so that the data begin at a multiple of eight.
fn header_bytes(metadata: &BTreeMap<String, String>, tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let mut bytes = vec![0; LENGTH_BYTES as usize];
    serde_json::to_writer(&mut bytes, &Entries { metadata, tensors })
        .expect("text and integers can be written to memory");
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    let length = bytes.len() as u64 - LENGTH_BYTES;
    bytes[..LENGTH_BYTES as usize].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// The header as it will stand in the file; offsets are from its end.
struct Entries<'a> {
    metadata: &'a BTreeMap<String, String>,
    tensors: &'a BTreeMap<String, Tensor>,
}

#[derive(Serialize)]
struct Entry<'a> {
    dtype: &'a str,
    shape: &'a [u64],
    data_offsets: [u64; 2],
}

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, self.metadata)?;
        }
        for (name, Tensor { dtype, shape, offset, length }) in self.tensors {
            map.serialize_entry(name, &Entry { dtype, shape, data_offsets: [*offset, offset + length] })?;
        }
        map.end()
    }
}
