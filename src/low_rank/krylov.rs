//! Block Lanczos bidiagonalization with full reorthogonalization (Golub & Kahan 1965; for blocks and accuracy
//! guarantees Musco & Musco 2015).
//!
//! ```text
//! V₀ = orthonormal start block (n × b)
//! repeat
//!     Uⱼ   = orthonormal part of  M Vⱼ   outside U₀ … Uⱼ₋₁        (so M V = U B, exactly)
//!     Vⱼ₊₁ = orthonormal part of  Mᵀ Uⱼ  outside V₀ … Vⱼ          (the remainder is Vⱼ₊₁ S)
//!     B = P Σ Qᵀ;  triplet i is (U pᵢ, σᵢ, V qᵢ), with residual ‖Mᵀuᵢ − σᵢvᵢ‖ = ‖S · last block of pᵢ‖
//! until the first k residuals are small
//! ```
//!
//! 1. Every product with `M` enlarges the space that the answer is taken from; a subspace iteration would throw the
//!    previous blocks away. For slowly decaying spectra that saves half of the passes and more.
//! 2. The residual costs no further product: `S` is left over from the orthogonalization.
//! 3. Orthogonalizing twice keeps the bases orthonormal to working precision, also for operators of low rank, whose
//!    remainders are nothing but rounding errors.

use super::{Operator, TruncatedSvd};
use crate::dense;
use crate::error::Result;
use crate::random;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

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
        // Narrower blocks take as long: what a product costs is to stream the operator through.
        let block = 32;
        let max_dimension = (4 * k).max(k + 8 * block).next_multiple_of(block);
        Self { block, max_dimension, tolerance: 1e-2 }
    }
}

/// Random directions for the estimate of the energy outside the basis.
const PROBES: usize = 16;

/// See [`super::truncated_svd`]. `params.max_dimension + params.block` must not exceed the smaller side.
pub(super) fn truncated_svd(
    operator: &dyn Operator,
    k: usize,
    params: KrylovParams,
    seed: u64,
    name: &str,
    par: Par,
) -> Result<TruncatedSvd> {
    let KrylovParams { block, max_dimension, tolerance } = params;
    let (m, n) = (operator.rows(), operator.columns());
    let mut u = Mat::<f32>::zeros(m, max_dimension);
    let mut v = Mat::<f32>::zeros(n, max_dimension + block);
    let mut b = Mat::<f32>::zeros(max_dimension, max_dimension);

    let start = random::gaussian::<f32>(n, block, seed, name);
    v.as_mut().subcols_mut(0, block).copy_from(dense::thin_qr("start block", start, par)?.0);
    let mut dimension = 0;
    loop {
        let image = operator.apply(v.subcols(dimension, block), par);
        let step = orthonormalize(image, u.subcols(0, dimension), par)?;
        u.as_mut().subcols_mut(dimension, block).copy_from(&step.q);
        b.as_mut().submatrix_mut(0, dimension, dimension, block).copy_from(&step.inside);
        b.as_mut().submatrix_mut(dimension, dimension, block, block).copy_from(&step.remainder);

        let image = operator.apply_transpose(step.q.as_ref(), par);
        let step = orthonormalize(image, v.subcols(0, dimension + block), par)?;
        dimension += block;
        v.as_mut().subcols_mut(dimension, block).copy_from(&step.q);

        let last = dimension + block > max_dimension;
        if dimension < 2 * k && !last {
            continue;
        }
        let small = dense::thin_svd("the update", b.submatrix(0, 0, dimension, dimension), par)?;
        let remainder = dense::product(
            step.remainder.as_ref(),
            small.u.submatrix(dimension - block, 0, block, k),
            Par::Seq,
        );
        let residuals = (0..k).map(|i| (f64::from(remainder.col(i).norm_l2()), f64::from(small.s[i])));
        if last || residuals.clone().all(|(residual, sigma)| residual <= tolerance * sigma) {
            let sigma_max = f64::from(small.s[0]).max(f64::MIN_POSITIVE);
            let residual = residuals.map(|(residual, _)| residual / sigma_max).fold(0.0, f64::max);
            let basis = v.subcols(0, dimension);
            let captured: f64 = small.s.iter().map(|s| f64::from(*s).powi(2)).sum();
            return Ok(TruncatedSvd {
                u: dense::product(u.subcols(0, dimension), small.u.subcols(0, k), par),
                s: small.s[..k].iter().map(|s| f64::from(*s)).collect(),
                v: dense::product(basis, small.v.subcols(0, k), par),
                energy: captured + energy_outside(operator, basis, seed, name, par),
                energy_exact: false,
                residual,
            });
        }
    }
}

/// A block in terms of a basis: `block = basis · inside + q · remainder`.
struct Orthonormalized {
    q: Mat<f32>,
    inside: Mat<f32>,
    remainder: Mat<f32>,
}

/// Classical Gram–Schmidt against the basis, twice, and Householder QR within the block.
fn orthonormalize(block: Mat<f32>, basis: MatRef<'_, f32>, par: Par) -> Result<Orthonormalized> {
    let (block, first) = project_out(block, basis, par);
    let (q, r) = dense::thin_qr("the image of a block", block, par)?;
    let (q, second) = project_out(q, basis, par);
    let (q, correction) = dense::thin_qr("the image of a block", q, par)?;
    Ok(Orthonormalized { q, inside: first + second * &r, remainder: correction * r })
}

/// `(I − Q Qᵀ) X` and `Qᵀ X`.
pub(super) fn project_out(mut block: Mat<f32>, basis: MatRef<'_, f32>, par: Par) -> (Mat<f32>, Mat<f32>) {
    let inside = dense::product(basis.transpose(), block.as_ref(), par);
    matmul(block.as_mut(), Accum::Add, basis, inside.as_ref(), -1.0, par);
    (block, inside)
}

/// `|M (I − V Vᵀ)|²_F`, estimated: the mean of `|M (I − V Vᵀ) g|²` over standard normal `g`.
fn energy_outside(operator: &dyn Operator, basis: MatRef<'_, f32>, seed: u64, name: &str, par: Par) -> f64 {
    let probes = random::gaussian(operator.columns(), PROBES, seed, &format!("{name} energy"));
    let (probes, _) = project_out(probes, basis, par);
    let image = operator.apply(probes.as_ref(), par);
    (0..PROBES).map(|j| f64::from(image.col(j).norm_l2()).powi(2)).sum::<f64>() / PROBES as f64
}
