//! The sums of a site.

use super::stored::Stored;
use crate::moments::{Counts, Moments, RowsOrTokens};
use crate::storage::Hashing;
use bytemuck::{NoUninit, cast_slice};
use std::borrow::Cow;

/// The sums of a site: of rows, or of tokens where the site is the input of an embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteSums<'a>(pub RowsOrTokens<Cow<'a, Moments>, Cow<'a, Counts>>);

/// Bytes of the sums of a site of this width in memory.
pub(crate) fn memory(width: u64, of_tokens: bool) -> u64 {
    if of_tokens { Counts::memory(width) } else { Moments::memory(width) }
}

impl SiteSums<'_> {
    /// Numbers per row, or tokens of the vocabulary.
    pub fn width(&self) -> usize {
        match &self.0 {
            RowsOrTokens::Rows(moments) => moments.width(),
            RowsOrTokens::Tokens(counts) => counts.width(),
        }
    }

    /// Number of rows that were added, or of tokens that were counted.
    pub fn count(&self) -> u64 {
        match &self.0 {
            RowsOrTokens::Rows(moments) => moments.count(),
            RowsOrTokens::Tokens(counts) => counts.total(),
        }
    }

    /// Number of rows that are all zero.
    pub fn zero_rows(&self) -> u64 {
        match &self.0 {
            RowsOrTokens::Rows(moments) => moments.zero_rows(),
            RowsOrTokens::Tokens(_) => 0,
        }
    }

    /// The bytes of one tensor in a file; empty for a tensor of the other kind.
    pub(super) fn bytes(&self, stored: Stored) -> Cow<'_, [u8]> {
        use RowsOrTokens::{Rows, Tokens};
        match (&self.0, stored) {
            (Rows(moments), Stored::Count) => little_endian(&[moments.count()]).into_owned().into(),
            (Rows(moments), Stored::Sum) => little_endian(moments.sum()),
            (Rows(moments), Stored::Gram) => little_endian(moments.gram_triangle()),
            (Rows(moments), Stored::AbsMax) => little_endian(moments.abs_max()),
            (Tokens(counts), Stored::Counts) => little_endian(counts.counts()),
            _ => Cow::Borrowed(&[]),
        }
    }

    /// Hash of all tensors.
    pub(super) fn hash(&self) -> String {
        self.hash_of(&[Stored::Count, Stored::Sum, Stored::Gram, Stored::AbsMax, Stored::Counts])
    }

    /// Hash of the small tensors, which identifies the rows: other rows have other sums.
    pub(super) fn identity(&self) -> String {
        self.hash_of(&[Stored::Count, Stored::Sum, Stored::AbsMax, Stored::Counts])
    }

    fn hash_of(&self, tensors: &[Stored]) -> String {
        let mut hashing = Hashing::default();
        tensors.iter().for_each(|stored| hashing.update(&self.bytes(*stored)));
        hashing.finish()
    }
}

impl From<Moments> for SiteSums<'_> {
    fn from(moments: Moments) -> Self {
        Self(RowsOrTokens::Rows(Cow::Owned(moments)))
    }
}

impl<'a> From<&'a Moments> for SiteSums<'a> {
    fn from(moments: &'a Moments) -> Self {
        Self(RowsOrTokens::Rows(Cow::Borrowed(moments)))
    }
}

impl From<Counts> for SiteSums<'_> {
    fn from(counts: Counts) -> Self {
        Self(RowsOrTokens::Tokens(Cow::Owned(counts)))
    }
}

impl<'a> From<&'a Counts> for SiteSums<'a> {
    fn from(counts: &'a Counts) -> Self {
        Self(RowsOrTokens::Tokens(Cow::Borrowed(counts)))
    }
}

/// The bytes of numbers in a file.
fn little_endian<T: NoUninit>(numbers: &[T]) -> Cow<'_, [u8]> {
    let bytes = cast_slice(numbers);
    if cfg!(target_endian = "little") {
        return bytes.into();
    }
    let mut bytes = bytes.to_vec();
    bytes.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
    bytes.into()
}
