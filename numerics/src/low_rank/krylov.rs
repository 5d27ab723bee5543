//! Block Lanczos bidiagonalization with full reorthogonalization (Golub & Kahan 1965; for blocks and accuracy
//! guarantees Musco & Musco 2015), deflation, and a check of the result.
//!
//! ```text
//! V₀ = orthonormal start block (n × b)
//! repeat
//!     Uⱼ   = orthonormal part of  M Vⱼ   outside U₀ … Uⱼ₋₁        (so M V = U B)
//!     Vⱼ₊₁ = orthonormal part of  Mᵀ Uⱼ  outside V₀ … Vⱼ          (the remainder is Vⱼ₊₁ S)
//!     B = P Σ Qᵀ;  triplet i is (U pᵢ, σᵢ, V qᵢ), with residual ‖Mᵀuᵢ − σᵢvᵢ‖ = ‖S · last block of pᵢ‖
//! until the first k residuals are small
//! ```
//!
//! 1. Every product with `M` enlarges the space that contains the result, whereas a subspace iteration discards the previous blocks. For
//!    slowly decaying spectra that saves at least half of the passes.
//! 2. The residual that ends the iteration costs no further product: `S` comes from the orthogonalization.
//! 3. Orthogonalizing twice keeps the bases orthonormal to working precision, as long as the remainder of a block is
//!    more than the rounding error of its product. Directions of the remainder that are rounding error are replaced by
//!    random ones, with zeros in `B` or `S` (see [`orthonormalize`]). If they were kept and the image of `M` lies in few coordinates, the
//!    bases would contain some directions twice, and singular values would be too large.
//! 4. A block of width `b` finds at most `b` copies of a repeated singular value. If `b` copies are found and smaller
//!    values follow among the first `k`, the matrix is decomposed densely, or, if it is too large for that, the iteration
//!    starts again with a block of at least `k` columns.
//! 5. The residual that is reported, and the orthonormality of the vectors, are computed from the result and the
//!    operator (see [`check`]). They rely neither on `B` nor on the orthogonalization.

use super::leading::leading;
use super::{Operator, TruncatedSvd};
use crate::dense;
use crate::error::Result;
use crate::random;
use faer::{Mat, MatRef, Par};

/// An operator of at most this many entries, 2048 × 2048, is decomposed densely if copies of singular values can be missing. Plans count
/// the memory for that. Larger operators are iterated with a wider block. If a result does not pass its check, the operator is decomposed
/// densely at any size.
pub(super) const FALLBACK_ENTRIES: usize = 1 << 22;

/// When the iteration stops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KrylovParams {
    /// Columns of a block, `b`.
    pub block: usize,
    /// Columns of a basis at most; the result is returned, with its residual, when they are used up.
    pub max_dimension: usize,
    /// Largest residual of each of the leading triplets, relative to its own singular value.
    pub tolerance: f64,
}

impl KrylovParams {
    /// Good values for `k` triplets.
    pub fn auto(k: usize) -> Self {
        // Narrower blocks take as long: a product takes the time to read the operator.
        let block = 32;
        let max_dimension = (4 * k).max(k + 8 * block).next_multiple_of(block);
        Self { block, max_dimension, tolerance: 1e-2 }
    }

    /// Columns of the widest block that is used for `k` triplets: it finds all copies of a repeated singular value.
    pub(super) fn widest(&self, k: usize) -> usize {
        k.next_multiple_of(self.block)
    }
}

/// Random directions for the estimate of the energy outside the basis.
const PROBES: usize = 16;

/// Remainders below this share of the largest image of a block are rounding error.
const NOISE: f32 = f32::EPSILON;

/// Directions that the second projection shortens to less than this are rounding error of the first one.
const KEPT: f32 = 0.5;

/// A step of the iteration seldom divides a residual by more. So residuals that are far from the tolerance are computed again only after
/// several steps: that takes as long as a step.
const PER_STEP: f64 = 4.0;

/// Singular values that differ by less than this share of themselves count as copies of one value. They are known to the tolerance
/// of the iteration.
const SAME: f64 = 1e-2;

/// Largest entry of `QᵀQ − I` that the check accepts. Rounding gives about 1e-6.
const ORTHONORMAL: f64 = 1e-4;

