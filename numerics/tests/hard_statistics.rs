//! Statistics that simple numerics get wrong: few rows, small ridges, loud channels. Compared with f64 oracles from the rows, which share
//! no code with the library.

use cntlora_numerics::constraint::{
    ChannelScale, Constraint, Coupling, Evidence, Norm, Shrinkage, SiteOperator, Terms,
};
use cntlora_numerics::factors::{Start, Strength};
use cntlora_numerics::initializer::Initializer;
use cntlora_numerics::method::{Method, Options};
use cntlora_numerics::moments::Moments;
use cntlora_numerics::random::gaussian;
use cntlora_numerics::rank::{Limits, Policy};
use faer::{Mat, Par, Scale, Side};

fn double(matrix: &Mat<f32>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| f64::from(matrix[(i, j)]))
}

fn diagonal(values: &[f64]) -> Mat<f64> {
    Mat::from_fn(values.len(), values.len(), |i, j| if i == j { values[i] } else { 0.0 })
}

/// A function of the eigenvalues of a symmetric matrix.
fn of_eigenvalues(matrix: &Mat<f64>, function: impl Fn(f64) -> f64) -> Mat<f64> {
    let eigen = matrix.self_adjoint_eigen(Side::Lower).unwrap();
    let values: Vec<f64> = eigen.S().column_vector().iter().map(|value| function(value.max(0.0))).collect();
    eigen.U() * diagonal(&values) * eigen.U().transpose()
}

fn power(matrix: &Mat<f64>, exponent: f64) -> Mat<f64> {
    of_eigenvalues(matrix, |value| value.powf(exponent))
}

fn damped(matrix: &Mat<f64>, lambda: f64) -> Mat<f64> {
    matrix + Mat::<f64>::identity(matrix.nrows(), matrix.ncols()) * Scale(lambda)
}

