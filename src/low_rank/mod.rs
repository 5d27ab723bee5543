//! Truncated singular value decompositions of operators that are never formed.
//!
//! Large operators are decomposed by a block Krylov method that only applies them to thin blocks; where the
//! matrix is small, or the rank a large part of it, or where a result of the Krylov method does not pass its check,
//! it is formed and decomposed densely. Knows nothing of LoRA.

mod krylov;
mod trace;

use crate::dense;
use crate::error::{Error, Result};
use faer::{Mat, MatRef, Par};
pub use krylov::KrylovParams;
pub use trace::trace;

/// An `m × n` matrix that is known by what it does to thin blocks.
pub trait Operator {
    /// `m`.
    fn rows(&self) -> usize;
    /// `n`.
    fn columns(&self) -> usize;
    /// `M V (m × k)` for `V (n × k)`.
    fn apply(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32>;
    /// `Mᵀ U (n × k)` for `U (m × k)`.
    fn apply_transpose(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32>;
}

impl Operator for MatRef<'_, f32> {
    fn rows(&self) -> usize {
        self.nrows()
    }
    fn columns(&self) -> usize {
        self.ncols()
    }
    fn apply(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        dense::thin_product(*self, block, par)
    }
    fn apply_transpose(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        dense::thin_product(self.transpose(), block, par)
    }
}

/// The product `L R` of two operators, applied one after the other and never formed.
pub struct Product<'a> {
    /// `L`.
    pub left: &'a dyn Operator,
    /// `R`, with as many rows as `L` has columns.
    pub right: &'a dyn Operator,
}

impl Operator for Product<'_> {
    fn rows(&self) -> usize {
        self.left.rows()
    }
    fn columns(&self) -> usize {
        self.right.columns()
    }
    fn apply(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        self.left.apply(self.right.apply(block, par).as_ref(), par)
    }
    fn apply_transpose(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        self.right.apply_transpose(self.left.apply_transpose(block, par).as_ref(), par)
    }
}

/// Leading, or last, singular triplets of an operator.
#[derive(Clone, Debug)]
pub struct TruncatedSvd<T = f32> {
    /// Left singular vectors, `m × k`.
    pub u: Mat<T>,
    /// Singular values, descending.
    pub s: Vec<f64>,
    /// Right singular vectors, `n × k`.
    pub v: Mat<T>,
    /// Square of the Frobenius norm of the operator.
    pub energy: f64,
    /// Whether `energy` is exact, or has an estimated share: that of the space that the method did not visit.
    pub energy_exact: bool,
    /// Largest `‖M vᵢ − σᵢ uᵢ‖ / σ₁` or `‖Mᵀ uᵢ − σᵢ vᵢ‖ / σ₁`, computed with the operator; 0 for a dense decomposition.
    pub residual: f64,
}

/// An operator with a side of at most this is decomposed densely.
const DENSE_SIDE: usize = 512;

/// An operator of at most this many entries is decomposed densely where the result of the iteration does not pass its check:
/// 2048 × 2048. Larger ones are refused, so that no plan needs the memory of a dense decomposition for them.
const FALLBACK_ENTRIES: usize = 1 << 22;

/// The `k` leading singular triplets, `k ≤ min(m, n)`, from start vectors that belong to `seed` and `name`.
///
/// # Errors
/// [`Error::NonFinite`] for an operator with NaN or infinity, [`Error::NoConvergence`] of a dense decomposition, or of the
/// iteration where it does not pass its check and the operator has more than 2²² entries.
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
        if operator.rows() * operator.columns() > FALLBACK_ENTRIES {
            return Err(Error::NoConvergence { what: "block Lanczos iteration" });
        }
    }
    dense_svd(operator, k, par)
}

/// The `k` last singular triplets of a matrix, in descending order, by a dense decomposition of the whole.
///
/// In f64: an error relative to the first singular value must be small beside the last ones.
///
/// # Errors
/// As [`truncated_svd`].
///
/// # Panics
/// If `k > min(m, n)`.
pub fn last_components(matrix: MatRef<'_, f64>, k: usize, par: Par) -> Result<TruncatedSvd<f64>> {
    let side = matrix.nrows().min(matrix.ncols());
    assert!(k <= side, "rank {k} of a matrix whose smaller side is {side}");
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

/// Bytes that [`last_components`] needs at its peak, and the matrix.
pub fn last_components_memory(m: u64, n: u64) -> u64 {
    8 * dense_numbers(m, n)
}

/// Bytes that [`truncated_svd`] needs at its peak, besides the operator.
pub fn memory(m: u64, n: u64, k: u64) -> u64 {
    let dense = 4 * dense_numbers(m, n);
    match krylov_params(m.min(n) as usize, k as usize) {
        None => dense,
        Some(params) => {
            // Two bases, and a few blocks on their way into them.
            let columns = params.max_dimension + 4 * params.widest(k as usize);
            let iteration = 4 * (m + n) * columns as u64;
            if m * n <= FALLBACK_ENTRIES as u64 { iteration.max(dense) } else { iteration }
        }
    }
}

/// Numbers that a dense decomposition holds at its peak: the matrix, both factors, and a scratch that was measured as this
/// many squares.
fn dense_numbers(m: u64, n: u64) -> u64 {
    let side = m.min(n);
    m * n + (m + n) * side + 8 * side * side
}

/// `None` where a dense decomposition is the better choice.
fn krylov_params(side: usize, k: usize) -> Option<KrylovParams> {
    let params = KrylovParams::auto(k);
    (side > DENSE_SIDE && 2 * params.max_dimension <= side).then_some(params)
}

/// Forms the operator from its smaller side, and decomposes it whole.
fn dense_svd(operator: &dyn Operator, k: usize, par: Par) -> Result<TruncatedSvd> {
    let (m, n) = (operator.rows(), operator.columns());
    let matrix = if n <= m {
        operator.apply(Mat::identity(n, n).as_ref(), par)
    } else {
        operator.apply_transpose(Mat::identity(m, m).as_ref(), par).transpose().to_owned()
    };
    let svd = dense::thin_svd("the update", matrix.as_ref(), par)?;
    let energy = svd.s.iter().map(|s| f64::from(*s).powi(2)).sum();
    Ok(TruncatedSvd {
        u: svd.u.subcols(0, k).to_owned(),
        s: svd.s[..k].iter().map(|s| f64::from(*s)).collect(),
        v: svd.v.subcols(0, k).to_owned(),
        energy,
        energy_exact: true,
        residual: 0.0,
    })
}

#[cfg(test)]
mod tests;
