//! A few numbers for reports about how activations spread about their mean. No factor depends on them.
//!
//! With the covariance `Σ`: the effective rank is the participation ratio `(tr Σ)² / |Σ|²_F`, which is `d` for an isotropic
//! distribution and 1 for one on a line; the top share is `λ₁(Σ) / tr Σ`. Both come from the stored sums without a further matrix or an
//! eigendecomposition: `O(d²)` operations and `O(d)` memory.

use crate::constraint::RESOLUTION;
use crate::dense;
use crate::error::Result;
use crate::moments::{Counts, Moments};
use crate::random;
use faer::{Col, Mat, Par};
use pulp::{Arch, NullaryFnOnce};
use serde::{Deserialize, Serialize};

/// The spread of the activations of a site.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// `E|x|²`, in squared units of the activations.
    pub mean_square: f64,
    /// `tr Σ = E|x − μ|²`.
    pub variance: f64,
    /// `(tr Σ)² / |Σ|²_F`, from 1 to `d`; 0 if all rows are equal.
    pub effective_rank: f64,
    /// Share of the variance along the direction that has most of it; 0 if all rows are equal. A lower bound: the error is far below one
    /// per cent unless many directions are nearly as strong.
    pub top_share: f64,
}

/// Most steps of the Lanczos iteration.
const STEPS: usize = 24;

/// The iteration ends after two steps with a relative gain below this.
const LEAST_GAIN: f64 = 1e-4;

impl Spread {
    /// The spread of the rows of a site.
    ///
    /// # Errors
    /// [`Error::NoRows`](crate::error::Error::NoRows);
    /// [`Error::NonFinite`](crate::error::Error::NonFinite) if sums overflowed.
    pub fn of(moments: &Moments) -> Result<Self> {
        let covariance = Covariance { moments, mean: moments.mean()?, scale: 1.0 / moments.count() as f64 };
        let variance = covariance.trace().max(0.0);
        let mean_square = variance + covariance.mean.squared_norm_l2();
        if variance <= RESOLUTION * mean_square {
            return Ok(Self { mean_square, variance, effective_rank: 0.0, top_share: 0.0 });
        }
        let top_share = (largest_eigenvalue(&covariance)? / variance).clamp(0.0, 1.0);
        let effective_rank = variance * variance / covariance.squared_norm();
        Ok(Self { mean_square, variance, effective_rank, top_share })
    }
}

impl Spread {
    /// As [`Self::of`], for the unit vectors of tokens: `Σ = diag(p) − p pᵀ`.
    pub fn of_tokens(counts: &Counts) -> Self {
        let shares = counts.frequencies();
        let variance = counts.variance();
        if variance <= 0.0 {
            return Self { mean_square: 1.0, variance, effective_rank: 0.0, top_share: 0.0 };
        }
        let top_share = (largest_of_tokens(&shares) / variance).min(1.0);
        let effective_rank = variance * variance / squared_norm_of_tokens(counts);
        Self { mean_square: 1.0, variance, effective_rank, top_share }
    }
}

/// `|diag(p) − p pᵀ|²_F`, as a sum of diagonal and other entries: nothing cancels, even if one token dominates.
fn squared_norm_of_tokens(counts: &Counts) -> f64 {
    let total = counts.total() as f64;
    let mut before = 0.0;
    let terms = counts.counts().iter().map(|&count| {
        let (share, others) = (count as f64 / total, (counts.total() - count) as f64 / total);
        let square = share * share;
        let term = square * (others * others + 2.0 * before);
        before += square;
        term
    });
    terms.sum()
}

/// The largest eigenvalue of `diag(p) − p pᵀ`: where `Σ pᵢ² / (pᵢ − x) = 1` between the two largest shares (Golub 1973). Since the shares
/// sum to one, that is where `Σ pᵢ / (pᵢ − x) = 0`, which separates small `x`.
fn largest_of_tokens(shares: &[f64]) -> f64 {
    let mut descending = shares.to_vec();
    descending.sort_by(|a, b| b.total_cmp(a));
    let (mut high, mut low) = match descending[..] {
        [first, second, ..] => (first, second),
        _ => return 0.0,
    };
    /// Bisections after which the bounds are neighbouring numbers.
    const STEPS: usize = 64;
    for _ in 0..STEPS {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        let sum: f64 = descending.iter().map(|share| share / (share - middle)).sum();
        // It grows from minus to plus infinity between them.
        if sum > 0.0 { high = middle } else { low = middle }
    }
    high
}

/// `Σ = gram / n − μ μᵀ`, never formed.
struct Covariance<'a> {
    moments: &'a Moments,
    mean: Col<f64>,
    scale: f64,
}

