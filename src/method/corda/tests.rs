//! The last triplets where the weight or the activations are ill conditioned, against Jacobi rotations in f64.

use crate::constraint::Evidence;
use crate::dense::{product, thin_qr, to_f64};
use crate::factors::LayerShape;
use crate::method::{Basis, Method, Options};
use crate::moments::Moments;
use crate::oracle::jacobi;
use crate::random::gaussian;
use crate::rank::{Limits, Policy};
use faer::{Mat, Par};

const RANK: usize = 3;

/// `rows × width` with singular values from 1 down to `1 / condition`, evenly spaced in the logarithm.
fn ill_conditioned(rows: usize, width: usize, condition: f64, name: &str) -> Mat<f32> {
    let side = rows.min(width);
    let q = |rows, end: &str| {
        thin_qr("q", gaussian::<f64>(rows, side, 0, &format!("{name} {end}")), Par::Seq).unwrap().0
    };
    let value = |j: usize| condition.powf(-(j as f64) / (side - 1) as f64);
    let left = q(rows, "left");
    let scaled = Mat::from_fn(rows, side, |i, j| left[(i, j)] * value(j));
    crate::dense::to_f32(product(scaled.as_ref(), q(width, "right").transpose(), Par::Seq).as_ref())
}

/// Compares the last singular values of `W C'`, and the product of the factors with `U_r U_rᵀ W`, which it is equal to.
fn check(weight: &Mat<f32>, rows: &Mat<f32>, ridge: f64) {
    let moments = Moments::of(rows.as_ref()).unwrap();
    let options = Options {
        method: Method::CordaKpm,
        start: Method::CordaKpm.starts()[0],
        ridge,
        ranks: Policy::Fixed(RANK),
        limits: Limits { min: 0, max: RANK, multiple: 1 },
        ..Options::default()
    };
    let evidence = Evidence { target: &moments, source: None, change: None };
    let basis = Basis::new(Some(evidence), "site", &options, Par::Seq).unwrap();
    assert_eq!(basis.damping(), Some(ridge), "the damping that was asked for works");
    let draft = basis.decompose(weight.as_ref(), &LayerShape::Linear, "layer", &options, Par::Seq).unwrap();
    let factors = draft.initialize(RANK, &options).unwrap().factors;

    let mut damped = moments.second_moment().unwrap();
    let width = damped.nrows();
    let mean = (0..width).map(|i| damped[(i, i)]).sum::<f64>() / width as f64;
    (0..width).for_each(|i| damped[(i, i)] += ridge * mean);
    let wide = to_f64(weight.as_ref());
    let response = &wide * &damped;
    // The side with fewer columns, so that there are as many triplets as there can be.
    let (left, s) = if response.nrows() <= width {
        let (_, s, left) = jacobi(response.transpose());
        (left, s)
    } else {
        let (left, s, _) = jacobi(response.as_ref());
        (left, s)
    };
    let first = s.len() - RANK;
    let label = format!("{} × {width}, condition {:e}", weight.nrows(), s[0] / s[s.len() - 1]);
    for (found, wanted) in draft.spectrum().iter().zip(&s[first..]) {
        assert!((found / wanted - 1.0).abs() < 1e-5, "{label}: singular value {found:e} for {wanted:e}");
    }
    let last = left.subcols(first, RANK);
    let wanted = last * (last.transpose() * &wide);
    let found = to_f64(factors.b.as_ref()) * to_f64(factors.a.as_ref());
    let error = (&found - &wanted).norm_l2() / wanted.norm_l2();
    assert!(error < 2e-5, "{label}: the product is off by {error:e}");
}

#[test]
fn kpm_with_ill_conditioned_activations() {
    for (condition, ridge) in [(1e4, 1e-2), (1e4, 1e-3), (1e6, 3e-4)] {
        let rows = ill_conditioned(200, 24, condition, "rows");
        for outputs in [20, 24, 40] {
            check(&gaussian(outputs, 24, 1, "weight"), &rows, ridge);
        }
    }
}

#[test]
fn kpm_with_ill_conditioned_weights() {
    let rows = gaussian::<f32>(200, 24, 2, "rows");
    for condition in [1e4, 1e6, 1e8] {
        for outputs in [20, 24, 40] {
            check(&ill_conditioned(outputs, 24, condition, "weight"), &rows, 1e-2);
        }
    }
}

#[test]
fn kpm_with_ill_conditioned_weights_and_activations() {
    let rows = ill_conditioned(200, 24, 1e4, "rows");
    check(&ill_conditioned(20, 24, 1e4, "weight"), &rows, 1e-3);
    check(&ill_conditioned(40, 24, 1e4, "weight"), &rows, 1e-3);
}
