//! Writing files: the same tensors give the same bytes.

use super::dtype::{alignment, byte_length};
use super::header::{LENGTH_BYTES, METADATA, Tensor};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// The header of a file and the offset of every tensor, computed before a byte is written.
///
/// Tensors with wider numbers come first; tensors with numbers of equal width are sorted by name. The header is padded with spaces
/// so that the data begin at a multiple of 8 bytes. So every tensor is aligned to its numbers.
#[derive(Clone, Debug)]
pub struct Layout {
    header: Vec<u8>,
    tensors: BTreeMap<String, Tensor>,
    in_file_order: Vec<String>,
    file_length: u64,
}

impl Layout {
    /// Computes the layout of tensors, given by name as number format and shape.
    ///
    /// # Panics
    /// If safetensors does not have a number format, a tensor is called `__metadata__`, or the file would have 2⁶⁴ bytes or more.
    pub fn new(metadata: &BTreeMap<String, String>, tensors: &BTreeMap<String, (String, Vec<u64>)>) -> Self {
        assert!(!tensors.contains_key(METADATA), "a tensor cannot be called {METADATA}");
        let mut in_file_order: Vec<String> = tensors.keys().cloned().collect();
        in_file_order.sort_by_cached_key(|name| Reverse(alignment(&tensors[name].0)));
        // Offsets are relative to the end of the header until its length is known.
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

    /// The bytes before the data: the length of the header and the header.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The names of the tensors in the order of their data in the file.
    pub fn in_file_order(&self) -> &[String] {
        &self.in_file_order
    }

    /// Length of the file in bytes.
    pub fn file_length(&self) -> u64 {
        self.file_length
    }
}

/// Writes a small file at once. `tensors` has by name the number format, the shape and the data in little-endian bytes.
///
/// # Errors
/// Those of `out`; `InvalidInput`, before anything is written, if the length of the data does not match shape and number format.
///
/// # Panics
/// Those of [`Layout::new`].
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

/// Length and header, padded so that the data begin at a multiple of 8.
fn header_bytes(metadata: &BTreeMap<String, String>, tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let mut bytes = vec![0; LENGTH_BYTES as usize];
    serde_json::to_writer(&mut bytes, &Entries { metadata, tensors })
        .expect("text and integers can be written to memory");
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    let length = bytes.len() as u64 - LENGTH_BYTES;
    bytes[..LENGTH_BYTES as usize].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// The header as written to the file; offsets are relative to its end.
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
