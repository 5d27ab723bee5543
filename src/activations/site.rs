//! A site and where its activations are stored.

use super::counts::SiteCounts;
use super::unfold::Unfolding;
use crate::element::Element;
use crate::moments::{Counts, RowsOrTokens};
use std::ops::Range;

/// A site: the recorded input of one or more weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its name in the files.
    pub name: String,
    /// Numbers per row, at least one; for an embedding, tokens of the vocabulary.
    pub width: usize,
    /// Runtime names of the modules that read it, sorted.
    pub modules: Vec<String>,
    /// Where its rows are stored, in reading order; or how often each token occurs, for the input of an embedding.
    pub recorded: RowsOrTokens<Vec<Part>, SiteCounts>,
    /// Index in [`ActivationSet::files`](super::ActivationSet::files) of the first file with data of this site.
    pub(crate) first_file: usize,
}

/// Consecutive rows of a site in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Index of the file in [`ActivationSet::files`](super::ActivationSet::files).
    pub file: usize,
    /// Number of rows.
    pub rows: u64,
    /// Format of the numbers.
    pub element: Element,
    /// Name of the tensor in the file, or the stem of the `.npy` file.
    pub(super) tensor: String,
    /// Offset of the first number, in bytes from the start of the file.
    pub(super) offset: u64,
    /// True if numbers are stored with the most significant byte first.
    pub(super) big_endian: bool,
    /// True if the numbers are stored column by column.
    pub(super) fortran_order: bool,
    /// The unfolding of images into rows, for the input of a convolution.
    pub(super) unfolding: Option<Unfolding>,
}

impl Part {
    /// For rows that are unfolded: the kernel of the convolution, and its groups if the metadata has them.
    pub(crate) fn convolution(&self) -> Option<(Vec<u64>, Option<u64>)> {
        self.unfolding.as_ref().map(|unfolding| (unfolding.kernel(), unfolding.groups))
    }

    /// Number of stored numbers.
    fn numbers(&self, width: usize) -> u64 {
        match &self.unfolding {
            None => self.rows * width as u64,
            Some(unfolding) => self.rows / unfolding.patches().unwrap_or(1) * unfolding.image() as u64,
        }
    }
}

impl Site {
    /// The parts of its rows; empty for token counts.
    pub fn parts(&self) -> &[Part] {
        match &self.recorded {
            RowsOrTokens::Rows(parts) => parts,
            RowsOrTokens::Tokens(_) => &[],
        }
    }

    /// The token counts, if the site has them.
    pub fn counts(&self) -> Option<&Counts> {
        match &self.recorded {
            RowsOrTokens::Rows(_) => None,
            RowsOrTokens::Tokens(site) => Some(&site.counts),
        }
    }

    /// Number of rows, or of counted tokens.
    pub fn rows(&self) -> u64 {
        match &self.recorded {
            RowsOrTokens::Rows(parts) => parts.iter().map(|part| part.rows).fold(0, u64::saturating_add),
            RowsOrTokens::Tokens(site) => site.counts.total(),
        }
    }

    /// The files with data of this site, in reading order: their index in [`ActivationSet::files`](super::ActivationSet::files), and the
    /// number of rows or tokens.
    pub(super) fn holders(&self) -> Vec<(usize, u64)> {
        match &self.recorded {
            RowsOrTokens::Rows(parts) => parts.iter().map(|part| (part.file, part.rows)).collect(),
            RowsOrTokens::Tokens(site) => site.files.clone(),
        }
    }

    /// The place of these rows or tokens, in reading order: the index of each file in
    /// [`ActivationSet::files`](super::ActivationSet::files), and the rows within the file.
    pub fn in_files(&self, rows: Range<u64>) -> Vec<(usize, Range<u64>)> {
        let mut first = 0u64;
        let mut found = Vec::new();
        for (file, held) in self.holders() {
            let inside = |row: u64| row.saturating_sub(first).min(held);
            let within = inside(rows.start)..inside(rows.end);
            if !within.is_empty() {
                found.push((file, within));
            }
            first = first.saturating_add(held);
        }
        found
    }

    /// Bytes of the largest image that patches are cut from; 0 without images. One image is in memory while its patches are cut.
    pub fn image_bytes(&self) -> u64 {
        let images = self.parts().iter().filter_map(|part| {
            let numbers = part.unfolding.as_ref()?.image() as u64;
            Some(numbers.saturating_mul(part.element.size() as u64))
        });
        images.max().unwrap_or(0)
    }

    /// Bytes in all files.
    pub fn bytes(&self) -> u64 {
        let bytes = |part: &Part| part.numbers(self.width) * part.element.size() as u64;
        match &self.recorded {
            RowsOrTokens::Rows(parts) => parts.iter().map(bytes).fold(0, u64::saturating_add),
            RowsOrTokens::Tokens(site) => site.bytes,
        }
    }
}
