//! Differences and truncations of products of factors, without forming the products.

use super::Factors;
use crate::dense;
use crate::error::Result;
use faer::{Mat, MatRef, Par};

/// `B A − B₀ A₀` as one pair of factors: `[B, −B₀]` and `[A; A₀]`. Exact; the rank is the sum of both ranks.
///
/// # Panics
/// If the products have different shapes.
pub fn difference(trained: &Factors, initial: &Factors) -> Factors {
    let (outputs, inputs) = (trained.b.nrows(), trained.a.ncols());
    assert_eq!((outputs, inputs), (initial.b.nrows(), initial.a.ncols()), "products of two shapes");
    let rank = trained.a.nrows();
    let both = rank + initial.a.nrows();
    Factors {
        a: Mat::from_fn(
            both,
            inputs,
            |i, j| {
                if i < rank { trained.a[(i, j)] } else { initial.a[(i - rank, j)] }
            },
        ),
        b: Mat::from_fn(
            outputs,
            both,
            |i, j| {
                if j < rank { trained.b[(i, j)] } else { -initial.b[(i, j - rank)] }
            },
        ),
    }
}

/// The best approximation of `B A` of this rank in the Frobenius norm, with balanced factors, and the share of `|B A|²` that it
/// keeps; 1 for a product of zero. A rank above that of the product gives factors of the product's own rank.
///
/// # Errors
/// [`Error::NonFinite`](crate::error::Error::NonFinite), [`Error::NoConvergence`](crate::error::Error::NoConvergence).
pub fn truncated(factors: &Factors, rank: usize) -> Result<(Factors, f64)> {
    let (b, b_core) = basis("the up matrix", factors.b.as_ref())?;
    let (a, a_core) = basis("the down matrix", factors.a.transpose())?;
    let core = dense::product(b_core.as_ref(), a_core.transpose(), Par::Seq);
    let small = dense::thin_svd("the core of the product", core.as_ref(), Par::Seq)?;
    let rank = rank.min(small.s.len());
    let energy = |sigma: &[f64]| sigma.iter().map(|sigma| sigma * sigma).sum::<f64>();
    let (kept, whole) = (energy(&small.s[..rank]), energy(&small.s));
    let root = |i: usize| small.s[i].sqrt();
    let (u, v) = (
        dense::product(b.as_ref(), small.u.as_ref(), Par::Seq),
        dense::product(a.as_ref(), small.v.as_ref(), Par::Seq),
    );
    let factors = Factors {
        a: Mat::from_fn(rank, v.nrows(), |i, j| (root(i) * v[(j, i)]) as f32),
        b: Mat::from_fn(u.nrows(), rank, |i, j| (u[(i, j)] * root(j)) as f32),
    };
    Ok((factors, if whole > 0.0 { kept / whole } else { 1.0 }))
}

/// A thin matrix as `Q R`, where `Q` has no more columns than rows.
fn basis(what: &'static str, matrix: MatRef<'_, f32>) -> Result<(Mat<f64>, Mat<f64>)> {
    let (rows, columns) = matrix.shape();
    let matrix = Mat::from_fn(rows, columns, |i, j| f64::from(matrix[(i, j)]));
    dense::check_finite(what, matrix.as_ref())?;
    if columns > rows {
        return Ok((Mat::identity(rows, rows), matrix));
    }
    Ok(dense::thin_qr(what, matrix, Par::Seq)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::gaussian;
    use quickcheck::quickcheck;

    fn pair(outputs: usize, inputs: usize, rank: usize, seed: u64) -> Factors {
        Factors { a: gaussian(rank, inputs, seed, "a"), b: gaussian(outputs, rank, seed, "b") }
    }

    fn product(factors: &Factors) -> Mat<f32> {
        &factors.b * &factors.a
    }

    quickcheck! {
        /// The oracle is the decomposition of the formed product. Ranks above the sides of the layer occur.
        fn differences_and_their_cuts_are_the_best(outputs: u8, inputs: u8, ranks: (u8, u8, u8), seed: u64) -> bool {
            let (outputs, inputs) = (usize::from(outputs % 9) + 1, usize::from(inputs % 9) + 1);
            let [one, two, cut] = [ranks.0, ranks.1, ranks.2].map(|rank| usize::from(rank % 6) + 1);
            let (trained, initial) = (pair(outputs, inputs, one, seed), pair(outputs, inputs, two, seed ^ 1));
            let both = difference(&trained, &initial);
            let formed = product(&trained) - product(&initial);
            let (short, kept) = truncated(&both, cut).unwrap();
            let full = dense::thin_svd("formed", dense::to_f64(formed.as_ref()).as_ref(), Par::Seq).unwrap();
            let energy = |sigma: &[f64]| sigma.iter().map(|sigma| sigma * sigma).sum::<f64>();
            let tail = energy(&full.s[cut.min(full.s.len())..]);
            let error = f64::from((product(&short) - &formed).norm_l2()).powi(2);
            let balance = (short.b.transpose() * &short.b - &short.a * short.a.transpose()).norm_max();
            (product(&both) - &formed).norm_max() < 1e-4
                && (error - tail).abs() < 1e-3
                && (kept * energy(&full.s) - (energy(&full.s) - tail)).abs() < 1e-3
                && balance < 1e-3
        }
    }

    #[test]
    fn a_product_of_zero_is_kept_whole() {
        let zero = Factors { a: gaussian(2, 5, 0, "a"), b: Mat::zeros(4, 2) };
        let (short, kept) = truncated(&zero, 1).unwrap();
        assert_eq!((product(&short).norm_max(), kept), (0.0, 1.0));
    }
}