/// By how much a residual, relative to the first singular value, may exceed the one that the iteration knows.
const RESIDUAL: f64 = 1e-2;

/// See [`super::truncated_svd`]. `params.max_dimension + params.widest(k)` must not exceed the smaller side.
///
/// `None` if the result does not pass the check, or if copies of singular values can be missing and there is memory for a dense
/// decomposition.
pub(super) fn truncated_svd(
    operator: &dyn Operator,
    k: usize,
    params: KrylovParams,
    seed: u64,
    name: &str,
    par: Par,
) -> Result<Option<TruncatedSvd>> {
    let mut found = iterate(operator, k, params, seed, name, par)?;
    if may_miss_copies(&found.s, params.block) {
        if operator.rows() * operator.columns() <= FALLBACK_ENTRIES {
            return Ok(None);
        }
        let wide = KrylovParams { block: params.widest(k), ..params };
        found = iterate(operator, k, wide, seed, &format!("{name} wide"), par)?;
    }
    check(operator, found, seed, name, par)
}

/// Returns whether copies of a repeated singular value can be missing before the last of these values, which were found with a block of
/// this width.
pub(super) fn may_miss_copies(s: &[f64], block: usize) -> bool {
    let last = s.last().copied().unwrap_or(0.0);
    s.iter().zip(s.iter().skip(block - 1)).any(|(first, copy)| {
        let least = first * (1.0 - SAME);
        *copy >= least && last < least
    })
}

/// The result of the iteration, before its check.
struct Found {
    u: Mat<f32>,
    s: Vec<f64>,
    v: Mat<f32>,
    /// The whole right basis, and the energy of the operator on it.
    basis: Mat<f32>,
    captured: f64,
    /// Largest residual of a triplet, as the iteration knows it.
    residual: f64,
}

fn iterate(
    operator: &dyn Operator,
    k: usize,
    params: KrylovParams,
    seed: u64,
    name: &str,
    par: Par,
) -> Result<Found> {
    let KrylovParams { block, max_dimension, tolerance } = params;
    let (m, n) = (operator.rows(), operator.columns());
    let mut u = Mat::<f32>::zeros(m, max_dimension);
    let mut v = Mat::<f32>::zeros(n, max_dimension + block);
    let mut b = Mat::<f32>::zeros(max_dimension, max_dimension);

    let start = random::gaussian::<f32>(n, block, seed, name);
    v.as_mut().subcols_mut(0, block).copy_from(thin_qr("start block", &start)?.0);
    // The largest norm of an image so far; rounding errors are relative to it.
    let mut scale = 0f32;
    let mut dimension = 0;
    let mut next_check = 2 * k;
    loop {
        let fresh = |side: &str, rows, columns| {
            random::gaussian::<f32>(rows, columns, seed, &format!("{name} {side} {dimension}"))
        };
        let image = operator.apply(v.subcols(dimension, block), par);
        scale = scale.max(image.norm_l2());
        let step =
            orthonormalize(image, u.subcols(0, dimension), scale, |count| fresh("left", m, count), par)?;
        u.as_mut().subcols_mut(dimension, block).copy_from(&step.q);
        b.as_mut().submatrix_mut(0, dimension, dimension, block).copy_from(&step.inside);
        b.as_mut().submatrix_mut(dimension, dimension, block, block).copy_from(&step.remainder);

        let image = operator.apply_transpose(step.q.as_ref(), par);
        scale = scale.max(image.norm_l2());
        let basis = v.subcols(0, dimension + block);
        let step = orthonormalize(image, basis, scale, |count| fresh("right", n, count), par)?;
        dimension += block;
        v.as_mut().subcols_mut(dimension, block).copy_from(&step.q);

        let last = dimension + block > max_dimension;
        if dimension < next_check && !last {
            continue;
        }
        // In f64, since the result can only be as orthonormal as this basis.
        let small = dense::to_f64(b.submatrix(0, 0, dimension, dimension));
        let (left, sigma, right) = leading(small.as_ref(), k, par)?;
        let (left, right) = (dense::to_f32(left.as_ref()), dense::to_f32(right.as_ref()));
        let remainder =
            dense::product(step.remainder.as_ref(), left.subrows(dimension - block, block), Par::Seq);
        let residuals: Vec<f64> = remainder.col_iter().map(|column| f64::from(column.norm_l2())).collect();
        // If the operator has a lower rank, residuals are noise.
        let noise = f64::from(NOISE * scale);
        let excess = |(residual, sigma): (&f64, &f64)| residual / noise.max(tolerance * sigma);
        let excess = residuals.iter().zip(&sigma).map(excess).fold(0.0, f64::max);
        if last || excess <= 1.0 {
            let basis = v.subcols(0, dimension);
            return Ok(Found {
                u: dense::product(u.subcols(0, dimension), left.as_ref(), par),
                v: dense::product(basis, right.as_ref(), par),
                s: sigma,
                captured: small.squared_norm_l2(),
                basis: basis.to_owned(),
                residual: residuals.into_iter().fold(0.0, f64::max),
            });
        }
        let steps = excess.log(PER_STEP).max(1.0) as usize;
        next_check = dimension.saturating_add(block.saturating_mul(steps));
    }
}

