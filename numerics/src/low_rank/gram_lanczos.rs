//! A few singular triplets of a matrix in memory, the leading or the last ones, by block Lanczos iteration with its Gram matrix or with the
//! inverse (Golub and Van Loan, Matrix Computations, 10.3).
//!
//! ```text
//! G = MᵀM, and for the last triplets L Lᵀ = G
//! V₀ = orthonormal start block (n × b)
//! repeat
//!     Vⱼ₊₁ = orthonormal part of  G Vⱼ,  or of  L⁻ᵀ L⁻¹ Vⱼ,  outside V₀ … Vⱼ
//!     Y    = leading eigenvectors of G, or of its inverse, on the space of all V
//!     U, Σ, V = singular triplets of M on the space of Y
//! until ‖Mᵀuᵢ − σᵢvᵢ‖ is small beside σᵢ
//! ```
//!
//! The Gram matrix only selects the space: triplets and residuals are those of the matrix itself. Where its squares lose the last singular
//! values, the residuals stay large. All in f64.

use super::TruncatedSvd;
use super::krylov::{may_miss_copies, thin_block_qr};
use super::leading::on_space;
use crate::dense::{self, Panel};
use crate::error::Result;
use crate::random;
use faer::{Mat, MatRef, Par};
use std::convert::identity;
use std::ops::RangeInclusive;

/// An end of the spectrum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum End {
    /// The largest singular values.
    Leading,
    /// The smallest ones.
    Last,
}

/// The most triplets for which the iteration takes less time than a dense decomposition.
const FEW: usize = 32;

/// Columns of a block.
const BLOCK: usize = 8;

/// Blocks in addition to the wanted triplets, at most and at least. Fewer seldom converge.
const BLOCKS: RangeInclusive<usize> = 16..=22;

/// Largest residual of each triplet, relative to its own singular value.
const TOLERANCE: f64 = 1e-4;

/// A step of the iteration seldom divides a residual by more. The triplets are looked at again after as many steps as that needs: it takes
/// longer than a step.
const PER_STEP: f64 = 2.5;

/// Largest entry of `VᵀV − I`.
const ORTHONORMAL: f64 = 1e-9;

/// Columns of the basis at most; `None` if a dense decomposition takes less time.
pub(super) fn most_columns(n: usize, k: usize) -> Option<usize> {
    let most = (k + BLOCKS.end() * BLOCK).min(n / 2);
    (1..=FEW).contains(&k).then_some(most).filter(|most| *most >= k + BLOCKS.start() * BLOCK)
}

