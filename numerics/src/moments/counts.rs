//! Counts of the tokens that an embedding read.
//!
//! An embedding returns row `i` of its table for token `i`. So its activations are the unit vectors `e_i`, and their moments follow from
//! the frequencies `p`: the mean is `p`, and the second moment `diag(p)`.

use crate::error::{Error, Result};

/// How often each token of a vocabulary occurred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    counts: Vec<u64>,
    total: u64,
}

impl Counts {
    /// The largest vocabulary: sixty times that of language models. A longer file holds something else and is not read.
    pub const MOST: usize = 1 << 24;

    /// From the count of each token.
    ///
    /// # Errors
    /// [`Error::NoRows`] if all counts are zero; [`Error::Option`] if their number is too large to be counted.
    pub fn new(counts: Vec<u64>) -> Result<Self> {
        let total = counts.iter().try_fold(0_u64, |sum, count| sum.checked_add(*count));
        match total {
            Some(0) => Err(Error::NoRows),
            Some(total) => Ok(Self { counts, total }),
            None => Err(too_many(counts.iter().map(|&count| count as f64).sum())),
        }
    }

    /// Adds the counts of further tokens.
    ///
    /// # Errors
    /// [`Error::Shape`] for another vocabulary; [`Error::Option`] if their number is too large to be counted.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if other.width() != self.width() {
            return Err(Error::Shape {
                what: "number of tokens that were counted",
                expected: self.width(),
                found: other.width(),
            });
        }
        self.total = self
            .total
            .checked_add(other.total)
            .ok_or_else(|| too_many(self.total as f64 + other.total as f64))?;
        // No count is larger than the total, so none overflows.
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        Ok(())
    }

    /// Bytes that the counts of a vocabulary hold.
    pub fn memory(width: u64) -> u64 {
        width.saturating_mul(8)
    }

    /// Size of the vocabulary, `V`.
    pub fn width(&self) -> usize {
        self.counts.len()
    }

    /// The sum of all counts.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The count of each token.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The share of each token, `p`.
    pub fn frequencies(&self) -> Vec<f64> {
        let total = self.total as f64;
        self.counts.iter().map(|&count| count as f64 / total).collect()
    }

    /// `tr Σ = 1 − |p|²`, without cancellation: exactly zero if only one token occurred.
    pub fn variance(&self) -> f64 {
        let total = self.total as f64;
        let share = |&count: &u64| count as f64 / total * ((self.total - count) as f64 / total);
        self.counts.iter().map(share).sum()
    }
}

fn too_many(found: f64) -> Error {
    Error::Option { what: "the number of tokens", expected: "below 2^64", found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use quickcheck::quickcheck;

    quickcheck! {
        /// Merging adds the counts of each token and the totals.
        fn merging_adds(pairs: Vec<(u32, u32)>) -> bool {
            let of = |counts: Vec<u64>| Counts::new(counts);
            let (left, right): (Vec<u64>, Vec<u64>) =
                pairs.iter().map(|&(left, right)| (u64::from(left) + 1, u64::from(right) + 1)).unzip();
            let both = left.iter().zip(&right).map(|(left, right)| left + right).collect();
            match (of(left), of(right)) {
                (Ok(mut one), Ok(other)) => one.merge(&other).is_ok() && Ok(one) == of(both),
                _ => pairs.is_empty(),
            }
        }
    }

    #[test]
    fn frequencies_and_variance_of_counts() {
        let counts = Counts::new(vec![3, 0, 1]).unwrap();
        assert_eq!((counts.width(), counts.total()), (3, 4));
        assert_eq!(counts.frequencies(), [0.75, 0.0, 0.25]);
        assert!((counts.variance() - (1.0 - 0.625)).abs() < 1e-15);
        assert_eq!(Counts::new(vec![0, 7]).unwrap().variance(), 0.0);
    }

    #[test]
    fn zero_and_overflowing_counts_are_refused() {
        assert_eq!(Counts::new(vec![0, 0]), Err(Error::NoRows));
        expect!["the number of tokens is 18446744073709552000, but must be below 2^64"]
            .assert_eq(&Counts::new(vec![u64::MAX, 1]).unwrap_err().to_string());
        let mut counts = Counts::new(vec![u64::MAX - 1, 1]).unwrap();
        let before = counts.clone();
        let refused = counts.merge(&Counts::new(vec![0, 1]).unwrap()).unwrap_err();
        expect!["the number of tokens is 18446744073709552000, but must be below 2^64"]
            .assert_eq(&refused.to_string());
        let other = counts.merge(&Counts::new(vec![1]).unwrap());
        let what = "number of tokens that were counted";
        assert_eq!(other, Err(Error::Shape { what, expected: 2, found: 1 }));
        assert_eq!(counts, before);
    }
}