/// Computes `M V`, `Mᵀ U`, `UᵀU` and `VᵀV` of a result, independently of the iteration, and the energy outside the basis.
///
/// `None` if a basis is not orthonormal, or if a residual exceeds that of the iteration by more than the tolerance.
fn check(
    operator: &dyn Operator,
    found: Found,
    seed: u64,
    name: &str,
    par: Par,
) -> Result<Option<TruncatedSvd>> {
    let Found { u, s, v, basis, captured, residual: expected } = found;
    let k = s.len();
    // One product for the residual and the probes together: reading the operator is the cost.
    let probes = random::gaussian(operator.columns(), PROBES, seed, &format!("{name} energy"));
    let (probes, _) = project_out(probes, basis.as_ref(), par);
    let mut block = Mat::zeros(operator.columns(), k + PROBES);
    block.as_mut().subcols_mut(0, k).copy_from(&v);
    block.as_mut().subcols_mut(k, PROBES).copy_from(&probes);
    let image = operator.apply(block.as_ref(), par);
    let back = operator.apply_transpose(u.as_ref(), par);
    dense::check_finite("the update", image.as_ref())?;
    dense::check_finite("the update", back.as_ref())?;

    let forward = largest_difference(image.subcols(0, k), u.as_ref(), &s);
    let residual = largest_difference(back.as_ref(), v.as_ref(), &s).max(forward);
    let sigma_max = s[0].max(f64::MIN_POSITIVE);
    let is_sound = [&u, &v, &basis].into_iter().all(|q| defect(q, par) <= ORTHONORMAL)
        && residual <= expected + RESIDUAL * sigma_max;
    if !is_sound {
        return Ok(None);
    }
    // |M (I − V Vᵀ)|²_F, estimated: the mean of |M (I − V Vᵀ) g|² over standard normal g.
    let outside = (k..k + PROBES).map(|j| f64::from(image.col(j).norm_l2()).powi(2)).sum::<f64>();
    Ok(Some(TruncatedSvd {
        u,
        s,
        v,
        energy: captured + outside / PROBES as f64,
        energy_exact: false,
        residual: residual / sigma_max,
    }))
}

/// Largest norm of a column of `X − Q Σ`.
fn largest_difference(image: MatRef<'_, f32>, q: MatRef<'_, f32>, s: &[f64]) -> f64 {
    let square = |j: usize| {
        let entries = image.col(j).iter().zip(q.col(j).iter());
        entries.map(|(x, q)| (f64::from(*x) - s[j] * f64::from(*q)).powi(2)).sum::<f64>()
    };
    (0..s.len()).map(square).fold(0.0, f64::max).sqrt()
}

/// Largest entry of `QᵀQ − I`.
fn defect(q: &Mat<f32>, par: Par) -> f64 {
    let gram = dense::product(q.transpose(), q.as_ref(), par);
    f64::from((gram - Mat::<f32>::identity(q.ncols(), q.ncols())).norm_max())
}

/// A block in terms of a basis: `block = basis · inside + q · remainder`.
struct Orthonormalized {
    q: Mat<f32>,
    inside: Mat<f32>,
    remainder: Mat<f32>,
}