/// `k` triplets at one end of the spectrum of a matrix with `n ≤ m`.
///
/// `None` if a dense decomposition takes less time, if its last triplets are wanted and it is nearly singular, if copies of a singular
/// value can be missing, or if the iteration does not converge.
pub(super) fn few_triplets(
    matrix: MatRef<'_, f64>,
    k: usize,
    end: End,
    par: Par,
) -> Result<Option<TruncatedSvd<f64>>> {
    let n = matrix.ncols();
    let Some(most) = most_columns(n, k) else { return Ok(None) };
    let refused = |why: &str| {
        tracing::info!(?end, why, "fallback to a dense decomposition");
        Ok(None)
    };
    let gram = dense::product(matrix.transpose(), matrix, par);
    let Some(operator) = (match end {
        End::Leading => Some(gram),
        End::Last => dense::cholesky(gram, par),
    }) else {
        return refused("the matrix is singular to working precision");
    };
    let apply = |block: Mat<f64>| {
        dense::by_panels(block.as_ref(), n, (identity, identity), |panel: Panel<f64>| match end {
            // It is symmetric, and faster in this layout.
            End::Leading => panel.product(operator.transpose(), par),
            End::Last => {
                panel.solve_lower(operator.as_ref(), par).solve_lower_transposed(operator.as_ref(), par)
            }
        })
    };
    let mut basis = Mat::<f64>::zeros(n, most);
    // The operator on the space of the basis. Only the lower triangle is read.
    let mut small = Mat::<f64>::zeros(most, most);
    let mut next = random::gaussian::<f64>(n, BLOCK, 0, "few triplets");
    // Few matrices need less.
    let (mut dimension, mut next_check) = (0, 10 * BLOCK);
    loop {
        let q = orthonormal(next, basis.subcols(0, dimension), par)?;
        basis.as_mut().subcols_mut(dimension, BLOCK).copy_from(&q);
        dimension += BLOCK;
        next = apply(q);
        let inside = dense::product(basis.subcols(0, dimension).transpose(), next.as_ref(), par);
        small.as_mut().submatrix_mut(dimension - BLOCK, 0, BLOCK, dimension).copy_from(inside.transpose());

        let is_last = dimension + BLOCK > most;
        if dimension < next_check && !is_last {
            continue;
        }
        let (values, vectors) =
            dense::self_adjoint_eigen("the update", small.submatrix(0, 0, dimension, dimension), Par::Seq)?;
        let space = dense::product(basis.subcols(0, dimension), vectors.subcols(dimension - k, k), par);
        let (u, s, v) = on_space(matrix, space.as_ref(), par)?;
        let residuals = residuals(matrix, &u, &s, &v, par);
        // Unlike `f64::max`, this keeps NaN.
        let relative = residuals.iter().zip(&s).map(|(residual, s)| residual / s);
        let worst = relative.fold(0.0, |worst, residual| if residual <= worst { worst } else { residual });
        let excess = worst / TOLERANCE;
        if excess <= 1.0 {
            let defect = (v.transpose() * &v - Mat::<f64>::identity(k, k)).norm_max();
            let descending: Vec<f64> =
                values.iter().rev().take(k).map(|value| value.max(0.0).sqrt()).collect();
            if defect > ORTHONORMAL || may_miss_copies(&descending, BLOCK) {
                return refused("the iteration failed its check");
            }
            let energy = matrix.squared_norm_l2();
            let residual = residuals.into_iter().fold(0.0, f64::max) / s[0];
            let found = TruncatedSvd { u, s, v, energy, energy_exact: true, residual };
            return Ok(Some(found));
        }
        if is_last || !excess.is_finite() {
            return refused("the iteration does not converge");
        }
        let steps = excess.log(PER_STEP).max(1.0) as usize;
        next_check = dimension.saturating_add(BLOCK.saturating_mul(steps));
    }
}

/// Orthonormal columns for the part of a block outside a basis. Projecting twice is enough, unless that part is rounding error, which may
/// lie in the basis.
fn orthonormal(mut block: Mat<f64>, basis: MatRef<'_, f64>, par: Par) -> Result<Mat<f64>> {
    const PASSES: usize = 6;
    const NEGLIGIBLE: f64 = 1e-12;
    for pass in 0..PASSES {
        let inside = dense::product(basis.transpose(), block.as_ref(), par);
        dense::add_product(block.as_mut(), -1.0, basis, inside.as_ref(), par);
        block = thin_block_qr("the image of a block", block)?.0;
        // The columns were of length one then.
        if pass > 0 && inside.norm_max() <= NEGLIGIBLE {
            break;
        }
    }
    Ok(block)
}

