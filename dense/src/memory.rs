//! The memory of large matrices.

use bytemuck::Pod;
use faer::{MatMut, MatRef};
use memmap2::MmapMut;
use std::ops::{Deref, DerefMut};

/// Numbers in memory of their own, zero at first. Many of them lie in huge pages where the system has these.
///
/// A system gives memory page by page when it is first written. On one thread of a Zen 5, 64 MiB take 30 ms in small pages, and 10 ms in
/// huge ones. The threads that write it share this time; a vector of zeros, in contrast, is written by the one that makes it.
#[derive(Debug)]
pub struct Buffer<T>(Memory<T>);

#[derive(Debug)]
enum Memory<T> {
    Vector(Vec<T>),
    Map { map: MmapMut, length: usize },
}

/// Bytes from which memory is mapped: a few huge pages. The allocator keeps smaller pieces for the next matrix.
const MAPPED: usize = 8 << 20;

impl<T: Pod> Buffer<T> {
    /// So many zeros. `None` if there is not enough memory.
    pub fn zeros(length: usize) -> Option<Self> {
        let bytes = length.checked_mul(size_of::<T>())?;
        if bytes >= MAPPED
            && let Ok(map) = MmapMut::map_anon(bytes)
        {
            // It is faster with huge pages, and right without them.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            return Some(Self(Memory::Map { map, length }));
        }
        let mut values = Vec::new();
        values.try_reserve_exact(length).ok()?;
        values.resize(length, T::zeroed());
        Some(Self(Memory::Vector(values)))
    }
}

impl Buffer<f64> {
    /// The same bytes as twice as many numbers.
    pub fn into_f32(self) -> Buffer<f32> {
        Buffer(match self.0 {
            Memory::Vector(values) => Memory::Vector(bytemuck::cast_slice(&values).to_vec()),
            Memory::Map { map, length } => Memory::Map { map, length: 2 * length },
        })
    }
}

impl<T> Default for Buffer<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<T> From<Vec<T>> for Buffer<T> {
    fn from(values: Vec<T>) -> Self {
        Self(Memory::Vector(values))
    }
}

impl<T: Pod> FromIterator<T> for Buffer<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Vec::from_iter(values).into()
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Memory::Vector(values) => values,
            Memory::Map { map, length } => bytemuck::cast_slice(&map[..length * size_of::<T>()]),
        }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.0 {
            Memory::Vector(values) => values,
            Memory::Map { map, length } => bytemuck::cast_slice_mut(&mut map[..*length * size_of::<T>()]),
        }
    }
}

impl<T: Pod> Clone for Buffer<T> {
    /// # Panics
    /// If there is not enough memory.
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len()).expect("memory for a copy");
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Pod + PartialEq> PartialEq for Buffer<T> {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

/// A square matrix, stored column after column in a [`Buffer`].
#[derive(Clone, Debug)]
pub struct Square<T: Pod> {
    size: usize,
    entries: Buffer<T>,
}

impl<T: Pod> Square<T> {
    /// The zero matrix with so many rows.
    ///
    /// # Panics
    /// If there is not enough memory.
    pub fn zeros(size: usize) -> Self {
        let entries = size.checked_mul(size).and_then(Buffer::zeros);
        Self { size, entries: entries.expect("memory for a matrix") }
    }

    /// The matrix of these columns, one directly after the other. Further numbers are ignored.
    ///
    /// # Panics
    /// If there are fewer numbers.
    pub fn from_columns(size: usize, entries: Buffer<T>) -> Self {
        assert!(entries.len() >= size * size, "numbers of the columns");
        Self { size, entries }
    }

    /// Number of rows.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The matrix.
    pub fn as_ref(&self) -> MatRef<'_, T> {
        MatRef::from_column_major_slice(&self.entries[..self.size * self.size], self.size, self.size)
    }

    /// The matrix, to be changed.
    pub fn as_mut(&mut self) -> MatMut<'_, T> {
        let count = self.size * self.size;
        MatMut::from_column_major_slice_mut(&mut self.entries[..count], self.size, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For memory that is mapped, and memory that is not.
    #[test]
    fn buffers_are_zero_and_keep_their_numbers() {
        let small = MAPPED / 8 - 1;
        for length in [0, 1, small, small + 1, small + 1000] {
            let mut buffer = Buffer::<f64>::zeros(length).unwrap();
            assert_eq!(matches!(buffer.0, Memory::Map { .. }), length > small);
            assert!(buffer.len() == length && buffer.iter().all(|value| *value == 0.0));
            let before = buffer.clone();
            buffer.iter_mut().zip(1..).for_each(|(value, i)| *value = f64::from(i));
            let copy = buffer.clone();
            assert!((0..length).all(|i| copy[i] == (i + 1) as f64));
            assert_eq!((copy == buffer, before == buffer), (true, length == 0));
            assert!(buffer == copy.to_vec().into());
            let bytes: Vec<f32> = bytemuck::cast_slice(&copy).to_vec();
            assert!(copy.into_f32() == bytes.into());
        }
    }

    #[test]
    fn missing_memory_is_no_buffer() {
        for length in [usize::MAX, usize::MAX / 8, 1 << 60] {
            assert!(Buffer::<f64>::zeros(length).is_none(), "{length}");
        }
    }

    /// Columns are stored one after the other, and further numbers are ignored.
    #[test]
    fn squares_have_their_entries_at_their_place() {
        let wanted = faer::Mat::from_fn(3, 3, |i, j| (3 * j + i) as f32);
        let mut square = Square::<f32>::zeros(3);
        square.as_mut().copy_from(&wanted);
        let numbers: Vec<f32> = (0..11).map(|number| number as f32).collect();
        for square in [square, Square::from_columns(3, numbers.into())] {
            assert_eq!((square.size(), square.as_ref()), (3, wanted.as_ref()));
        }
    }
}
