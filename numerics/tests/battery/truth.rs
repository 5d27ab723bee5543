//! The method in f64, from the rows: the expected results of the crate and their tolerances.
//!
//! # Tolerances
//!
//! No tolerance was tuned until the tests passed. The crate accumulates Gram matrices and applies its factors in
//! f32, with the unit roundoff `u = 2⁻²⁴`. So the oracle computes each case again with all quantities moved by the size of that rounding.
//! The distance between the two results, times [`SAFETY`], is the tolerance:
//!
//! - an entry of a centred Gram matrix by [`GRAM`] of the product of the two standard deviations: a chain of 640 fused
//!   multiply-adds has 640 independent errors of about `u/√3` of a sum that grows from zero, `u/√3 · √(640/3) ≈ 8 u`. Nothing is added in directions
//!   without variation;
//! - a mean by as much of the standard deviation;
//! - entries of the f32 matrices that are applied to a vector by `√d u` of themselves, once per product or solve;
//! - and forming the operator and storing the factors in f32 adds `√d u` of the whole matrix, eight times.

use crate::inputs::{Stream, Table};
use crate::oracle::{self, Matrix, cholesky, divide, dot, function_of, norm, solve_lower};
use cntlora_numerics::constraint::{Coupling, Norm};

/// Unit roundoff of f32.
pub const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
const GRAM: f64 = 8.0 * UNIT;
/// Covers the difference between random moves and the worst case.
const SAFETY: f64 = 8.0;
const MOVES: u64 = 3;
/// A unit whose singular value is below this share of the largest may count as empty.
pub const EMPTY: f64 = 16.0 * UNIT;

/// Mean and covariance of rows.
#[derive(Clone)]
pub struct Sample {
    pub mean: Vec<f64>,
    pub covariance: Matrix,
}

impl Sample {
    pub fn of(rows: &Matrix) -> Self {
        let mean = mean(rows);
        let covariance = covariance(rows, &mean, rows, &mean);
        Self { mean, covariance }
    }

    /// `E[x xᵀ]`.
    pub fn second_moment(&self) -> Matrix {
        self.covariance.plus(&Matrix::outer(&self.mean, &self.mean), 1.0)
    }

    pub fn variance(&self) -> f64 {
        self.covariance.trace()
    }

    pub fn deviations(&self) -> Vec<f64> {
        (0..self.mean.len()).map(|i| self.covariance[(i, i)].max(0.0).sqrt()).collect()
    }

    /// Moved as by f32 sums. Eigenvalues of the correlations below the noise of such sums may count as zero if the ridge is near that
    /// noise.
    pub fn moved(&self, stream: &mut Stream, ridge: f64) -> Self {
        let deviations = self.deviations();
        let width = deviations.len();
        let inverse: Vec<f64> = deviations.iter().map(|s| if *s > 0.0 { 1.0 / s } else { 0.0 }).collect();
        let standard =
            Matrix::from_fn(width, width, |i, j| self.covariance[(i, j)] * inverse[i] * inverse[j]);
        let (values, vectors) = oracle::eigen(&standard);
        let noise = GRAM * (width as f64).sqrt().max(4.0);
        let standard = if ridge < 100.0 * noise {
            let kept = |k: usize| if values[k] > noise { values[k] } else { 0.0 };
            let part = Matrix::from_fn(width, width, |i, k| vectors[(i, k)] * kept(k));
            part.times(&vectors.transposed())
        } else {
            standard
        };
        let still: Vec<usize> = (0..width).filter(|i| values[*i] <= 1e-11 * width as f64).collect();
        let still = Matrix::from_fn(width, still.len(), |i, j| vectors[(i, still[j])]);
        let half = Matrix::from_fn(width, width, |_, _| GRAM * stream.normal() / 2f64.sqrt());
        let noise = half.plus(&half.transposed(), 1.0);
        let inside = still.transposed().times(&noise).times(&still);
        let noise = noise.minus(&still.times(&inside).times(&still.transposed()));
        let covariance = Matrix::from_fn(width, width, |i, j| {
            deviations[i] * deviations[j] * (standard[(i, j)] + noise[(i, j)])
        });
        let mean = self.mean.iter().zip(&deviations).map(|(mean, s)| mean + GRAM * s * stream.normal());
        Self { mean: mean.collect(), covariance }
    }
}

fn mean(rows: &Matrix) -> Vec<f64> {
    let count = rows.rows as f64;
    let rough: Vec<f64> = (0..rows.columns).map(|j| rows.column(j).iter().sum::<f64>() / count).collect();
    let rest = |j: usize| rows.column(j).iter().map(|value| value - rough[j]).sum::<f64>() / count;
    (0..rows.columns).map(|j| rough[j] + rest(j)).collect()
}

