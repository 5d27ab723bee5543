//! What is held of a site.

use super::Stored;
use crate::moments::{Counts, Moments};
use crate::storage::Hashing;
use bytemuck::{NoUninit, cast_slice};
use std::borrow::Cow;

/// What is held of a site.
#[derive(Clone, Debug, PartialEq)]
pub enum SiteSums<'a> {
    /// Sums over rows.
    Rows(Cow<'a, Moments>),
    /// How often each token was met: the site is the input of an embedding.
    Tokens(Cow<'a, Counts>),
}

impl SiteSums<'_> {
    /// Numbers per row, or tokens of the vocabulary.
    pub fn width(&self) -> usize {
        match self {
            Self::Rows(moments) => moments.width(),
            Self::Tokens(counts) => counts.width(),
        }
    }

    /// Rows that were added, or tokens that were met.
    pub fn count(&self) -> u64 {
        match self {
            Self::Rows(moments) => moments.count(),
            Self::Tokens(counts) => counts.total(),
        }
    }

    /// Whether tokens were counted.
    pub(super) fn are_counts(&self) -> bool {
        matches!(self, Self::Tokens(_))
    }

    /// One of its tensors, as it stands in files; empty for one that it does not have.
    pub(super) fn bytes(&self, stored: Stored) -> Cow<'_, [u8]> {
        match (self, stored) {
            (Self::Rows(moments), Stored::Count) => little_endian(&[moments.count()]).into_owned().into(),
            (Self::Rows(moments), Stored::Sum) => little_endian(moments.sum()),
            (Self::Rows(moments), Stored::Gram) => little_endian(moments.gram_triangle()),
            (Self::Rows(moments), Stored::AbsMax) => little_endian(moments.abs_max()),
            (Self::Tokens(counts), Stored::Counts) => little_endian(counts.counts()),
            _ => Cow::Borrowed(&[]),
        }
    }

    /// Hash of all of them.
    pub(super) fn hash(&self) -> String {
        let mut hashing = Hashing::default();
        for stored in [Stored::Count, Stored::Sum, Stored::Gram, Stored::AbsMax, Stored::Counts] {
            hashing.update(&self.bytes(stored));
        }
        hashing.finish()
    }
}

impl From<Moments> for SiteSums<'_> {
    fn from(moments: Moments) -> Self {
        Self::Rows(Cow::Owned(moments))
    }
}

impl<'a> From<&'a Moments> for SiteSums<'a> {
    fn from(moments: &'a Moments) -> Self {
        Self::Rows(Cow::Borrowed(moments))
    }
}

impl From<Counts> for SiteSums<'_> {
    fn from(counts: Counts) -> Self {
        Self::Tokens(Cow::Owned(counts))
    }
}

impl<'a> From<&'a Counts> for SiteSums<'a> {
    fn from(counts: &'a Counts) -> Self {
        Self::Tokens(Cow::Borrowed(counts))
    }
}

/// Numbers as they stand in files.
fn little_endian<T: NoUninit>(numbers: &[T]) -> Cow<'_, [u8]> {
    let bytes = cast_slice(numbers);
    if cfg!(target_endian = "little") {
        return bytes.into();
    }
    let mut bytes = bytes.to_vec();
    bytes.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
    bytes.into()
}
