//! A set of rows: sorted ranges that neither touch nor overlap.

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A set of rows, as ranges `[first, end)`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<[u64; 2]>", into = "Vec<[u64; 2]>")]
pub struct RowRanges(Vec<Range<u64>>);

impl RowRanges {
    /// Number of rows.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// The first range of rows that is in both sets, if there is one.
    pub fn overlap(&self, other: &Self) -> Option<Range<u64>> {
        let (mut mine, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(a), Some(b)) = (mine.peek(), theirs.peek()) {
            let both = a.start.max(b.start)..a.end.min(b.end);
            if !both.is_empty() {
                return Some(both);
            }
            if a.end < b.end {
                mine.next()
            } else {
                theirs.next()
            };
        }
        None
    }

    /// Adds rows.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|before| before.end < range.start);
        let after = self.0.partition_point(|touching| touching.start <= range.end);
        let touched = &self.0[first..after];
        let start = touched.first().map_or(range.start, |touched| touched.start.min(range.start));
        let end = touched.last().map_or(range.end, |touched| touched.end.max(range.end));
        self.0.splice(first..after, std::iter::once(start..end));
    }

    /// Adds the rows of another set.
    pub fn extend(&mut self, other: &Self) {
        other.0.iter().for_each(|range| self.insert(range.clone()));
    }
}

impl FromIterator<Range<u64>> for RowRanges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut rows = Self::default();
        ranges.into_iter().for_each(|range| rows.insert(range));
        rows
    }
}

impl TryFrom<Vec<[u64; 2]>> for RowRanges {
    type Error = &'static str;

    fn try_from(pairs: Vec<[u64; 2]>) -> Result<Self, Self::Error> {
        let ascending = pairs.iter().all(|[first, end]| first < end);
        let apart = pairs.windows(2).all(|pair| pair[0][1] < pair[1][0]);
        if ascending && apart {
            Ok(Self(pairs.into_iter().map(|[first, end]| first..end).collect()))
        } else {
            Err("ranges of rows must be sorted, and must neither touch nor overlap")
        }
    }
}

impl From<RowRanges> for Vec<[u64; 2]> {
    fn from(rows: RowRanges) -> Self {
        rows.0.into_iter().map(|range| [range.start, range.end]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;
    use std::collections::BTreeSet;

    fn ranges(pairs: &[(u8, u8)]) -> RowRanges {
        pairs.iter().map(|&(first, rows)| u64::from(first)..u64::from(first) + u64::from(rows % 8)).collect()
    }

    fn rows(ranges: &RowRanges) -> BTreeSet<u64> {
        ranges.0.iter().cloned().flatten().collect()
    }

    quickcheck! {
        /// They behave like sets of rows, with one representation for each set.
        fn ranges_are_sets(a: Vec<(u8, u8)>, b: Vec<(u8, u8)>) -> bool {
            let (left, right) = (ranges(&a), ranges(&b));
            let (mut union, mut other_way) = (left.clone(), right.clone());
            union.extend(&right);
            other_way.extend(&left);
            let common: Option<u64> = rows(&left).intersection(&rows(&right)).next().copied();
            let pairs: Vec<[u64; 2]> = union.clone().into();
            rows(&union) == rows(&left).union(&rows(&right)).copied().collect()
                && union == other_way
                && union.count() == rows(&union).len() as u64
                && left.overlap(&right).map(|range| range.start) == common
                && RowRanges::try_from(pairs) == Ok(union)
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for pairs in [vec![[3, 3]], vec![[4, 3]], vec![[0, 2], [2, 3]], vec![[5, 6], [0, 1]]] {
            assert!(RowRanges::try_from(pairs).is_err());
        }
    }
}