/// `E[(a − mean a) (b − mean b)ᵀ]`.
fn covariance(a: &Matrix, mean_a: &[f64], b: &Matrix, mean_b: &[f64]) -> Matrix {
    let centred = |m: &Matrix, mean: &[f64]| {
        Matrix::from_fn(m.rows, m.columns, |i, j| {
            let rest = m[(i, j)] - mean[j];
            // If a column does not vary and its mean is not exact, the difference is a rounding error.
            if rest.abs() <= 1e-14 * mean[j].abs() { 0.0 } else { rest }
        })
    };
    centred(a, mean_a).transposed().times(&centred(b, mean_b)).scaled(1.0 / a.rows as f64)
}

/// The recording of a site.
#[derive(Clone)]
pub struct Facts {
    pub target: Sample,
    pub source: Option<Sample>,
    /// `E[z − x]` and the covariance of `z − x` and `x`, of pairs.
    change: Option<(Vec<f64>, Matrix)>,
    deviations_of_change: Vec<f64>,
}

impl Facts {
    pub fn of(target: &Table, source: Option<&Table>, paired: bool) -> Self {
        let x = target.matrix();
        let sample = Sample::of(&x);
        let source = source.map(Table::matrix);
        let change = source.as_ref().filter(|_| paired).map(|z| z.minus(&x));
        let change = change.map(|change| (Sample::of(&change), change));
        Self {
            source: source.as_ref().map(Sample::of),
            deviations_of_change: change.as_ref().map_or(Vec::new(), |(own, _)| own.deviations()),
            change: change.map(|(own, rows)| {
                let beside = covariance(&rows, &own.mean, &x, &sample.mean);
                (own.mean, beside)
            }),
            target: sample,
        }
    }

    fn moved(&self, stream: &mut Stream, ridge: f64) -> Self {
        let deviations = self.target.deviations();
        let change = self.change.as_ref().map(|(mean, beside)| {
            let own = &self.deviations_of_change;
            let mean = mean.iter().zip(own).map(|(mean, s)| mean + GRAM * s * stream.normal()).collect();
            let beside = Matrix::from_fn(beside.rows, beside.columns, |i, j| {
                beside[(i, j)] + GRAM * own[i] * deviations[j] * stream.normal()
            });
            (mean, beside)
        });
        Self {
            target: self.target.moved(stream, ridge),
            source: self.source.as_ref().map(|source| source.moved(stream, ridge)),
            change,
            deviations_of_change: self.deviations_of_change.clone(),
        }
    }
}

pub struct Terms {
    pub coupling: Coupling,
    pub norm: Norm,
    pub preserve: f64,
    pub ridge: f64,
}

/// The matrix that is cut to low rank: `Δ` in a norm, `M = Δ F`.
pub struct Truth {
    pub update: Matrix,
    /// `F`.
    pub norm: Matrix,
    /// `M`.
    pub image: Matrix,
}

/// A copy with every entry moved by `√d u` of itself; itself without a stream.
fn rounded(matrix: &Matrix, stream: &mut Option<Stream>) -> Matrix {
    let Some(stream) = stream else { return matrix.clone() };
    let unit = UNIT * (matrix.columns as f64).sqrt();
    Matrix::from_fn(matrix.rows, matrix.columns, |i, j| matrix[(i, j)] * (1.0 + unit * stream.normal()))
}

/// `ρ` times the mean eigenvalue.
pub fn ridge(matrix: &Matrix, ridge: f64) -> f64 {
    ridge * matrix.trace() / matrix.rows as f64
}

/// `K − C`, without cancellation.
pub fn change(facts: &Facts, terms: &Terms) -> Matrix {
    let Sample { mean, covariance } = &facts.target;
    if terms.coupling == Coupling::Paired {
        let (change, beside) = facts.change.as_ref().expect("pairs");
        return beside.plus(&Matrix::outer(change, mean), 1.0);
    }
    let source_mean = facts.source.as_ref().map_or(mean, |source| &source.mean);
    let between: Vec<f64> = source_mean.iter().zip(mean).map(|(z, x)| z - x).collect();
    let means = Matrix::outer(&between, mean);
    if terms.coupling == Coupling::Uncorrelated {
        return means.minus(covariance);
    }
    let damped = covariance.plus_diagonal(ridge(covariance, terms.ridge));
    let transport = match &facts.source {
        None => {
            let variance = covariance.trace() / mean.len() as f64;
            function_of(&damped, |value| (variance / value).sqrt())
        }
        Some(source) => {
            let wanted = source.covariance.plus_diagonal(ridge(&source.covariance, terms.ridge));
            let (root, inverse) = (function_of(&damped, f64::sqrt), function_of(&damped, |e| 1.0 / e.sqrt()));
            let inner = function_of(&root.times(&wanted).times(&root), |value| value.max(0.0).sqrt());
            inverse.times(&inner).times(&inverse)
        }
    };
    means.plus(&transport.times(covariance), 1.0).minus(covariance)
}

