//! Against the eigendecomposition, and against definitions in plain loops.

use super::*;
use crate::tests::{difference, matrix};
use quickcheck::quickcheck;

/// A positive semidefinite matrix with eigenvalues of this order of decay, and zeros after the first `rank`.
fn with_eigenvalues(size: usize, rank: usize, decay: f64, seed: u64) -> Mat<f64> {
    let (q, _) = crate::thin_qr("basis", matrix(size, rank, seed), Par::Seq).unwrap();
    let scaled = Mat::from_fn(size, rank, |i, j| q[(i, j)] * ((j + 1) as f64).powf(-decay));
    &scaled * q.transpose()
}

/// `f(A)` from all eigenvalues.
fn by_eigenvalues(a: &Mat<f64>, f: impl Fn(f64) -> f64) -> Mat<f64> {
    let (values, vectors) = self_adjoint_eigen("a", a.as_ref(), Par::Seq).unwrap();
    let scaled = Mat::from_fn(a.nrows(), a.ncols(), |i, j| vectors[(i, j)] * f(values[j]));
    &scaled * vectors.transpose()
}

const FRACTIONS: [Fraction; 3] = [
    Fraction { shift: 0.01, coefficient: 0.5 },
    Fraction { shift: 0.3, coefficient: -2.0 },
    Fraction { shift: 7.0, coefficient: 1.0 },
];

fn value(x: f64) -> f64 {
    0.25 + FRACTIONS.iter().map(|Fraction { shift, coefficient }| coefficient / (x + shift)).sum::<f64>()
}

/// Every shape of the last block, blocks that are alone, and widths of several strips.
#[test]
fn functions_agree_with_the_eigenvalues() {
    for size in [1, 2, 63, 64, 65, 128, 129, 200, 256, 300, 577, 700] {
        for decay in [0.0, 1.0, 4.0] {
            let a = with_eigenvalues(size, size, decay, 3);
            let reduced = BlockTridiagonal::reduce("a", a.clone(), 0.0, Par::Seq).unwrap();
            assert_eq!(reduced.order(), size);
            let found = reduced.partial_fractions(0.25, &FRACTIONS, Par::Seq).unwrap().unwrap();
            let wanted = by_eigenvalues(&a, value);
            let off = difference(found.as_ref(), wanted.as_ref());
            assert!(off < 1e-10, "{size}, {decay}: {off:e}");
            assert_eq!(found, found.transpose().to_owned(), "{size}: it is symmetric");
        }
    }
}

quickcheck! {
    /// Counts are those of the eigenvalues, and no eigenvalue is above the bound.
    fn eigenvalues_are_counted(size: u8, decay: u8, seed: u64) -> bool {
        let size = usize::from(size) + 1;
        let a = with_eigenvalues(size, size, f64::from(decay % 3), seed);
        let (values, _) = self_adjoint_eigen("a", a.as_ref(), Par::Seq).unwrap();
        let reduced = BlockTridiagonal::reduce("a", a, 0.0, Par::Seq).unwrap();
        [-0.5, 1e-3, 0.01, 0.07, 0.4, 2.0].into_iter().all(|limit| {
            // An eigenvalue that is the limit, apart from rounding, may be on either side.
            let near = values.iter().filter(|value| (*value - limit).abs() < 1e-12).count();
            let below = values.iter().filter(|value| **value < limit - 1e-12).count();
            (below..=below + near).contains(&reduced.count_below(limit).unwrap())
                && (near > 0 || reduced.is_above(limit) == (below == 0))
        }) && values[size - 1] <= reduced.bound() * (1.0 + 1e-12)
    }
}

/// A rest of noise ends the reduction early, with the rank of the matrix and at most two blocks more, and the function is that of the
/// matrix without noise.
#[test]
fn noise_of_low_rank_is_left_out() {
    for rank in [0, 1, 100, 128, 200] {
        let size = 500;
        let clean = with_eigenvalues(size, rank, 0.5, 5);
        let noise = matrix(size, size, 9);
        let a = Mat::from_fn(size, size, |i, j| clean[(i, j)] + 1e-9 * (noise[(i, j)] + noise[(j, i)]));
        let reduced = BlockTridiagonal::reduce("a", a, 1e-6, Par::Seq).unwrap();
        assert!(
            reduced.order() <= rank + 2 * BLOCK && reduced.order() >= rank,
            "{rank}: {}",
            reduced.order()
        );
        // f(0) = 0
        let constant = -FRACTIONS.iter().map(|fraction| fraction.coefficient / fraction.shift).sum::<f64>();
        let found = reduced.partial_fractions(constant, &FRACTIONS, Par::Seq).unwrap().unwrap();
        let wanted = by_eigenvalues(&clean, |x| value(x) - 0.25 + constant);
        let off = difference(found.as_ref(), wanted.as_ref());
        assert!(off < 1e-4, "{rank}: {off:e}");
    }
}

