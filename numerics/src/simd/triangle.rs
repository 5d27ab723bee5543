//! Geometry of a packed upper triangle: row `i` holds the columns `i..width`, row after row.

/// Numbers in the triangle, unless that overflows.
pub(super) fn checked_len(width: usize) -> Option<usize> {
    // One of the two factors is even.
    let (half, whole) =
        if width.is_multiple_of(2) { (width / 2, width.checked_add(1)?) } else { (width / 2 + 1, width) };
    half.checked_mul(whole)
}

/// Index of the diagonal element of a row, where the row starts; for `row = width`, the length.
///
/// Does not overflow if [`checked_len`] does not.
pub(crate) fn row_start(width: usize, row: usize) -> usize {
    // The rows above hold width, width - 1, … numbers: half as many as (row) × (2 width - row + 1).
    let (rows, pair) = (row, 2 * width + 1 - row);
    if rows.is_multiple_of(2) { rows / 2 * pair } else { pair / 2 * rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout is that of the documentation of `Sums::gram`.
    #[test]
    fn rows_follow_one_another() {
        for width in 0..20usize {
            let mut start = 0;
            for row in 0..width {
                assert_eq!(row_start(width, row), start);
                assert_eq!(row_start(width, row), row * width + row - row * (row + 1) / 2);
                start += width - row;
            }
            assert_eq!(row_start(width, width), start);
            assert_eq!(checked_len(width), Some(start));
        }
        assert_eq!(checked_len(usize::MAX), None);
        assert_eq!(checked_len(1 << 32), Some((1 << 31) * ((1 << 32) + 1)));
    }
}
