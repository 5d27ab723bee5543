//! Updates of layers with features that are always zero, at sides that the iteration decomposes.

use super::tests::{decomposed, layer};
use super::*;
use crate::constraint::Evidence;
use crate::factors::Strength;
use crate::moments::Moments;
use crate::oracle::jacobi;
use crate::random::gaussian;
use crate::rank::{Limits, Policy};

const OUTPUTS: usize = 700;
const WIDTH: usize = 660;
const LIVE: usize = WIDTH / 12;
/// High enough that the basis of the iteration has more vectors than there are live features.
const RANK: usize = 40;

/// Every twelfth feature is live.
fn live(feature: usize) -> Option<usize> {
    feature.is_multiple_of(12).then_some(feature / 12)
}

fn rows() -> Mat<f32> {
    let core = gaussian::<f32>(300, LIVE, 1, "rows");
    Mat::from_fn(300, WIDTH, |i, j| {
        live(j).map_or(0.0, |t| core[(i, t)] * (1.0 + t as f32 / 5.0) + 1.0 + (t % 3) as f32)
    })
}

fn options(coupling: Coupling, norm: Norm) -> Options {
    Options {
        coupling,
        norm,
        start: Start::Update,
        strength: Strength::MaxShift(0.05),
        ranks: Policy::Fixed(RANK),
        limits: Limits { min: 0, max: RANK, multiple: 1 },
        ..Options::default()
    }
}

/// `X` with `L X = Y`, for the Cholesky factor `L` of a small matrix.
fn solve_with_factor(matrix: &Mat<f64>, y: &Mat<f64>) -> Mat<f64> {
    let n = matrix.nrows();
    let mut l = Mat::<f64>::zeros(n, n);
    for j in 0..n {
        for i in j..n {
            let rest = matrix[(i, j)] - (0..j).map(|t| l[(i, t)] * l[(j, t)]).sum::<f64>();
            l[(i, j)] = if i == j { rest.sqrt() } else { rest / l[(j, j)] };
        }
    }
    let mut x = y.clone();
    for column in 0..x.ncols() {
        for i in 0..n {
            let rest = x[(i, column)] - (0..i).map(|t| l[(i, t)] * x[(t, column)]).sum::<f64>();
            x[(i, column)] = rest / l[(i, i)];
        }
    }
    x
}

/// `Δ F = −W Σ F⁻ᵀ` for independent activations, which is zero outside the live features.
#[test]
fn the_update_is_that_of_the_live_features() {
    let rows = rows();
    let weight = gaussian::<f32>(OUTPUTS, WIDTH, 2, "weight");
    let options = options(Coupling::Uncorrelated, Norm::Activations);
    let target = Moments::of(rows.as_ref()).unwrap();
    let evidence = Evidence { target: &target, source: None, change: None };
    let constraint = Constraint::new(evidence, options.terms(), Par::Seq).unwrap();
    let update = decomposed(evidence, &weight, &options);

    let count = rows.nrows() as f64;
    let x = Mat::from_fn(rows.nrows(), LIVE, |i, t| f64::from(rows[(i, 12 * t)]));
    let mean: Vec<f64> = (0..LIVE).map(|t| x.col(t).iter().sum::<f64>() / count).collect();
    let second = x.transpose() * &x * faer::Scale(1.0 / count);
    let covariance = Mat::from_fn(LIVE, LIVE, |s, t| second[(s, t)] - mean[s] * mean[t]);
    // F of a feature that is always zero is √λ.
    let mut unit = Mat::from_fn(WIDTH, 1, |i, _| f32::from(u8::from(i == 1)));
    constraint.leave_norm(options.norm, unit.as_mut(), Par::Seq);
    let lambda = f64::from(unit[(1, 0)]).powi(-2);
    let damped = Mat::from_fn(LIVE, LIVE, |s, t| second[(s, t)] + if s == t { lambda } else { 0.0 });
    let w = Mat::from_fn(OUTPUTS, LIVE, |i, t| f64::from(weight[(i, 12 * t)]));
    let transposed = solve_with_factor(&damped, &(covariance * w.transpose()));
    let (_, expected, _) = jacobi(transposed.transpose());
    for (i, (found, wanted)) in update.components.sigma.iter().zip(&expected).enumerate() {
        assert!((found / wanted - 1.0).abs() < 1e-3, "singular value {i} is {found} for {wanted}");
    }
    let energy: f64 = expected.iter().map(|s| s * s).sum();
    assert!((update.energy / energy - 1.0).abs() < 0.01, "energy {} for {energy}", update.energy);
    assert!(update.residual < 1e-2, "{}", update.residual);
}

/// The reported shift agrees with the rows, for both couplings and norms.
#[test]
fn the_shift_is_that_of_the_rows() {
    let rows = rows();
    let weight = gaussian::<f32>(OUTPUTS, WIDTH, 2, "weight");
    let target = Moments::of(rows.as_ref()).unwrap();
    let evidence = Evidence { target: &target, source: None, change: None };
    for coupling in [Coupling::Uncorrelated, Coupling::Transport] {
        for norm in [Norm::Activations, Norm::Weights] {
            let options = options(coupling, norm);
            let made = layer(evidence, &weight, &options).unwrap().initialize(RANK).unwrap();
            let outputs = (&weight * rows.transpose()).norm_l2();
            let change = &made.factors.b * (&made.factors.a * rows.transpose());
            let shift = f64::from(change.norm_l2() / outputs);
            assert!(
                (made.shift / shift - 1.0).abs() < 1e-2,
                "{coupling:?}, {norm:?}: {} for {shift}",
                made.shift
            );
            assert!(made.shift > 0.01, "{coupling:?}, {norm:?}: the update is not lost");
        }
    }
}
