//! A site of the moments in memory.

use super::{MeasuredSite, SiteSums, memory};
use crate::initializer::Statistics;
use crate::moments::{Counts, Moments, RowsOrTokens};
use crate::simd::BLOCK_ROWS;
use crate::storage::Problem;

/// A site of [`Collected`](super::Collected).
#[derive(Debug)]
pub struct CollectedSite {
    pub(super) modules: Vec<String>,
    pub(super) width: usize,
    pub(super) sums: RowsOrTokens<Option<Box<Statistics>>, Vec<u64>>,
    /// Rows that were skipped in files that were read.
    pub(super) skipped: u64,
}

impl CollectedSite {
    /// Runtime names of the modules that read it, sorted.
    pub fn modules(&self) -> &[String] {
        &self.modules
    }

    /// Numbers per row; for an embedding, tokens of the vocabulary.
    pub fn width(&self) -> usize {
        self.width
    }

    /// True for the input of an embedding, whose tokens are counted.
    pub fn is_tokens(&self) -> bool {
        self.sums.is_tokens()
    }

    /// Number of rows in the sums, or of counted tokens.
    pub fn rows(&self) -> u64 {
        match &self.sums {
            RowsOrTokens::Rows(statistics) => statistics.as_ref().map_or(0, |statistics| statistics.count()),
            RowsOrTokens::Tokens(counts) => counts.iter().sum(),
        }
    }

    /// Number of rows that were skipped because of NaN or infinity.
    pub fn skipped(&self) -> u64 {
        let now = match &self.sums {
            RowsOrTokens::Rows(Some(statistics)) => statistics.skipped(),
            _ => 0,
        };
        self.skipped + now
    }

    /// Rows that were read, including skipped ones.
    pub(super) fn read(&self) -> u64 {
        self.rows() + self.skipped()
    }

    /// Bytes of the sums, and of the rows that wait for a block.
    pub(super) fn memory(&self) -> u64 {
        memory(self.width as u64, self.is_tokens()).saturating_add(self.block_bytes())
    }

    /// Bytes of a block of f32 rows.
    pub(super) fn block_bytes(&self) -> u64 {
        if self.is_tokens() { 0 } else { (self.width as u64).saturating_mul(4 * BLOCK_ROWS as u64) }
    }

    /// Bytes of the full blocks that wait.
    pub(super) fn waiting_bytes(&self) -> u64 {
        match &self.sums {
            RowsOrTokens::Rows(Some(statistics)) => statistics.waiting_bytes() as u64,
            _ => 0,
        }
    }

    pub(super) fn measured(&self) -> MeasuredSite {
        MeasuredSite {
            width: self.width,
            counts: self.is_tokens(),
            modules: self.modules.clone(),
            skipped_rows: self.skipped(),
        }
    }

    /// The sums.
    ///
    /// # Errors
    /// A data problem if too many tokens were counted.
    pub(super) fn sums(&self) -> Result<SiteSums<'_>, Problem> {
        match &self.sums {
            RowsOrTokens::Rows(Some(statistics)) => Ok(SiteSums(RowsOrTokens::Rows(statistics.moments()))),
            RowsOrTokens::Rows(None) => Ok(Moments::new(self.width).into()),
            RowsOrTokens::Tokens(counts) => {
                let counts = Counts::new(counts.clone());
                counts.map(Into::into).map_err(|error| Problem::data(error.to_string()))
            }
        }
    }
}
