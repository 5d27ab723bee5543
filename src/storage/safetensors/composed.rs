//! Tensors in memory in the form of a file.

use super::super::{Problem, ReadAt};
use super::dtype::byte_length;
use super::header::METADATA;
use super::layout::Layout;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

/// Copies bytes of a tensor: its name, the offset of the first byte within it, and the buffer to fill.
pub type Fill = dyn Fn(&str, u64, &mut [u8]) -> io::Result<()> + Send + Sync;

/// The bytes of a safetensors file that is nowhere as a whole. Only its header is in memory here.
pub struct Composed {
    header: Vec<u8>,
    length: u64,
    /// The tensors that are not empty, in the order of their data.
    tensors: Vec<(Range<u64>, String)>,
    fill: Box<Fill>,
}

impl std::fmt::Debug for Composed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Composed").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Composed {
    /// A file of tensors, given by name as number format and shape.
    ///
    /// # Errors
    /// A usage problem for a name or number format that safetensors does not have, and for a file of 2⁶⁴ bytes or more.
    pub fn new(tensors: &BTreeMap<String, (String, Vec<u64>)>, fill: Box<Fill>) -> Result<Self, Problem> {
        let mut total = 0_u64;
        for (name, (dtype, shape)) in tensors {
            let refuse = |what: String| Err(Problem::usage(what).in_tensor(name));
            if name == METADATA {
                return refuse("safetensors has no tensor of this name".into());
            }
            let length = match byte_length(dtype, shape) {
                Ok(length) => length,
                Err(what) => return refuse(what),
            };
            // Half of the range is left for the header.
            total = match total.checked_add(length).filter(|total| *total <= u64::MAX / 2) {
                Some(total) => total,
                None => return refuse("the tensors are too large together".into()),
            };
        }
        let layout = Layout::new(&BTreeMap::new(), tensors);
        let place = |name: &String| {
            let tensor = &layout.tensors()[name];
            (tensor.offset..tensor.offset + tensor.length, name.clone())
        };
        let tensors = layout.in_file_order().iter().map(place).filter(|(range, _)| !range.is_empty());
        Ok(Self {
            tensors: tensors.collect(),
            header: layout.header().to_vec(),
            length: layout.file_length(),
            fill,
        })
    }
}

impl ReadAt for Composed {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.length);
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let from_header = usize::try_from(offset).ok().and_then(|offset| self.header.get(offset..));
        let from_header = from_header.unwrap_or_default();
        let copied = from_header.len().min(buffer.len());
        let (head, mut rest) = buffer.split_at_mut(copied);
        head.copy_from_slice(&from_header[..copied]);
        let mut at = offset + copied as u64;
        let first = self.tensors.partition_point(|(range, _)| range.end <= at);
        for (range, name) in &self.tensors[first..] {
            if rest.is_empty() {
                break;
            }
            // At most the length of the buffer.
            let count = (range.end - at).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at_mut(count);
            (self.fill)(name, at - range.start, now)?;
            (rest, at) = (later, at + count as u64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::safetensors::{Header, write};
    use crate::storage::{Source, snapshot};
    use expect_test::expect;
    use quickcheck::quickcheck;

    quickcheck! {
        /// A run must read the same bytes from memory as from a file of the same tensors, in pieces of any size.
        fn bytes_are_those_of_the_written_file(sizes: Vec<u8>, offset: u16, length: u16) -> bool {
            let dtypes = ["F32", "BF16", "F64", "I64"];
            let tensors: BTreeMap<_, _> = sizes.iter().take(9).enumerate().map(|(number, size)| {
                let (dtype, count) = (dtypes[number % 4].to_owned(), u64::from(size % 5));
                let bytes = byte_length(&dtype, &[count]).unwrap();
                let data = (0..bytes).map(|at| (at as u8).wrapping_mul(7).wrapping_add(number as u8)).collect();
                (format!("t{number}"), (dtype, vec![count], data))
            }).collect();
            let mut file = Vec::new();
            write(&mut file, &BTreeMap::new(), &tensors).unwrap();
            let shapes = tensors.iter().map(|(name, (dtype, shape, _))| (name.clone(), (dtype.clone(), shape.clone())));
            let data: BTreeMap<String, Vec<u8>> =
                tensors.iter().map(|(name, (_, _, data))| (name.clone(), data.clone())).collect();
            let fill = move |name: &str, offset: u64, out: &mut [u8]| {
                out.copy_from_slice(&data[name][offset as usize..][..out.len()]);
                Ok(())
            };
            let composed = Composed::new(&shapes.collect(), Box::new(fill)).unwrap();
            let (offset, length) = (usize::from(offset) % (file.len() + 2), usize::from(length) % (file.len() + 2));
            let mut read = vec![0; length];
            let piece = composed.read_exact_at(&mut read, offset as u64).ok().map(|()| read);
            let mut whole = vec![0; file.len()];
            composed.read_exact_at(&mut whole, 0).unwrap();
            whole == file
                && composed.len() == file.len() as u64
                && piece.as_deref() == file.get(offset..offset + length)
                && Header::read(&Source::from_reader("m".into(), Box::new(composed))).unwrap().tensors.len() == tensors.len()
        }
    }

    #[test]
    fn tensors_without_a_place_in_a_file_are_refused() {
        let refused = |tensors: &[(&str, &str, u64)]| {
            let tensors =
                tensors.iter().map(|(name, dtype, count)| ((*name).into(), ((*dtype).into(), vec![*count])));
            snapshot(Composed::new(&tensors.collect(), Box::new(|_, _, _| Ok(()))).unwrap_err())
        };
        let texts = [
            refused(&[("a", "F33", 1)]),
            refused(&[(METADATA, "F32", 1)]),
            refused(&[("a", "F64", u64::MAX)]),
            refused(&["a", "b", "c", "d", "e"].map(|name| (name, "U8", u64::MAX / 8))),
        ];
        expect![[r#"
            tensor "a": unknown number format "F33": expected one of safetensors, such as F32 or BF16
            tensor "__metadata__": safetensors has no tensor of this name
            tensor "a": shape [18446744073709551615] is too large for a file
            tensor "e": the tensors are too large together
        "#]]
        .assert_eq(&texts.concat());
    }
}