/// `‖Mᵀuᵢ − σᵢvᵢ‖` of all triplets. Since `u` was computed from `M v`, they have no other residuals.
fn residuals(matrix: MatRef<'_, f64>, u: &Mat<f64>, s: &[f64], v: &Mat<f64>, par: Par) -> Vec<f64> {
    let image = dense::product(matrix.transpose(), u.as_ref(), par);
    s.iter().enumerate().map(|(i, s)| (image.col(i) - v.col(i) * faer::Scale(*s)).norm_l2()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::orthonormal as columns;

    /// A matrix with singular values `value(0) ≥ value(1) ≥ …`.
    fn with_values(m: usize, n: usize, value: impl Fn(usize) -> f64) -> (Mat<f64>, Mat<f64>, Mat<f64>) {
        let (u, v) = (columns(m, n, 0, "left"), columns(n, n, 0, "right"));
        let scaled = Mat::from_fn(m, n, |i, j| u[(i, j)] * value(j));
        (scaled * v.transpose(), u, v)
    }

    /// Spectra that end in a gap, at zero like those of square random matrices, away from it like those of tall ones, and in copies of one
    /// value. The product of the triplets is that of the known ones.
    #[test]
    fn known_triplets_are_found() {
        const K: usize = 8;
        let n = 400;
        let spectra: [(&str, &dyn Fn(usize) -> f64); 4] = [
            ("gap", &|i| if i < 392 { 1.0 } else { 1e-3 / (i - 390) as f64 }),
            ("to zero", &|i| (n - i) as f64 / n as f64),
            ("edge", &|i| 0.5 + ((n - 1 - i) as f64 / n as f64).powf(0.6)),
            ("copies", &|i| if i < 392 { 1.0 + (n - i) as f64 } else { 1e-2 }),
        ];
        for (name, value) in spectra {
            let (matrix, u, v) = with_values(500, n, value);
            let found = few_triplets(matrix.as_ref(), K, End::Last, Par::Seq).unwrap().expect(name);
            assert!(found.residual <= TOLERANCE && found.s.is_sorted_by(|a, b| a >= b), "{name}");
            for (i, s) in found.s.iter().enumerate() {
                assert!((s / value(n - K + i) - 1.0).abs() < 1e-6, "{name}: value {i} is {s}");
            }
            let product = |u: MatRef<'_, f64>, s: &dyn Fn(usize) -> f64, v: MatRef<'_, f64>| {
                Mat::from_fn(500, K, |i, j| u[(i, j)] * s(j)) * v.transpose()
            };
            let wanted = product(u.subcols(n - K, K), &|j| value(n - K + j), v.subcols(n - K, K));
            if name == "edge" {
                // Neighbours are too close to be told apart.
                continue;
            }
            let error = product(found.u.as_ref(), &|j| found.s[j], found.v.as_ref()) - &wanted;
            assert!(
                error.norm_l2() < 1e-3 * wanted.norm_l2(),
                "{name}: {:e}",
                error.norm_l2() / wanted.norm_l2()
            );
            for q in [&found.u, &found.v] {
                assert!((q.transpose() * q - Mat::<f64>::identity(K, K)).norm_max() < 1e-9, "{name}");
            }
        }
    }

    /// A block finds as many copies of a singular value as it has columns, and more only by rounding. No result lacks copies: it is
    /// complete or refused.
    #[test]
    fn no_copies_are_missing() {
        // The same square 20 times.
        let (square, _, _) = with_values(20, 20, |i| 1.0 / (1.0 + i as f64));
        let matrix =
            Mat::from_fn(400, 400, |i, j| if i / 20 == j / 20 { square[(i % 20, j % 20)] } else { 0.0 });
        let mut refused = 0;
        for (end, value) in [(End::Leading, 1.0), (End::Last, 1.0 / 20.0)] {
            for k in [BLOCK, 12, 16] {
                let Some(found) = few_triplets(matrix.as_ref(), k, end, Par::Seq).unwrap() else {
                    assert!(k > BLOCK, "{end:?}");
                    refused += 1;
                    continue;
                };
                assert!(
                    found.s.iter().all(|s| (s / value - 1.0).abs() < 1e-6),
                    "{end:?}, {k}: {:?}",
                    found.s
                );
            }
        }
        assert!(refused > 0);
    }

    /// The caller decomposes these densely: their last triplets are lost in the squares, or do not exist, or the iteration is too long.
    #[test]
    fn hard_matrices_are_refused() {
        let refused =
            |matrix: Mat<f64>| few_triplets(matrix.as_ref(), 8, End::Last, Par::Seq).unwrap().is_none();
        assert!(refused(with_values(400, 400, |i| if i < 396 { 1.0 } else { 1e-9 }).0), "condition");
        assert!(refused(with_values(400, 400, |i| if i < 390 { 1.0 } else { 0.0 }).0), "singular");
        assert!(refused(Mat::zeros(400, 400)), "zero");
        assert!(refused(with_values(400, 400, |i| 1.0 + 1e-3 * (400 - i) as f64).0), "flat");
        assert!(refused(with_values(260, 260, |i| 1.0 / (1.0 + i as f64)).0), "small");
    }
}
