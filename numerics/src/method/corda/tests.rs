//! The last triplets of ill-conditioned weights and activations, against Jacobi rotations in f64.

use crate::constraint::Evidence;
use crate::dense::{product, to_f64};
use crate::initializer::Initializer;
use crate::method::{Method, Options};
use crate::moments::Moments;
use crate::oracle::{jacobi, orthonormal};
use crate::random::gaussian;
use crate::rank::{Limits, Policy};
use faer::{Mat, Par};

const RANK: usize = 3;

/// `rows × width` with singular values from 1 down to `1 / condition`, evenly spaced in the logarithm.
fn ill_conditioned(rows: usize, width: usize, condition: f64, name: &str) -> Mat<f32> {
    let side = rows.min(width);
    let q = |rows, end: &str| orthonormal(rows, side, 0, &format!("{name} {end}"));
    let value = |j: usize| condition.powf(-(j as f64) / (side - 1) as f64);
    let left = q(rows, "left");
    let scaled = Mat::from_fn(rows, side, |i, j| left[(i, j)] * value(j));
    crate::dense::to_f32(product(scaled.as_ref(), q(width, "right").transpose(), Par::Seq).as_ref())
}

/// `C`, without eigenvalues of the correlations below the rounding errors of f32 sums: `4 ε √d`.
fn without_noise(moments: &Moments) -> Mat<f64> {
    let (mean, covariance) = (moments.mean().unwrap(), moments.covariance().unwrap());
    let width = covariance.nrows();
    let deviation = |i: usize| covariance[(i, i)].sqrt();
    let correlation = Mat::from_fn(width, width, |i, j| covariance[(i, j)] / (deviation(i) * deviation(j)));
    let (vectors, values, _) = jacobi(correlation.as_ref());
    let noise = 4.0 * f64::from(f32::EPSILON) * (width as f64).sqrt();
    let entry = |i: usize, j: usize| -> f64 {
        let part =
            |k: usize| if values[k] > noise { vectors[(i, k)] * values[k] * vectors[(j, k)] } else { 0.0 };
        (0..width).map(part).sum()
    };
    Mat::from_fn(width, width, |i, j| deviation(i) * deviation(j) * entry(i, j) + mean[i] * mean[j])
}

/// Compares the last singular values of `W C'`, and the product of the factors with `U_r U_rᵀ W`. They are equal.
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
    let site = Initializer::new(options.clone()).unwrap().site(evidence).unwrap();
    assert_eq!(site.dampings()[0].1, ridge, "the damping that was asked for works");
    let draft = site.layer("layer", weight.as_ref()).unwrap().into_draft();
    let factors = draft.initialize(RANK, &options).unwrap().factors;

    // If the ridge is far above the noise, nothing is removed.
    let mut damped = if ridge < 1e-4 { without_noise(&moments) } else { moments.second_moment().unwrap() };
    let width = damped.nrows();
    let mean = (0..width).map(|i| damped[(i, i)]).sum::<f64>() / width as f64;
    (0..width).for_each(|i| damped[(i, i)] += ridge * mean);
    let wide = to_f64(weight.as_ref());
    let response = &wide * &damped;
    // The side with fewer columns, so that there are as many triplets as possible.
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
    for (condition, ridge) in [(1e4, 1e-2), (1e4, 1e-3), (1e6, 3e-4), (1e6, 1e-6)] {
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

/// Activations of any size give the same product, because matrices in f32 are divided by their scale. The sides are above those of dense
/// decompositions.
#[test]
fn ipm_of_any_scale() {
    let (width, outputs) = (600, 620);
    let rows = gaussian::<f32>(900, width, 3, "rows");
    let weight = gaussian::<f32>(outputs, width, 4, "weight");
    let product = |scale: f32| {
        let rows = Mat::from_fn(900, width, |i, j| scale * rows[(i, j)]);
        let moments = Moments::of(rows.as_ref()).unwrap();
        let options = Options {
            method: Method::CordaIpm,
            start: Method::CordaIpm.starts()[0],
            ranks: Policy::Fixed(RANK),
            limits: Limits { min: 0, max: 2 * RANK, multiple: 1 },
            ..Options::default()
        };
        let evidence = Evidence { target: &moments, source: None, change: None };
        let site = Initializer::new(options.clone()).unwrap().site(evidence).unwrap();
        let draft = site.layer("layer", weight.as_ref()).unwrap().into_draft();
        let square = f64::from(scale) * f64::from(scale);
        let spectrum: Vec<f64> = draft.spectrum().iter().map(|s| s / square).collect();
        let factors = draft.initialize(2 * RANK, &options).unwrap().factors;
        (spectrum, draft.energy() / square.powi(2), factors)
    };
    let (spectrum, energy, factors) = product(1.0);
    for exponent in [-56, 36] {
        let (s, e, f) = product((exponent as f32).exp2());
        assert_eq!((&s, f.a, f.b), (&spectrum, factors.a.clone(), factors.b.clone()), "2^{exponent}");
        assert!((e / energy - 1.0).abs() < 1e-12, "2^{exponent}: {e} and {energy}");
    }
}
