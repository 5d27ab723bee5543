//! Truncated singular value decompositions of operators that are never formed.
//!
//! Large operators are decomposed by a block Krylov method that only applies them to thin blocks; where the
//! matrix is small, or the rank a large part of it, it is formed and decomposed densely. Knows nothing of LoRA.

mod krylov;
mod trace;

use crate::dense;
use crate::error::Result;
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

/// The leading singular triplets of an operator.
#[derive(Clone, Debug)]
pub struct TruncatedSvd {
    /// Left singular vectors, `m × k`.
    pub u: Mat<f32>,
    /// Singular values, descending.
    pub s: Vec<f64>,
    /// Right singular vectors, `n × k`.
    pub v: Mat<f32>,
    /// Square of the Frobenius norm of the operator.
    pub energy: f64,
    /// Whether `energy` is exact, or has an estimated share: that of the space that the method did not visit.
    pub energy_exact: bool,
    /// Largest `‖Mᵀ uᵢ − σᵢ vᵢ‖ / σ₁`; 0 for a dense decomposition.
    pub residual: f64,
}

/// An operator with a side of at most this is decomposed densely.
const DENSE_SIDE: usize = 512;

/// The `k` leading singular triplets, `k ≤ min(m, n)`, from start vectors that belong to `seed` and `name`.
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
    match krylov_params(side, k) {
        None => dense_svd(operator, k, par),
        Some(params) => krylov::truncated_svd(operator, k, params, seed, name, par),
    }
}

/// The `k` last singular triplets, in descending order, by a dense decomposition of the whole.
///
/// # Errors
/// As [`truncated_svd`].
///
/// # Panics
/// If `k > min(m, n)`.
pub fn last_components(operator: &dyn Operator, k: usize, par: Par) -> Result<TruncatedSvd> {
    let side = operator.rows().min(operator.columns());
    assert!(k <= side, "rank {k} of a matrix whose smaller side is {side}");
    let whole = dense_svd(operator, side, par)?;
    let first = side - k;
    Ok(TruncatedSvd {
        u: whole.u.subcols(first, k).to_owned(),
        s: whole.s[first..].to_vec(),
        v: whole.v.subcols(first, k).to_owned(),
        ..whole
    })
}

/// Bytes that [`last_components`] needs at its peak, besides the operator.
pub fn last_components_memory(m: u64, n: u64) -> u64 {
    memory(m, n, m.min(n))
}

/// Bytes that [`truncated_svd`] needs at its peak, besides the operator.
pub fn memory(m: u64, n: u64, k: u64) -> u64 {
    let side = m.min(n);
    match krylov_params(side as usize, k as usize) {
        // The matrix, both factors, and a scratch that was measured as this many squares.
        None => 4 * (m * n + (m + n) * side + 8 * side * side),
        // Two bases, and a few blocks on their way into them.
        Some(params) => 4 * (m + n) * (params.max_dimension + 4 * params.block) as u64,
    }
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