/// Classical Gram–Schmidt against the basis, twice, QR within the block, and deflation.
///
/// A direction is rounding error if it is shorter than [`NOISE`] times `scale` after the first projection, or if the second projection
/// shortens it below [`KEPT`], which means that it lies in the basis. In both cases the lost part of the block is as small as the
/// rounding error of its product. Random directions from `fresh` take their place, orthogonalized twice,
/// with zeros in the remainder.
fn orthonormalize(
    block: Mat<f32>,
    basis: MatRef<'_, f32>,
    scale: f32,
    fresh: impl FnOnce(usize) -> Mat<f32>,
    par: Par,
) -> Result<Orthonormalized> {
    const WHAT: &str = "the image of a block";
    let width = block.ncols();
    let (block, first) = project_out(block, basis, par);
    let (q, r) = thin_qr(WHAT, &block)?;
    let noise = NOISE * scale;
    // If no diagonal entry is that small, the second projection finds all noise.
    let has_noise = r.diagonal().column_vector().iter().any(|entry| entry.abs() <= noise);
    let (q, r) = if has_noise { above(q, r, noise, par)? } else { (q, r) };
    let (q, second) = project_out(q, basis, par);
    let (q, correction) = thin_qr(WHAT, &q)?;
    // Singular values of the correction are √(1 − s²) for those of `second`, s.
    let has_copies = second.squared_norm_l2() > 1.0 - KEPT * KEPT;
    let (q, correction) = if has_copies { above(q, correction, KEPT, par)? } else { (q, correction) };
    let inside = first + dense::product(second.as_ref(), r.as_ref(), par);
    let remainder = dense::product(correction.as_ref(), r.as_ref(), par);
    let kept = q.ncols();
    if kept == width {
        return Ok(Orthonormalized { q, inside, remainder });
    }

    let mut whole = Mat::zeros(q.nrows(), width);
    whole.as_mut().subcols_mut(0, kept).copy_from(&q);
    let mut other = fresh(width - kept);
    for _ in 0..2 {
        let (outside, _) = project_out(other, basis, par);
        let (outside, _) = project_out(outside, q.as_ref(), par);
        other = thin_qr(WHAT, &outside)?.0;
    }
    whole.as_mut().subcols_mut(kept, width - kept).copy_from(&other);
    let mut padded = Mat::zeros(width, width);
    padded.as_mut().subrows_mut(0, kept).copy_from(&remainder);
    Ok(Orthonormalized { q: whole, inside, remainder: padded })
}

/// QR decomposition in f64, see [`dense`].
fn thin_qr(what: &'static str, block: &Mat<f32>) -> Result<(Mat<f32>, Mat<f32>)> {
    let (q, r) = thin_block_qr(what, dense::to_f64(block.as_ref()))?;
    Ok((dense::to_f32(q.as_ref()), dense::to_f32(r.as_ref())))
}

/// QR decomposition of a thin block, the fast one if its columns are independent enough.
pub(super) fn thin_block_qr(what: &'static str, block: Mat<f64>) -> Result<(Mat<f64>, Mat<f64>)> {
    match dense::cholesky_qr(block.clone()) {
        Some(decomposed) => Ok(decomposed),
        // On one thread: with more of them it takes longer.
        None => Ok(dense::thin_qr(what, block, Par::Seq)?),
    }
}

/// The part of `Q R` with singular values above `least`, as orthonormal columns and their coefficients.
fn above(q: Mat<f32>, r: Mat<f32>, least: f32, par: Par) -> Result<(Mat<f32>, Mat<f32>)> {
    let small = dense::thin_svd("the image of a block", dense::to_f64(r.as_ref()).as_ref(), Par::Seq)?;
    let kept = small.s.iter().filter(|s| **s > f64::from(least)).count();
    let turn = dense::to_f32(small.u.subcols(0, kept));
    Ok((
        dense::product(q.as_ref(), turn.as_ref(), par),
        dense::product(turn.transpose(), r.as_ref(), Par::Seq),
    ))
}

/// `(I − Q Qᵀ) X` and `Qᵀ X`.
pub(super) fn project_out(mut block: Mat<f32>, basis: MatRef<'_, f32>, par: Par) -> (Mat<f32>, Mat<f32>) {
    let inside = dense::product(basis.transpose(), block.as_ref(), par);
    dense::add_product(block.as_mut(), -1.0, basis, inside.as_ref(), par);
    (block, inside)
}

#[cfg(test)]
mod tests;