impl Covariance<'_> {
    /// The rows of the upper triangle of the Gram matrix: row i begins at column i.
    fn rows(&self) -> impl Iterator<Item = (usize, &[f64])> {
        let mut rest = self.moments.gram_triangle();
        (0..self.mean.nrows()).map(move |i| {
            let (row, later) = rest.split_at(self.mean.nrows() - i);
            rest = later;
            (i, row)
        })
    }

    fn trace(&self) -> f64 {
        self.rows().map(|(i, row)| row[0] * self.scale - self.mean[i] * self.mean[i]).sum()
    }

    fn squared_norm(&self) -> f64 {
        let entry = |i: usize, j: usize, gram: f64| gram * self.scale - self.mean[i] * self.mean[j];
        self.rows()
            .map(|(i, row)| {
                let beside: f64 =
                    row.iter().zip(i..).skip(1).map(|(gram, j)| entry(i, j, *gram).powi(2)).sum();
                entry(i, i, row[0]).powi(2) + 2.0 * beside
            })
            .sum()
    }

    fn apply(&self, v: &Col<f64>) -> Col<f64> {
        let along_mean: f64 = self.mean.transpose() * v;
        let v: Vec<f64> = v.iter().map(|value| value * self.scale).collect();
        let mut out: Vec<f64> = self.mean.iter().map(|mean| -mean * along_mean).collect();
        let rows: Vec<&[f64]> = self.rows().map(|(_, row)| row).collect();
        Arch::new().dispatch(Apply { rows: &rows, v: &v, out: &mut out });
        Col::from_iter(out)
    }
}

/// The product of a symmetric matrix, given by the rows of its upper triangle, and a vector. It is added to another one.
struct Apply<'a> {
    rows: &'a [&'a [f64]],
    v: &'a [f64],
    out: &'a mut [f64],
}

impl NullaryFnOnce for Apply<'_> {
    type Output = ();

    // So that it has the instructions of the processor.
    #[inline(always)]
    fn call(self) {
        /// Rows that are read together, so that the vectors are read less often.
        const TOGETHER: usize = 8;
        let Self { rows, v, out } = self;
        let (groups, rest) = rows.as_chunks::<TOGETHER>();
        for (rows, i) in groups.iter().zip((0..).step_by(TOGETHER)) {
            add_rows(rows, &v[i..], &mut out[i..]);
        }
        for (row, i) in rest.iter().zip(TOGETHER * groups.len()..) {
            add_rows(&[*row], &v[i..], &mut out[i..]);
        }
    }
}

/// Adds the products of the vector with consecutive rows of a symmetric matrix, and with the same columns. The rows begin at the diagonal,
/// and the vectors at the first row.
#[inline(always)]
fn add_rows<const ROWS: usize>(rows: &[&[f64]; ROWS], v: &[f64], out: &mut [f64]) {
    const LANES: usize = 8;
    // The columns of the rows themselves.
    for (i, row) in rows.iter().enumerate() {
        out[i] += row[0] * v[i];
        for (j, entry) in (i + 1..ROWS).zip(&row[1..]) {
            out[i] += entry * v[j];
            out[j] += entry * v[i];
        }
    }
    let these: [f64; ROWS] = std::array::from_fn(|i| v[i]);
    let beyond: [_; ROWS] = std::array::from_fn(|i| rows[i][ROWS - i..].as_chunks::<LANES>());
    let (v, v_rest) = v[ROWS..].as_chunks::<LANES>();
    let (these_out, out) = out.split_at_mut(ROWS);
    let (out, out_rest) = out.as_chunks_mut::<LANES>();
    let mut sums = [[0.0; LANES]; ROWS];
    for (k, (v, out)) in v.iter().zip(out).enumerate() {
        let mut near = *out;
        for i in 0..ROWS {
            let entries = &beyond[i].0[k];
            for lane in 0..LANES {
                sums[i][lane] += entries[lane] * v[lane];
                near[lane] += entries[lane] * these[i];
            }
        }
        *out = near;
    }
    for ((out_of_row, sums), ((_, rest), this)) in
        these_out.iter_mut().zip(&sums).zip(beyond.iter().zip(&these))
    {
        *out_of_row += sums.iter().sum::<f64>();
        for ((entry, v), out) in rest.iter().zip(v_rest).zip(out_rest.iter_mut()) {
            *out_of_row += entry * v;
            *out += entry * this;
        }
    }
}

/// Lanczos iteration with full reorthogonalization (Golub and Van Loan, Matrix Computations, 10.1 and 10.3).
fn largest_eigenvalue(covariance: &Covariance<'_>) -> Result<f64> {
    let width = covariance.mean.nrows();
    let mut basis: Vec<Col<f64>> = Vec::new();
    let (mut diagonal, mut beside) = (Vec::new(), Vec::new());
    let mut next = random::gaussian::<f64>(width, 1, 0, "spread").col(0).to_owned();
    let (mut largest, mut slow) = (0.0, 0);
    for _ in 0..STEPS.min(width) {
        let norm = next.norm_l2();
        let direction = &next * faer::Scale(1.0 / norm);
        next = covariance.apply(&direction);
        diagonal.push(direction.transpose() * &next);
        basis.push(direction);
        let before = std::mem::replace(&mut largest, largest_of_tridiagonal(&diagonal, &beside)?);
        slow = if largest - before <= LEAST_GAIN * largest { slow + 1 } else { 0 };
        if slow == 2 {
            break;
        }
        // Twice is enough to stay orthogonal to working precision.
        for _ in 0..2 {
            for earlier in &basis {
                let overlap: f64 = earlier.transpose() * &next;
                next -= earlier * faer::Scale(overlap);
            }
        }
        let rest = next.norm_l2();
        // The visited space is invariant, so it contains the eigenvector.
        if rest <= f64::EPSILON * covariance.trace() {
            break;
        }
        beside.push(rest);
    }
    Ok(largest)
}

