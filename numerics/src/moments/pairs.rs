//! Moments of pairs of rows: the same inputs before and after.

use super::Moments;
use crate::error::{Error, Result};
use crate::simd::{Rows, Workspace};
use faer::Mat;

/// Moments of pairs of rows `(z, x)`, from the Gram matrix of the rows `[z − x, x]`. That costs no more than three separate products.
///
/// The change `E[(z − x) xᵀ]` is accumulated as it is. As a difference of `E[z xᵀ]` and `E[x xᵀ]` it would lose its digits if `z` is
/// close to `x`.
#[derive(Clone, Debug, PartialEq)]
pub struct PairedMoments {
    joint: Moments,
}

/// The statistics of both sides of [`PairedMoments`].
#[derive(Clone, Debug, PartialEq)]
pub struct Sides {
    /// Moments of the pre-training rows `z`. Its largest absolute values are bounds: the sums of those of `z − x` and `x`.
    pub source: Moments,
    /// Moments of the fine-tuning rows `x`.
    pub target: Moments,
    /// `E[(z − x) xᵀ]`, `d × d`.
    pub change: Mat<f64>,
}

impl PairedMoments {
    /// The moments of no pairs of rows of `width` numbers each.
    pub fn new(width: usize) -> Self {
        Self { joint: Moments::new(2 * width) }
    }

    /// Adds a block of rows of `2 d` numbers: the difference `z − x` between the pre-training and the fine-tuning row, then the
    /// fine-tuning row `x`.
    ///
    /// # Errors
    /// As [`Moments::add`].
    ///
    /// # Panics
    /// If there are more rows than a block holds.
    pub fn add(&mut self, pairs: Rows<'_>, workspace: &mut Workspace, threads: usize) -> Result<()> {
        self.joint.add(pairs, workspace, threads)
    }

    /// The moments of the rows of `2 d` numbers. [`from_joint`](Self::from_joint) reads them back.
    pub fn joint(&self) -> &Moments {
        &self.joint
    }

    /// Pairs from joint moments that were computed before.
    ///
    /// # Errors
    /// [`Error::Shape`] for an odd width.
    pub fn from_joint(joint: Moments) -> Result<Self> {
        if !joint.width.is_multiple_of(2) {
            return Err(Error::Shape {
                what: "width of pairs of rows",
                expected: joint.width + 1,
                found: joint.width,
            });
        }
        Ok(Self { joint })
    }

    /// The moments of both sides and the change between them.
    ///
    /// With the difference `δ = z − x`, `Σ z zᵀ = Σ δ δᵀ + Σ δ xᵀ + Σ x δᵀ + Σ x xᵀ`.
    ///
    /// # Errors
    /// [`Error::NoRows`].
    pub fn split(&self) -> Result<Sides> {
        let (joint, width) = (&self.joint, self.joint.width / 2);
        let scale = joint.scale()?;
        let change = Mat::from_fn(width, width, |i, j| joint.gram(i, width + j) * scale);
        let side = |sum: Vec<f64>, abs_max: Vec<f32>, gram: &dyn Fn(usize, usize) -> f64| {
            let gram = (0..width).flat_map(|i| (i..width).map(move |j| gram(i, j))).collect();
            // Rows of padding are zero on both sides.
            Moments { width, count: joint.count, sum, gram, abs_max, zero_rows: joint.zero_rows }
        };
        let (sums, maxima) = (joint.sum.split_at(width), joint.abs_max.split_at(width));
        let target = side(sums.1.to_vec(), maxima.1.to_vec(), &|i, j| joint.gram(width + i, width + j));
        let source = side(
            sums.0.iter().zip(sums.1).map(|(difference, x)| difference + x).collect(),
            maxima.0.iter().zip(maxima.1).map(|(difference, x)| (difference + x).min(f32::MAX)).collect(),
            &|i, j| {
                let mixed = joint.gram(i, width + j) + joint.gram(j, width + i);
                joint.gram(i, j) + mixed + joint.gram(width + i, width + j)
            },
        );
        Ok(Sides { source, target, change })
    }
}

/// Fills `joint` with rows of `2 d` numbers for [`PairedMoments::add`]: the difference `z − x`, then `x`. In f64, where the
/// difference of two numbers of any shorter format loses nothing that f32 would keep. A number of `z` that is not finite as an f32
/// gives NaN.
///
/// # Panics
/// If the two blocks differ in their number of rows or their width.
pub fn join_pairs(z: Rows<'_>, x: Rows<'_>, joint: &mut Vec<f64>) {
    assert_eq!((z.rows, z.width), (x.rows, x.width), "pairs of rows");
    let width = x.width;
    joint.resize(x.rows * 2 * width, 0.0);
    for (row, pair) in joint.chunks_exact_mut((2 * width).max(1)).enumerate() {
        let (change, right) = pair.split_at_mut(width);
        z.copy_row(row, change);
        x.copy_row(row, right);
        for (change, x) in change.iter_mut().zip(right) {
            *change = if (*change as f32).is_finite() { *change - *x } else { f64::NAN };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::gaussian;
    use quickcheck::quickcheck;

    quickcheck! {
        /// The Gram matrix of differences and rows side by side holds the moments of both sides and the change.
        fn pairs_split_into_their_sides(rows: u16, width: u8, seed: u64) -> bool {
            let (rows, d) = (usize::from(rows % 1500) + 1, usize::from(width % 9) + 1);
            let (x, z) = (gaussian::<f32>(rows, d, seed, "x"), gaussian::<f32>(rows, d, seed, "z"));
            let joint = Mat::from_fn(rows, 2 * d, |i, j| if j < d { z[(i, j)] - x[(i, j)] } else { x[(i, j - d)] });
            let paired = PairedMoments::from_joint(Moments::of(joint.as_ref()).unwrap()).unwrap();
            let Sides { source, target, change } = paired.split().unwrap();
            let double = |a: &Mat<f32>| Mat::from_fn(rows, d, |i, j| f64::from(a[(i, j)]));
            let (x, z) = (double(&x), double(&z));
            let near = |found: Mat<f64>, a: &Mat<f64>, b: &Mat<f64>| {
                (found - a.transpose() * b * faer::Scale(1.0 / rows as f64)).norm_max() < 1e-5
            };
            let bounded = |moments: &Moments, a: &Mat<f64>| {
                (0..d).all(|j| a.col(j).norm_max() <= f64::from(moments.abs_max()[j]) + 1e-6)
            };
            near(source.second_moment().unwrap(), &z, &z)
                && near(target.second_moment().unwrap(), &x, &x)
                && near(change, &(&z - &x), &x)
                && (0..d).all(|j| (source.mean().unwrap()[j] - z.col(j).sum() / rows as f64).abs() < 1e-5)
                && (0..d).all(|j| (target.mean().unwrap()[j] - x.col(j).sum() / rows as f64).abs() < 1e-5)
                && bounded(&source, &z)
                && bounded(&target, &x)
                && (source.count(), target.count()) == (rows as u64, rows as u64)
        }
    }

    #[test]
    fn an_odd_width_is_refused() {
        let refused = PairedMoments::from_joint(Moments::new(3)).unwrap_err();
        assert_eq!(refused, Error::Shape { what: "width of pairs of rows", expected: 4, found: 3 });
        assert_eq!(PairedMoments::new(2).split(), Err(Error::NoRows));
    }
}