/// A small coupling alone does not end the reduction: here it leads to a rest with large eigenvalues.
#[test]
fn a_rest_that_is_not_negligible_is_kept() {
    let size = 400;
    let parts =
        [with_eigenvalues(BLOCK, BLOCK, 0.0, 1), with_eigenvalues(size - BLOCK, size - BLOCK, 1.0, 2)];
    let a = Mat::from_fn(size, size, |i, j| match (i < BLOCK, j < BLOCK) {
        (true, true) => parts[0][(i, j)],
        (false, false) => parts[1][(i - BLOCK, j - BLOCK)],
        _ => 0.0,
    });
    let reduced = BlockTridiagonal::reduce("a", a.clone(), 1e-6, Par::Seq).unwrap();
    assert_eq!(reduced.order(), size);
    let found = reduced.partial_fractions(0.25, &FRACTIONS, Par::Seq).unwrap().unwrap();
    assert!(difference(found.as_ref(), by_eigenvalues(&a, value).as_ref()) < 1e-10);
}

/// The number of threads does not change a bit of the result: only the number of parts could.
#[test]
fn threads_do_not_change_the_result() {
    let a = with_eigenvalues(900, 900, 1.0, 4);
    let result = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let reduced = BlockTridiagonal::reduce("a", a.clone(), 0.0, Par::rayon(16)).unwrap();
            reduced.partial_fractions(0.25, &FRACTIONS, Par::rayon(16)).unwrap().unwrap()
        })
    };
    let one = result(1);
    assert!([2, 3, 7].into_iter().all(|threads| result(threads) == one));
}

/// A shift that leaves an eigenvalue negative gives no result; NaN and infinity are refused.
#[test]
fn what_has_no_result_is_refused() {
    let a = with_eigenvalues(150, 150, 1.0, 1);
    let reduced = BlockTridiagonal::reduce("a", a.clone(), 0.0, Par::Seq).unwrap();
    let negative = [Fraction { shift: -0.5, coefficient: 1.0 }];
    assert!(reduced.partial_fractions(0.0, &negative, Par::Seq).unwrap().is_none());
    for bad in [f64::NAN, f64::INFINITY] {
        let mut a = a.clone();
        a[(120, 100)] = bad;
        let refused = BlockTridiagonal::reduce("a", a, 0.0, Par::Seq).unwrap_err();
        assert_eq!(refused, Error::NonFinite { what: "a" });
    }
    let huge = Mat::from_fn(150, 150, |i, j| if i == j { 1e300 } else { 1e299 });
    assert!(BlockTridiagonal::reduce("a", huge, 0.0, Par::Seq).is_ok_and(|reduced| reduced.bound() >= 1e300));
}

/// Columns of zeros, as of channels that are always zero, and matrices that are diagonal or zero.
#[test]
fn zeros_are_legal() {
    let plain = with_eigenvalues(300, 300, 1.0, 7);
    let is_dead = |i: usize| i.is_multiple_of(3) || (70..140).contains(&i);
    let zeros = Mat::from_fn(300, 300, |i, j| if is_dead(i) || is_dead(j) { 0.0 } else { plain[(i, j)] });
    let diagonal = Mat::from_fn(300, 300, |i, j| if i == j { (i % 5) as f64 } else { 0.0 });
    for a in [zeros, diagonal, Mat::zeros(300, 300)] {
        let reduced = BlockTridiagonal::reduce("a", a.clone(), 0.0, Par::Seq).unwrap();
        let found = reduced.partial_fractions(0.25, &FRACTIONS, Par::Seq).unwrap().unwrap();
        assert!(difference(found.as_ref(), by_eigenvalues(&a, value).as_ref()) < 1e-10);
    }
}