/// The closed form of the update of a layer, moved if there is a stream.
fn update(facts: &Facts, weight: &Matrix, terms: &Terms, mut stream: Option<Stream>) -> Truth {
    let facts = match &mut stream {
        Some(stream) => facts.moved(stream, terms.ridge),
        None => facts.clone(),
    };
    let second = facts.target.second_moment();
    let damped = second.plus_diagonal(ridge(&second, terms.ridge));
    let mut denominator = damped.clone();
    if terms.preserve > 0.0 {
        let (mean, covariance) = match &facts.source {
            Some(Sample { mean, covariance }) => {
                (mean, covariance.plus_diagonal(ridge(covariance, terms.ridge)))
            }
            None => {
                let Sample { mean, covariance } = &facts.target;
                (mean, Matrix::identity(mean.len()).scaled(covariance.trace() / mean.len() as f64))
            }
        };
        let source = covariance.plus(&Matrix::outer(mean, mean), 1.0);
        denominator = denominator.plus(&source, terms.preserve);
    }
    let change = rounded(&change(&facts, terms), &mut stream);
    let factor = cholesky(&denominator).expect("the denominator is positive definite");
    let factor = rounded(&factor, &mut stream);
    let norm = match terms.norm {
        Norm::Weights => Matrix::identity(second.rows),
        // One factor, if both are the same.
        Norm::Activations if terms.preserve == 0.0 => factor.clone(),
        Norm::Activations => {
            rounded(&cholesky(&damped).expect("the metric is positive definite"), &mut stream)
        }
    };
    let update = divide(&rounded(weight, &mut stream).times(&change), &factor);
    Truth { image: update.times(&norm), update, norm }
}

/// The tolerances of f32, see above.
#[derive(Clone, Debug)]
pub struct Tolerance {
    /// Of `M`, in the Frobenius norm; so of its singular values too.
    pub image: f64,
    /// Of `Δ` in the true norm.
    update_in_norm: f64,
    /// Of `Δ`, in the Frobenius norm.
    update: f64,
    /// Of the norm itself, relative.
    pub norm: f64,
    /// Of each singular value of `M`, if the decomposition is in f64.
    pub values: Vec<f64>,
}

impl Truth {
    pub fn of_update(facts: &Facts, weight: &Matrix, terms: &Terms) -> (Self, Tolerance) {
        let truth = update(facts, weight, terms, None);
        let tolerance = truth.tolerance(|stream| update(facts, weight, terms, Some(stream)));
        (truth, tolerance)
    }

    /// A weight itself, in the Frobenius norm.
    pub fn of_weight(weight: &Matrix) -> (Self, Tolerance) {
        let truth =
            Self { update: weight.clone(), norm: Matrix::identity(weight.columns), image: weight.clone() };
        let tolerance = truth.tolerance(|_| Self { ..truth.clone() });
        (truth, tolerance)
    }

    /// A weight in the norm of CorDA, `W (C + λ I)`, multiplied in f32 or in f64.
    pub fn of_response(target: &Sample, weight: &Matrix, damping: f64, single: bool) -> (Self, Tolerance) {
        let response = |mut stream: Option<Stream>| {
            let sample = match &mut stream {
                Some(stream) => target.moved(stream, damping),
                None => target.clone(),
            };
            let second = sample.second_moment();
            let norm = rounded(&second.plus_diagonal(ridge(&second, damping)), &mut stream);
            let norm = Matrix::from_fn(norm.rows, norm.rows, |i, j| norm[(i.min(j), i.max(j))]);
            let image = if single { rounded(weight, &mut stream).times(&norm) } else { weight.times(&norm) };
            Self { update: weight.clone(), image, norm }
        };
        let truth = response(None);
        let tolerance = truth.tolerance(|stream| response(Some(stream)));
        (truth, tolerance)
    }

