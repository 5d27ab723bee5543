//! The truncated singular value decomposition, by the iteration or densely.

use super::gram_lanczos::{End, few_triplets, most_columns};
use super::leading::leading;
use super::{KrylovParams, Operator, TruncatedSvd, krylov};
use crate::dense;
use crate::error::Result;
use faer::{MatRef, Par};
use std::num::Saturating;

/// An operator with a side of at most this is formed.
pub(super) const DENSE_SIDE: usize = 512;

/// The `k` leading singular triplets, `k ≤ min(m, n)`. For a large operator, `seed` and `name` select the random start vectors.
///
/// # Errors
/// [`Error::NonFinite`](crate::error::Error::NonFinite) for an operator with NaN or infinity,
/// [`Error::NoConvergence`](crate::error::Error::NoConvergence) of a dense decomposition.
///
/// # Panics
/// If `k > min(m, n)`.
pub fn truncated_svd(
    operator: &dyn Operator,
    k: usize,
    seed: u64,
    name: &str,
    par: Par,
) -> Result<TruncatedSvd> {
    let side = operator.rows().min(operator.columns());
    assert!(k <= side, "rank {k} of a matrix whose smaller side is {side}");
    if let Some(params) = krylov_params(side, k) {
        if let Some(svd) = krylov::truncated_svd(operator, k, params, seed, name, par)? {
            return Ok(svd);
        }
        tracing::info!(
            name,
            "fallback to a dense decomposition: the block Lanczos iteration failed its check"
        );
    }
    formed_svd(operator, k, par)
}

/// The `k` last singular triplets of a matrix, in descending order.
///
/// In f64, because errors that are small relative to the first singular value must also be small relative to the last ones. By an
/// iteration with the inverse for a few triplets of a large matrix. If it does not converge, the whole matrix is decomposed densely.
///
/// # Errors
/// As [`truncated_svd`].
///
/// # Panics
/// If `k > min(m, n)`.
pub fn last_components(matrix: MatRef<'_, f64>, k: usize, par: Par) -> Result<TruncatedSvd<f64>> {
    let (m, n) = matrix.shape();
    let side = m.min(n);
    assert!(k <= side, "rank {k} of a matrix whose smaller side is {side}");
    let tall = if n <= m { matrix } else { matrix.transpose() };
    if let Some(found) = few_triplets(tall, k, End::Last, par)? {
        let TruncatedSvd { u: long, v: short, .. } = found;
        let (u, v) = if n <= m { (long, short) } else { (short, long) };
        return Ok(TruncatedSvd { u, v, ..found });
    }
    let whole = dense::thin_svd("the update", matrix, par)?;
    let first = side - k;
    Ok(TruncatedSvd {
        u: whole.u.subcols(first, k).to_owned(),
        s: whole.s[first..].to_vec(),
        v: whole.v.subcols(first, k).to_owned(),
        energy: whole.s.iter().map(|s| s * s).sum(),
        energy_exact: true,
        residual: 0.0,
    })
}

/// Bytes that a dense decomposition in f64 holds at its peak: the matrix, both factors, and a scratch that was measured as this many
/// squares.
pub fn dense_memory(m: u64, n: u64) -> u64 {
    let [m, n] = [m, n].map(Saturating);
    let side = m.min(n);
    (Saturating(8) * (m * n + (m + n) * side + Saturating(8) * side * side)).0
}

/// Bytes that [`truncated_svd`] needs at its peak, besides the operator, unless a large operator has to be decomposed densely.
pub fn memory(m: u64, n: u64, k: u64) -> u64 {
    let dense = dense_memory(m, n);
    match krylov_params(m.min(n) as usize, k as usize) {
        None => dense,
        Some(params) => {
            // Two bases, and a few blocks.
            let columns = params.max_dimension + 4 * params.widest(k as usize);
            let iteration = m.saturating_add(n).saturating_mul(4).saturating_mul(columns as u64);
            let is_small = m.saturating_mul(n) <= krylov::FALLBACK_ENTRIES as u64;
            if is_small { iteration.max(dense) } else { iteration }
        }
    }
}

/// Operations of [`truncated_svd`] at most, if a product of the operator with a vector needs `product` of them.
pub fn work(m: u64, n: u64, k: u64, product: f64) -> f64 {
    match krylov_params(m.min(n) as usize, k as usize) {
        // The products in both directions. The bases are thin.
        Some(params) => 2.0 * params.max_dimension as f64 * product,
        None => m.min(n) as f64 * product + last_work(m, n, k),
    }
}

/// Operations of [`last_components`], or of the leading triplets of a matrix in memory, if the iteration for a few of them converges.
pub fn last_work(m: u64, n: u64, k: u64) -> f64 {
    let [side, length] = [m.min(n), m.max(n)].map(|length| length as f64);
    match most_columns(m.min(n) as usize, k as usize) {
        // The Gram matrix and its factor; products of both triangles with all columns.
        Some(columns) => (2.0 * length + side / 3.0 + 2.0 * columns as f64) * side * side,
        None => dense_work(m, n),
    }
}

/// Operations of a dense decomposition, as many as products of matrices have in its time (measured on square matrices).
pub fn dense_work(m: u64, n: u64) -> f64 {
    let [side, length] = [m.min(n), m.max(n)].map(|length| length as f64);
    (35.0 * side + 6.0 * (length - side)) * side * side
}

/// `None` if a dense decomposition is the better choice.
pub(super) fn krylov_params(side: usize, k: usize) -> Option<KrylovParams> {
    let params = KrylovParams::auto(k);
    (side > DENSE_SIDE && 2 * params.max_dimension <= side).then_some(params)
}

/// Forms the operator from its smaller side, and decomposes the matrix: by an iteration for a few triplets, otherwise densely.
fn formed_svd(operator: &dyn Operator, k: usize, par: Par) -> Result<TruncatedSvd> {
    let formed = operator.form_tall(par);
    dense::check_finite("the update", formed.as_ref())?;
    let formed = dense::to_f64(formed.as_ref());
    let (long, s, short, residual) = match few_triplets(formed.as_ref(), k, End::Leading, par)? {
        Some(TruncatedSvd { u, s, v, residual, .. }) => (u, s, v, residual),
        None => {
            let (long, s, short) = leading(formed.as_ref(), k, par)?;
            (long, s, short, 0.0)
        }
    };
    let (long, short) = (dense::to_f32(long.as_ref()), dense::to_f32(short.as_ref()));
    let (u, v) = if operator.columns() <= operator.rows() { (long, short) } else { (short, long) };
    Ok(TruncatedSvd { u, s, v, energy: formed.squared_norm_l2(), energy_exact: true, residual })
}
