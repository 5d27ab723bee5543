//! Parts of tensors. A weight can be a part of a tensor, or consist of parts of several tensors.

use super::Checkpoint;
use crate::storage::{Problem, product, quoted, reserve, zeros};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Consecutive numbers of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// The name of the tensor.
    pub tensor: String,
    /// Index of the first number.
    pub first: u64,
    /// How many numbers.
    pub count: u64,
}

impl Piece {
    /// The numbers with indices in a range.
    pub fn of(tensor: impl Into<String>, numbers: Range<u64>) -> Self {
        Self { tensor: tensor.into(), first: numbers.start, count: numbers.end.saturating_sub(numbers.start) }
    }
}

impl Checkpoint {
    /// All numbers of a tensor; `None` if there is no tensor of this name.
    pub fn whole(&self, name: &str) -> Option<Piece> {
        let count = product(&self.get(name)?.tensor.shape)?;
        Some(Piece::of(name, 0..count))
    }

    /// The bytes of a piece, as stored in the file. For a quantized weight, those of its numbers in F32.
    ///
    /// # Errors
    /// A data problem if there is no such tensor or the piece exceeds it, and problems of reading.
    pub fn read_piece(&self, piece: &Piece) -> Result<Vec<u8>, Problem> {
        let name = &piece.tensor;
        if self.quantized(name).is_some() {
            let mut numbers = zeros(piece.count)?;
            self.dequantize(piece, &mut numbers)?;
            let mut bytes = Vec::new();
            reserve(&mut bytes, piece.count.saturating_mul(4))?;
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            return Ok(bytes);
        }
        let source = self.source(self.require(name)?);
        let bytes = self.bytes_of(piece).ok_or_else(|| self.exceeded(piece))?;
        let read = source.read_vec(bytes.start, bytes.end - bytes.start);
        read.map_err(|problem| problem.in_tensor(name))
    }

    /// Computes the numbers of a piece of a quantized weight.
    ///
    /// # Errors
    /// As [`read_piece`](Self::read_piece); a data problem for a weight that is not quantized.
    ///
    /// # Panics
    /// If `out` does not have as many numbers as the piece.
    pub(crate) fn dequantize(&self, piece: &Piece, out: &mut [f32]) -> Result<(), Problem> {
        assert_eq!(out.len() as u64, piece.count, "the numbers of the piece");
        self.check_quantized(&piece.tensor)?;
        let weight = self.quantized(&piece.tensor).filter(|_| self.has(piece));
        weight.ok_or_else(|| self.exceeded(piece))?.read(self.files(), piece.first, out)
    }

    /// True if there is such a tensor and it has all numbers of the piece.
    pub fn has(&self, piece: &Piece) -> bool {
        let numbers = self.get(&piece.tensor).and_then(|stored| product(&stored.tensor.shape));
        let end = piece.first.checked_add(piece.count);
        numbers.zip(end).is_some_and(|(numbers, end)| end <= numbers)
    }

    /// The problem of a piece that exceeds its tensor.
    fn exceeded(&self, Piece { tensor: name, first, count }: &Piece) -> Problem {
        let stored = match self.require(name) {
            Ok(stored) => stored,
            Err(problem) => return problem,
        };
        Problem::data(format!(
            "{count} numbers from number {first} on are needed, but the tensor has shape {:?} of {}",
            stored.tensor.shape,
            quoted(&stored.tensor.dtype)
        ))
        .in_file(self.source(stored).path())
        .in_tensor(name)
    }

    /// The byte range of a piece in its file; `None` if there is no such tensor, the piece exceeds it, or the weight is quantized.
    pub fn bytes_of(&self, piece: &Piece) -> Option<Range<u64>> {
        let tensor = &self.get(&piece.tensor).filter(|_| self.has(piece))?.tensor;
        if self.quantized(&piece.tensor).is_some() {
            return None;
        }
        let numbers = product(&tensor.shape)?;
        // `has` checked it.
        let end = piece.first + piece.count;
        let size = tensor.length.checked_div(numbers)?;
        Some(tensor.offset + piece.first * size..tensor.offset + end * size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Access, safetensors, snapshot};
    use expect_test::expect;
    use quickcheck::quickcheck;
    use std::collections::BTreeMap;
    use std::fs::File;

    fn checkpoint(folder: &tempfile::TempDir) -> Checkpoint {
        let path = folder.path().join("model.safetensors");
        let tensor = |bytes: Vec<u8>| ("U8".to_owned(), vec![2, bytes.len() as u64 / 2], bytes);
        let tensors = BTreeMap::from([
            ("a".to_owned(), tensor((0..10).collect())),
            ("b".to_owned(), ("F16".to_owned(), vec![3], vec![1, 2, 3, 4, 5, 6])),
        ]);
        safetensors::write(&mut File::create(&path).unwrap(), &BTreeMap::new(), &tensors).unwrap();
        Checkpoint::open(&path, Access::Auto).unwrap()
    }

    #[test]
    fn pieces_select_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(&folder);
        assert_eq!(checkpoint.read_piece(&Piece::of("a", 3..7)).unwrap(), [3, 4, 5, 6]);
        assert_eq!(checkpoint.read_piece(&Piece::of("b", 1..3)).unwrap(), [3, 4, 5, 6]);
        assert_eq!(checkpoint.whole("b"), Some(Piece::of("b", 0..3)));
        assert_eq!(checkpoint.whole("c"), None);
    }

    quickcheck! {
        fn pieces_beyond_the_end_are_refused(first: u64, count: u64) -> bool {
            let folder = tempfile::tempdir().unwrap();
            let piece = Piece { tensor: "a".into(), first, count };
            let read = checkpoint(&folder).read_piece(&piece);
            read.is_ok() == first.checked_add(count).is_some_and(|end| end <= 10)
        }
    }

    #[test]
    fn missing_tensors_and_numbers_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |piece| snapshot(checkpoint(&folder).read_piece(&piece).unwrap_err());
        let texts = [Piece::of("c", 0..1), Piece::of("a", 8..11)].map(refused).concat();
        expect![[r#"
            FOLDER/model.safetensors: tensor "c": the checkpoint has no such tensor
            FOLDER/model.safetensors: tensor "a": 3 numbers from number 8 on are needed, but the tensor has shape [2, 5] of "U8"
        "#]].assert_eq(&texts);
    }
}