    fn tolerance(&self, moved: impl Fn(Stream) -> Self) -> Tolerance {
        let singular = oracle::svd(&self.image).s;
        let values = vec![0.0; singular.len()];
        let mut worst = Tolerance { image: 0.0, update_in_norm: 0.0, update: 0.0, norm: 0.0, values };
        for seed in 0..MOVES {
            let moved = moved(Stream::new(seed));
            let difference = moved.update.minus(&self.update);
            let inverse = inverse(&moved.norm);
            worst.image = worst.image.max(SAFETY * moved.image.minus(&self.image).norm());
            worst.update_in_norm = worst.update_in_norm.max(SAFETY * difference.times(&self.norm).norm());
            worst.update = worst.update.max(SAFETY * difference.norm());
            for (worst, (value, moved)) in
                worst.values.iter_mut().zip(singular.iter().zip(oracle::svd(&moved.image).s))
            {
                *worst = worst.max(SAFETY * (value - moved).abs());
            }
            worst.norm = worst.norm.max(SAFETY * inverse.times(&moved.norm.minus(&self.norm)).norm());
        }
        let (m, d) = (self.image.rows, self.image.columns);
        let decomposition = 8.0 * UNIT * (m.max(d) as f64).sqrt() * self.image.norm();
        worst.image += decomposition;
        worst.update += decomposition * inverse(&self.norm).norm();
        worst
    }

    /// The reason why `product`, a matrix of rank `rank`, is not a best approximation of the update, if it is not. Single singular
    /// vectors are not compared, because small gaps do not determine them: with `M' = M + E` decomposed in place of `M`, its best
    /// approximation has an error of at most `tail + |E|` in the norm that was used, and so at most this bound in the true one.
    pub fn complaint(&self, singular: &[f64], product: &Product, tolerance: &Tolerance) -> Option<String> {
        let rank = product.up.columns;
        let formed = product.up.times(&product.down);
        let error = self.image.minus(&formed.times(&self.norm)).norm();
        let tail = norm(&singular[rank.min(singular.len())..]);
        let bound = (tail + tolerance.image) * (1.0 + tolerance.norm)
            + tolerance.update_in_norm
            + product.storage(&self.norm)
            + EMPTY * self.image.norm();
        if error > bound {
            return Some(format!(
                "the product is {error:e} off in its norm, {bound:e} allowed, tail {tail:e}"
            ));
        }
        if rank == singular.len() {
            let error = self.update.minus(&formed).norm();
            let empty = EMPTY * (self.update.norm() + self.image.norm() * inverse(&self.norm).norm());
            let bound = tolerance.update + product.storage(&Matrix::identity(self.norm.rows)) + empty;
            if error > bound {
                return Some(format!("the product of full rank is {error:e} off, {bound:e} allowed"));
            }
        }
        None
    }
}

impl Clone for Truth {
    fn clone(&self) -> Self {
        Self { update: self.update.clone(), norm: self.norm.clone(), image: self.image.clone() }
    }
}

/// The inverse of a nonsingular matrix, by its decomposition.
fn inverse(matrix: &Matrix) -> Matrix {
    if (0..matrix.rows).all(|i| matrix.row(i)[i + 1..].iter().all(|value| *value == 0.0)) {
        return solve_lower(matrix, &Matrix::identity(matrix.rows));
    }
    let oracle::Svd { u, s, v } = oracle::svd(matrix);
    Matrix::from_fn(v.rows, v.columns, |i, j| v[(i, j)] / s[j]).times(&u.transposed())
}

/// `B A` without scale and strength.
pub struct Product {
    pub up: Matrix,
    pub down: Matrix,
}

impl Product {
    /// Bound of the effect of rounding the factors to f32 on the product in a norm.
    pub fn storage(&self, norm: &Matrix) -> f64 {
        let lengths: Vec<f64> = (0..norm.rows).map(|j| oracle::norm(norm.row(j))).collect();
        let unit = |i: usize| {
            let down: f64 = self.down.row(i).iter().zip(&lengths).map(|(a, l)| (a * l).powi(2)).sum();
            oracle::norm(&self.up.column(i)) * down.sqrt()
        };
        2.0 * UNIT * (0..self.down.rows).map(unit).sum::<f64>()
    }
}

/// `(Σ |B A x|² / Σ |W x|²)^½` over the rows.
pub fn shift_on_rows(up: &Matrix, down: &Matrix, weight: &Matrix, rows: &Matrix) -> f64 {
    let (mut change, mut output) = (0.0, 0.0);
    for i in 0..rows.rows {
        let x = rows.row(i);
        let inner: Vec<f64> = (0..down.rows).map(|k| dot(down.row(k), x)).collect();
        change += (0..up.rows).map(|k| dot(up.row(k), &inner).powi(2)).sum::<f64>();
        output += (0..weight.rows).map(|k| dot(weight.row(k), x).powi(2)).sum::<f64>();
    }
    (change / output).sqrt()
}
