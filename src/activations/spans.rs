//! Divides the rows of a site into blocks. Reads no files.

use super::Site;
use std::ops::Range;

/// Consecutive rows of one part, which are read and added together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Index of the part in [`Site::parts`].
    pub part: usize,
    /// First row within the part.
    pub first_row: u64,
    /// Number of rows.
    pub rows: usize,
}

impl Site {
    /// Divides rows of the site into spans of at most `most` rows. A new span starts at the first row, at the start of each part, and at
    /// each of `borders`. If the rows start at the start of an earlier span, the spans are the same as before.
    ///
    /// `borders` are rows of the site, in ascending order.
    ///
    /// # Panics
    /// If `most` is zero.
    pub fn spans(
        &self,
        rows: Range<u64>,
        most: usize,
        borders: Vec<u64>,
    ) -> impl Iterator<Item = Span> + Send + use<> {
        assert!(most > 0, "a span has at least one row");
        let parts: Vec<u64> = self.parts().iter().map(|part| part.rows).collect();
        let mut borders = borders.into_iter().peekable();
        let (mut part, mut first_row, mut row) = (0, rows.start, rows.start);
        std::iter::from_fn(move || {
            while *parts.get(part)? <= first_row {
                (part, first_row) = (part + 1, first_row - parts[part]);
            }
            if row >= rows.end {
                return None;
            }
            while borders.next_if(|border| *border <= row).is_some() {}
            let to_border = borders.peek().map_or(u64::MAX, |border| border - row);
            let left = (parts[part] - first_row).min(to_border).min(rows.end - row);
            let rows = usize::try_from(left).map_or(most, |left| left.min(most));
            let span = Span { part, first_row, rows };
            first_row += rows as u64;
            row += rows as u64;
            Some(span)
        })
    }

    /// The rows of the site at which its parts end.
    pub fn borders(&self) -> Vec<u64> {
        let mut row = 0;
        let ends = self.parts().iter().map(|part| {
            row = u64::saturating_add(row, part.rows);
            row
        });
        ends.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::site_of_parts;
    use super::*;
    use quickcheck::quickcheck;

    quickcheck! {
        /// Spans contain every row once, in order. They have the maximum length and cross no border.
        fn spans_cover_the_rows(parts: Vec<u8>, most: u8, borders: Vec<u16>) -> bool {
            let site = site_of_parts(&parts.into_iter().map(u64::from).collect::<Vec<_>>());
            let most = usize::from(most) + 1;
            let mut borders: Vec<u64> = borders.into_iter().map(u64::from).collect();
            borders.sort_unstable();
            let mut ends = site.borders();
            ends.extend(&borders);
            let starts = |part: usize| site.parts()[..part].iter().map(|part| part.rows).sum::<u64>();
            let mut row = 0;
            for span in site.spans(0..site.rows(), most, borders) {
                let next = row + span.rows as u64;
                let inside = ends.iter().all(|&border| border <= row || next <= border);
                let longest = span.rows == most || ends.contains(&next);
                if starts(span.part) + span.first_row != row || span.rows == 0 || !inside || !longest {
                    return false;
                }
                row = next;
            }
            row == site.rows()
        }

        /// Spans from the start of an earlier span are the same as before. Resumed runs need this.
        fn spans_can_be_resumed(parts: Vec<u8>, most: u8, skipped: u8) -> bool {
            let site = site_of_parts(&parts.into_iter().map(u64::from).collect::<Vec<_>>());
            let most = usize::from(most) + 1;
            let all: Vec<Span> = site.spans(0..site.rows(), most, Vec::new()).collect();
            let (before, after) = all.split_at(usize::from(skipped) % (all.len() + 1));
            let row = before.iter().map(|span| span.rows as u64).sum();
            site.spans(row..site.rows(), most, Vec::new()).eq(after.iter().copied())
                && site.spans(0..row, most, Vec::new()).eq(before.iter().copied())
        }

        /// Two sites with each other's borders have equal spans.
        fn pairs_have_equal_spans(left: Vec<u8>, right: Vec<u8>, most: u8) -> bool {
            let rows = |parts: &[u8]| parts.iter().map(|&rows| u64::from(rows)).collect::<Vec<_>>();
            let (mut left, mut right) = (rows(&left), rows(&right));
            let all = left.iter().sum::<u64>().max(right.iter().sum());
            for parts in [&mut left, &mut right] {
                parts.push(all - parts.iter().sum::<u64>());
            }
            let (left, right) = (site_of_parts(&left), site_of_parts(&right));
            let most = usize::from(most) + 1;
            let lengths = |site: &Site, other: &Site| {
                site.spans(0..site.rows(), most, other.borders()).map(|span| span.rows).collect::<Vec<_>>()
            };
            lengths(&left, &right) == lengths(&right, &left)
        }
    }
}