/// The largest eigenvalue of a symmetric tridiagonal matrix.
fn largest_of_tridiagonal(diagonal: &[f64], beside: &[f64]) -> Result<f64> {
    let size = diagonal.len();
    let tridiagonal = Mat::from_fn(size, size, |i, j| match i.abs_diff(j) {
        0 => diagonal[i],
        1 => beside[i.min(j)],
        _ => 0.0,
    });
    let (values, _) = dense::self_adjoint_eigen("spread of the activations", tridiagonal.as_ref(), Par::Seq)?;
    Ok(values.last().copied().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::random::gaussian;
    use quickcheck::quickcheck;

    quickcheck! {
        /// Against the definitions, from all eigenvalues of the covariance.
        fn agrees_with_the_eigenvalues(width: u8, strength: u8, seed: u64) -> bool {
            let width = usize::from(width % 60) + 1;
            let mut rows = gaussian::<f32>(300, width, seed, "rows");
            // One strong direction, and a mean.
            for i in 0..300 {
                rows[(i, 0)] = rows[(i, 0)] * f32::from(strength % 20) + 3.0;
            }
            let moments = Moments::of(rows.as_ref()).unwrap();
            let mean = moments.mean().unwrap();
            let covariance = moments.second_moment().unwrap() - &mean * mean.transpose();
            let (values, _) = dense::self_adjoint_eigen("covariance", covariance.as_ref(), Par::Seq).unwrap();
            let trace: f64 = values.iter().sum();
            let squares: f64 = values.iter().map(|value| value * value).sum();
            let spread = Spread::of(&moments).unwrap();
            if trace <= 1e-6 { return spread.effective_rank == 0.0; }
            let near = |found: f64, wanted: f64, tolerance: f64| (found - wanted).abs() <= tolerance * wanted;
            near(spread.variance, trace, 1e-9)
                && near(spread.mean_square, trace + mean.squared_norm_l2(), 1e-9)
                && near(spread.effective_rank, trace * trace / squares, 1e-9)
                // Of isotropic rows, many directions are nearly as strong.
                && near(spread.top_share, values[width - 1] / trace, 0.05)
                && spread.top_share <= values[width - 1] / trace * (1.0 + 1e-9)
        }
    }

    quickcheck! {
        /// The spread of counts is that of the unit vectors.
        fn counts_are_those_of_unit_vectors(counts: Vec<u8>) -> bool {
            let counts: Vec<u64> = counts.iter().take(20).map(|count| u64::from(count % 5)).chain([1, 3]).collect();
            let tokens = || counts.iter().enumerate().flat_map(|(token, &count)| (0..count).map(move |_| token));
            let tokens: Vec<usize> = tokens().collect();
            let rows = Mat::from_fn(tokens.len(), counts.len(), |i, j| f32::from(u8::from(tokens[i] == j)));
            let wanted = Spread::of(&Moments::of(rows.as_ref()).unwrap()).unwrap();
            let found = Spread::of_tokens(&Counts::new(counts).unwrap());
            let near = |a: f64, b: f64| (a - b).abs() < 1e-5 * b;
            // The iteration for rows ends when it gains little, and its share is a lower bound.
            let share = wanted.top_share / found.top_share;
            near(found.mean_square, 1.0)
                && near(found.variance, wanted.variance)
                && near(found.effective_rank, wanted.effective_rank)
                && (0.99..1.00001).contains(&share)
        }
    }

    /// Two tokens spread along one line, also if one of them is very rare.
    #[test]
    fn one_token_dominates() {
        for many in [1, 1_000, 10_000_000_000, u64::MAX - 1] {
            for counts in [vec![many, 1], vec![1, many], vec![0, 1, many, 0]] {
                let spread = Spread::of_tokens(&Counts::new(counts.clone()).unwrap());
                let near = |found: f64| (found - 1.0).abs() < 1e-9;
                assert!(near(spread.effective_rank) && near(spread.top_share), "{counts:?}: {spread:?}");
            }
        }
    }

    /// A single token has no spread.
    #[test]
    fn one_token_has_no_spread() {
        let spread = Spread::of_tokens(&Counts::new(vec![0, 4]).unwrap());
        assert_eq!((spread.mean_square, spread.variance, spread.top_share), (1.0, 0.0, 0.0));
    }

    /// Without variance there is no spread and no division by zero; without rows there is an error.
    #[test]
    fn equal_rows_have_no_spread() {
        let spread = Spread::of(&Moments::of(Mat::from_fn(9, 3, |_, _| 2.0f32).as_ref()).unwrap()).unwrap();
        assert_eq!((spread.mean_square, spread.effective_rank, spread.top_share), (12.0, 0.0, 0.0));
        assert_eq!(Spread::of(&Moments::new(3)), Err(Error::NoRows));
    }
}