/// Mean of the diagonal.
fn channel(matrix: &Mat<f64>) -> f64 {
    (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum::<f64>() / matrix.nrows() as f64
}

/// Mean, second moment and covariance of rows, in two passes.
struct Sample {
    mean: Mat<f64>,
    second: Mat<f64>,
    covariance: Mat<f64>,
}

impl Sample {
    fn of(rows: &Mat<f32>) -> Self {
        let rows = double(rows);
        let count = rows.nrows() as f64;
        let mean = Mat::from_fn(rows.ncols(), 1, |j, _| rows.col(j).iter().sum::<f64>() / count);
        let centred = Mat::from_fn(rows.nrows(), rows.ncols(), |i, j| rows[(i, j)] - mean[(j, 0)]);
        let second = rows.transpose() * &rows * Scale(1.0 / count);
        Self { mean, second, covariance: centred.transpose() * &centred * Scale(1.0 / count) }
    }
}

/// `K − C`, with the mean of the diagonal as the scale of a channel.
fn change(coupling: Coupling, target: &Sample, source: Option<&Sample>, ridge: f64) -> Mat<f64> {
    let covariance = damped(&target.covariance, ridge * channel(&target.covariance));
    let source_mean = source.map_or(&target.mean, |source| &source.mean);
    let other = match source {
        Some(source) => damped(&source.covariance, ridge * channel(&source.covariance)),
        None => diagonal(&vec![channel(&target.covariance); target.mean.nrows()]),
    };
    let means = source_mean * target.mean.transpose();
    match coupling {
        Coupling::Transport => {
            let (root, inverse) = (power(&covariance, 0.5), power(&covariance, -0.5));
            let middle = power(&(&root * &other * &root), 0.5);
            &inverse * middle * &inverse * &target.covariance + means - &target.second
        }
        _ => means - &target.second,
    }
}

/// The best product of this rank of `W M` in the norm `|· F|`, `F Fᵀ = metric`: `U Uᵀ W M` with the leading left vectors.
fn leading(weighted: &Mat<f64>, metric: &Mat<f64>, rank: usize) -> Mat<f64> {
    let gram = weighted * metric * weighted.transpose();
    let eigen = gram.self_adjoint_eigen(Side::Lower).unwrap();
    let u = eigen.U().subcols(gram.nrows() - rank, rank);
    u * (u.transpose() * weighted)
}

fn distance(found: &Mat<f64>, wanted: &Mat<f64>) -> f64 {
    (found - wanted).norm_l2() / wanted.norm_l2()
}

const RANK: usize = 4;

fn options(method: Method, coupling: Coupling, ridge: f64) -> Options {
    Options {
        method,
        coupling,
        ridge,
        channel_scale: ChannelScale::Mean,
        strength: Strength::Fixed(1.0),
        start: if method == Method::Cntlora { Start::Update } else { Start::Residual },
        ranks: Policy::Fixed(RANK),
        limits: Limits { min: 0, max: RANK, multiple: 1 },
        ..Options::default()
    }
}

fn product(evidence: Evidence<'_>, weight: &Mat<f32>, options: &Options) -> Mat<f64> {
    let site = Initializer::new(options.clone()).unwrap().site(evidence).unwrap();
    let factors = site.layer("w", weight.as_ref()).unwrap().factors().unwrap();
    double(&factors.b) * double(&factors.a)
}

/// Rows with a decaying spectrum, in general directions.
fn rows(count: usize, width: usize, seed: u64) -> Mat<f32> {
    let mixing = gaussian::<f32>(width, width, seed, "mixing") * Scale(1.0 / (width as f32).sqrt());
    let plain = gaussian::<f32>(count, width, seed, "rows");
    let scaled = Mat::from_fn(count, width, |i, j| plain[(i, j)] / (1.0 + j as f32 / 8.0).sqrt());
    let offset = gaussian::<f32>(1, width, seed, "offset");
    let mixed = scaled * mixing;
    Mat::from_fn(count, width, |i, j| mixed[(i, j)] + 0.1 * offset[(0, j)])
}

/// A weight with well separated leading directions.
fn weight(outputs: usize, width: usize) -> Mat<f32> {
    let plain = gaussian::<f32>(outputs, width, 3, "weight");
    Mat::from_fn(outputs, width, |i, j| plain[(i, j)] * 0.7f32.powi(i as i32))
}

const WIDTH: usize = 256;

/// Directions that no row has do not contribute, for every small ridge. With the noise of the sums in them, the error of the product was
/// 41 % at a ridge of 1e-4, and 5600-fold at 1e-6.
#[test]
fn few_rows_with_a_small_ridge_do_not_amplify_noise() {
    let (target, source) = (rows(90, WIDTH, 1), rows(70, WIDTH, 2));
    let weight = weight(40, WIDTH);
    let (x, z) = (Moments::of(target.as_ref()).unwrap(), Moments::of(source.as_ref()).unwrap());
    let (sample, other) = (Sample::of(&target), Sample::of(&source));
    let mut report = String::new();
    let mut worst = 0.0f64;
    for ridge in [1e-2, 1e-3, 1e-4, 1e-6] {
        let metric = damped(&sample.second, ridge * channel(&sample.second));
        for coupling in [Coupling::Uncorrelated, Coupling::Transport] {
            for measured in [false, true] {
                let change = change(coupling, &sample, measured.then_some(&other), ridge);
                let update = double(&weight) * change * power(&metric, -1.0);
                let wanted = leading(&update, &metric, RANK);
                let evidence = Evidence { target: &x, source: measured.then_some(&z), change: None };
                let found = product(evidence, &weight, &options(Method::Cntlora, coupling, ridge));
                let error = distance(&found, &wanted);
                report += &format!("{coupling:?}, source {measured}, ridge {ridge:e}: {error:.1e}\n");
                worst = worst.max(error);
            }
        }
        let evidence = Evidence { target: &x, source: None, change: None };
        let found = product(evidence, &weight, &options(Method::CordaIpm, Coupling::Uncorrelated, ridge));
        let wanted = leading(&double(&weight), &(&metric * &metric), RANK);
        let error = distance(&found, &wanted);
        report += &format!("corda-ipm, ridge {ridge:e}: {error:.1e}\n");
        worst = worst.max(error);
    }
    println!("{report}");
    assert!(worst < 3e-3, "{report}");
}

/// Rows whose first channels are a thousand times as loud, with a weight that compensates for it, as in real models.
fn with_loud_channels(rows: &Mat<f32>, weight: &Mat<f32>, loud: usize) -> (Mat<f32>, Mat<f32>) {
    let gain = |j: usize| if j < loud { 1000.0 } else { 1.0 };
    (
        Mat::from_fn(rows.nrows(), rows.ncols(), |i, j| rows[(i, j)] * gain(j)),
        Mat::from_fn(weight.nrows(), weight.ncols(), |i, j| weight[(i, j)] / gain(j)),
    )
}

/// Ordinary channels get the same update with and without loud channels. With the mean as the scale of a channel they kept less than a
/// third of it.
#[test]
fn loud_channels_do_not_change_ordinary_ones() {
    const LOUD: usize = 4;
    let (x, w) = (rows(2000, WIDTH, 5), weight(40, WIDTH));
    let of = |coupling, channel_scale, loud| {
        let (x, w) = with_loud_channels(&x, &w, loud);
        let moments = Moments::of(x.as_ref()).unwrap();
        let evidence = Evidence { target: &moments, source: None, change: None };
        let options = Options { channel_scale, ..options(Method::Cntlora, coupling, 0.01) };
        let product = product(evidence, &w, &options);
        product.subcols(LOUD, WIDTH - LOUD).to_owned()
    };
    for coupling in [Coupling::Uncorrelated, Coupling::Transport] {
        let wanted = of(coupling, ChannelScale::Median, 0);
        for loud in [1, LOUD] {
            let median = distance(&of(coupling, ChannelScale::Median, loud), &wanted);
            let mean = distance(&of(coupling, ChannelScale::Mean, loud), &wanted);
            println!("{coupling:?}, {loud} loud channels: median {median:.3}, mean {mean:.3}");
            // The transport also removes the correlation between loud and ordinary channels.
            let tolerance = if coupling == Coupling::Transport { 0.2 } else { 0.05 };
            assert!(median < tolerance, "{coupling:?}, {loud}: {median}");
            assert!(mean > 0.5, "{coupling:?}, {loud}: {mean}");
        }
    }
}

/// White rows need no transport: the update is only the noise of few rows. Shrinkage removes most of it.
#[test]
fn shrinkage_removes_noise_from_the_update() {
    for count in [WIDTH, 4 * WIDTH] {
        let moments = Moments::of(gaussian::<f32>(count, WIDTH, 7, "rows").as_ref()).unwrap();
        let evidence = Evidence { target: &moments, source: None, change: None };
        let size = |shrinkage| {
            let terms = Terms { shrinkage, ..options(Method::Cntlora, Coupling::Transport, 0.01).terms() };
            let constraint = Constraint::new(evidence, terms, Par::Seq).unwrap();
            let unit = Mat::<f32>::identity(WIDTH, WIDTH);
            let update = constraint.apply(Norm::Weights, unit.as_ref(), Par::Seq);
            // Rows are white: the mean square of `Δ x` per channel.
            update.norm_l2() / (WIDTH as f32).sqrt()
        };
        let (plain, shrunk) = (size(Shrinkage::None), size(Shrinkage::Oas));
        println!("{count} rows of width {WIDTH}: {plain:.3}, shrunk {shrunk:.3}");
        assert!(shrunk < 0.25 * plain, "{count} rows: {plain} and {shrunk}");
    }
}

/// The shrinkage, from the formula of Oracle Approximating Shrinkage and the correlations of the rows.
#[test]
fn shrinkage_is_that_of_the_formula() {
    let (count, width) = (30, 12);
    let x = rows(count, width, 9);
    let sample = Sample::of(&x);
    let deviation = |i: usize| sample.covariance[(i, i)].sqrt();
    let correlation =
        Mat::from_fn(width, width, |i, j| sample.covariance[(i, j)] / (deviation(i) * deviation(j)));
    let (n, p) = (count as f64, width as f64);
    let (trace, square) = (p, correlation.squared_norm_l2());
    let share =
        ((1.0 - 2.0 / p) * square + trace * trace) / ((n + 1.0 - 2.0 / p) * (square - trace * trace / p));
    assert!(share > 0.05 && share < 0.95, "{share}");
    let shrunk =
        Mat::from_fn(width, width, |i, j| sample.covariance[(i, j)] * if i == j { 1.0 } else { 1.0 - share });
    let second = &shrunk + &sample.mean * sample.mean.transpose();
    let wanted = (&shrunk * Scale(-1.0)) * power(&damped(&second, 0.01 * channel(&second)), -1.0);
    let moments = Moments::of(x.as_ref()).unwrap();
    let terms =
        Terms { shrinkage: Shrinkage::Oas, ..options(Method::Cntlora, Coupling::Uncorrelated, 0.01).terms() };
    let evidence = Evidence { target: &moments, source: None, change: None };
    let constraint = Constraint::new(evidence, terms, Par::Seq).unwrap();
    let unit = Mat::<f32>::identity(width, width);
    let found = double(&constraint.apply(Norm::Weights, unit.as_ref(), Par::Seq));
    assert!(distance(&found, &wanted) < 1e-4, "{}", distance(&found, &wanted));
}
