//! The statistics of pairs of rows.

use super::{AnyRows, Statistics};
use crate::error::{Error, Result};
use crate::moments::{PairedMoments, Sides, join_pairs};
use crate::simd::{BLOCK_ROWS, Rows, Values};

/// The statistics of pairs of rows: the activations of the same inputs before and after, for
/// [`Coupling::Paired`](crate::constraint::Coupling::Paired).
///
/// ```
/// use cntlora_numerics::constraint::Coupling;
/// use cntlora_numerics::initializer::{Initializer, PairedStatistics};
/// use faer::Mat;
///
/// let target = Mat::from_fn(100, 6, |i, j| ((i * i + 3 * j) % 11) as f32);
/// let source = Mat::from_fn(100, 6, |i, j| ((i * i + 3 * j) % 11) as f32 + (i % 3) as f32 * 0.1);
/// let mut statistics = PairedStatistics::new(6);
/// statistics.add(&source, &target)?;
///
/// let initializer = Initializer::builder().coupling(Coupling::Paired).rank(4).build()?;
/// let site = initializer.site(&statistics.sides()?)?;
/// # Ok::<(), cntlora_numerics::error::Error>(())
/// ```
#[derive(Debug)]
pub struct PairedStatistics {
    /// Of the rows `[z − x, x]`.
    joint: Statistics,
}

impl PairedStatistics {
    /// The statistics of no pairs of rows of `width` numbers each.
    pub fn new(width: usize) -> Self {
        Self { joint: Statistics::new(2 * width) }
    }

    /// Adds pairs: row i of the pre-training activations `source` and row i of the fine-tuning activations `target` are the same
    /// input. As [`Statistics::add`], it takes any number of rows, in any number format and layout.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows of another width or for different numbers of rows; [`Error::NonFiniteRow`] for NaN or infinity on
    /// either side or in the difference: then a part of the rows may have been added, and the statistics should be discarded.
    pub fn add<'a, 'b>(
        &mut self,
        source: impl Into<AnyRows<'a>>,
        target: impl Into<AnyRows<'b>>,
    ) -> Result<()> {
        self.add_any(source.into(), target.into())
    }

    /// Not generic, so that it is compiled with this crate.
    fn add_any(&mut self, source: AnyRows<'_>, target: AnyRows<'_>) -> Result<()> {
        let width = self.joint.width() / 2;
        source.check(width)?;
        target.check(width)?;
        let ((found, _), (count, _)) = (source.shape(), target.shape());
        if found != count {
            return Err(Error::Shape { what: "number of source rows", expected: count, found });
        }
        let (mut z, mut x, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
        for first in (0..count).step_by(BLOCK_ROWS) {
            let rows = first..count.min(first + BLOCK_ROWS);
            join_pairs(
                source.widened(rows.clone(), &mut z),
                target.widened(rows.clone(), &mut x),
                &mut pairs,
            );
            let joined =
                Rows { values: Values::F64(&pairs), rows: rows.len(), width: 2 * width, stride: 2 * width };
            self.joint.add(joined).map_err(|error| match error {
                Error::NonFiniteRow { row, column } => {
                    Error::NonFiniteRow { row: first + row, column: column % width }
                }
                other => other,
            })?;
        }
        Ok(())
    }

    /// Number of pairs.
    pub fn count(&self) -> u64 {
        self.joint.count()
    }

    /// The statistics of both sides and the change between them, from which a [`Site`](super::Site) is made.
    ///
    /// # Errors
    /// [`Error::NoRows`].
    pub fn sides(&self) -> Result<Sides> {
        PairedMoments::from_joint(self.joint.moments().into_owned())?.split()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moments::Moments;
    use crate::random::gaussian;
    use faer::Mat;

    /// Pairs in any pieces are the moments of the rows `[z − x, x]`.
    #[test]
    fn pairs_are_joint_rows() {
        let (z, x) = (gaussian::<f32>(1500, 3, 0, "z"), gaussian::<f32>(1500, 3, 0, "x"));
        let joint = Mat::from_fn(1500, 6, |i, j| {
            if j < 3 { f64::from(z[(i, j)]) - f64::from(x[(i, j)]) } else { f64::from(x[(i, j - 3)]) }
        });
        let mut wanted = Statistics::new(6);
        wanted.add(&joint).unwrap();
        let mut statistics = PairedStatistics::new(3);
        for (first, count) in [(0, 10), (10, 1000), (1010, 490)] {
            statistics.add(z.subrows(first, count), x.subrows(first, count)).unwrap();
        }
        assert_eq!(statistics.count(), 1500);
        assert_eq!(statistics.joint.moments(), wanted.moments());
        assert_eq!(statistics.sides().unwrap().target.count(), Moments::of(x.as_ref()).unwrap().count());
    }

    #[test]
    fn pairs_that_do_not_fit_are_refused() {
        let rows = Mat::<f32>::zeros(700, 2);
        let mut bad = rows.clone();
        bad[(650, 1)] = f32::NAN;
        let mut statistics = PairedStatistics::new(2);
        let refused = statistics.add(&rows, rows.subrows(0, 3)).unwrap_err();
        expect_test::expect!["number of source rows: expected 3, found 700"].assert_eq(&refused.to_string());
        for (source, target) in [(&bad, &rows), (&rows, &bad)] {
            let refused = PairedStatistics::new(2).add(source, target);
            assert_eq!(refused, Err(Error::NonFiniteRow { row: 650, column: 1 }));
        }
    }
}
