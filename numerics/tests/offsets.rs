//! Activations far from zero, and pairs that are close together: the products agree with plain computations in f64.

use cntlora_numerics::constraint::{ChannelScale, Coupling, Evidence};
use cntlora_numerics::factors::{Start, Strength};
use cntlora_numerics::initializer::Initializer;
use cntlora_numerics::method::{Method, Options};
use cntlora_numerics::moments::{Moments, PairedMoments, Sides};
use cntlora_numerics::random::gaussian;
use cntlora_numerics::rank::{Limits, Policy};
use cntlora_numerics::simd::{BLOCK_ROWS, Rows, Values, Workspace};
use faer::linalg::solvers::Solve;
use faer::{Mat, Par, Scale, Side};

const ROWS: usize = 3000;
const WIDTH: usize = 24;
const OUTPUTS: usize = 16;
const RANK: usize = 4;
/// Damping that is so weak that it hardly affects the result.
const RIDGE: f64 = 1e-8;

/// Correlated channels of deviations from 0.4 to 2, each with a mean of about 100.
fn far_from_zero() -> Mat<f32> {
    let mixing = gaussian::<f64>(WIDTH, WIDTH, 1, "mixing") * Scale(0.1);
    let rows = gaussian::<f64>(ROWS, WIDTH, 1, "rows") * (mixing + Mat::<f64>::identity(WIDTH, WIDTH));
    Mat::from_fn(ROWS, WIDTH, |i, j| {
        let scale = 0.4 + 1.6 * j as f64 / WIDTH as f64;
        (rows[(i, j)] * scale + if j % 2 == 0 { 100.0 } else { -100.0 }) as f32
    })
}

fn double(matrix: &Mat<f32>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| f64::from(matrix[(i, j)]))
}

/// `E[a bᵀ]` over corresponding rows.
fn mean_product(a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
    a.transpose() * b * Scale(1.0 / a.nrows() as f64)
}

fn covariance(rows: &Mat<f64>) -> Mat<f64> {
    let mean: Vec<f64> = (0..rows.ncols()).map(|j| rows.col(j).sum() / rows.nrows() as f64).collect();
    let centred = Mat::from_fn(rows.nrows(), rows.ncols(), |i, j| rows[(i, j)] - mean[j]);
    mean_product(&centred, &centred)
}

fn trace_mean(matrix: &Mat<f64>) -> f64 {
    (0..matrix.nrows()).map(|i| matrix[(i, i)]).sum::<f64>() / matrix.nrows() as f64
}

fn damped(matrix: &Mat<f64>) -> Mat<f64> {
    matrix + Mat::<f64>::identity(matrix.nrows(), matrix.nrows()) * Scale(RIDGE * trace_mean(matrix))
}

/// The product of rank [`RANK`] that is nearest to `W (K − C) (C + λ I)⁻¹` in the norm of the outputs, from `K − C`.
fn plain_product(rows: &Mat<f64>, weight: &Mat<f64>, change: &Mat<f64>) -> Mat<f64> {
    let second = damped(&mean_product(rows, rows));
    let factor = second.llt(Side::Lower).unwrap();
    // W (K − C) G⁻ᵀ, from its transpose.
    let mut image = (weight * change).transpose().to_owned();
    faer::linalg::triangular_solve::solve_lower_triangular_in_place(factor.L(), image.as_mut(), Par::Seq);
    let svd = image.thin_svd().unwrap();
    let left = svd.V().subcols(0, RANK);
    let update = second.llt(Side::Lower).unwrap().solve((weight * change).transpose()).transpose().to_owned();
    left * (left.transpose() * update)
}

/// The product of the method's own factors.
fn product(evidence: Evidence<'_>, weight: &Mat<f32>, coupling: Coupling) -> Mat<f64> {
    let options = Options {
        coupling,
        ridge: RIDGE,
        strength: Strength::Fixed(1.0),
        start: Start::Update,
        ranks: Policy::Fixed(RANK),
        limits: Limits { min: 0, max: RANK, multiple: 1 },
        channel_scale: ChannelScale::Mean,
        ..Options::default()
    };
    let site = Initializer::new(options).unwrap().site(evidence).unwrap();
    let factors = site.layer("layer", weight.as_ref()).unwrap().factors().unwrap();
    double(&factors.b) * double(&factors.a)
}

fn assert_near(found: &Mat<f64>, wanted: &Mat<f64>, tolerance: f64) {
    let error = (found - wanted).norm_l2() / wanted.norm_l2();
    println!("{error:.1e}");
    assert!(error < tolerance, "{error:e}");
}

fn check_offset(coupling: Coupling, change: impl Fn(&Mat<f64>) -> Mat<f64>) {
    let (x, weight) = (far_from_zero(), gaussian::<f32>(OUTPUTS, WIDTH, 1, "weight"));
    let target = Moments::of(x.as_ref()).unwrap();
    let evidence = Evidence { target: &target, source: None, change: None };
    let x = double(&x);
    let wanted = plain_product(&x, &double(&weight), &change(&covariance(&x)));
    assert_near(&product(evidence, &weight, coupling), &wanted, 1e-4);
}

#[test]
fn uncorrelated_at_means_of_100_deviations() {
    check_offset(Coupling::Uncorrelated, |covariance| covariance * Scale(-1.0));
}

/// `T Σ − Σ` with `T = √v (Σ + λ I)^-½`.
#[test]
fn transport_at_means_of_100_deviations() {
    check_offset(Coupling::Transport, |covariance| {
        let eigen = damped(covariance).self_adjoint_eigen(Side::Lower).unwrap();
        let (values, vectors) = (eigen.S().column_vector(), eigen.U());
        let variance = trace_mean(covariance);
        let scaled = Mat::from_fn(WIDTH, WIDTH, |i, j| vectors[(i, j)] * (variance / values[j]).sqrt());
        scaled * vectors.transpose() * covariance - covariance
    });
}

/// The space of EVA's directions is that of the leading eigenvectors of the covariance.
#[test]
fn eva_at_means_of_100_deviations() {
    let x = far_from_zero();
    let options = Options {
        method: Method::Eva,
        start: Start::Zero,
        ranks: Policy::Fixed(RANK),
        limits: Limits { min: 0, max: RANK, multiple: 1 },
        channel_scale: ChannelScale::Mean,
        ..Options::default()
    };
    let moments = Moments::of(x.as_ref()).unwrap();
    let site = Initializer::new(options).unwrap().site(&moments).unwrap();
    let weight = gaussian::<f32>(OUTPUTS, WIDTH, 1, "weight");
    let rows = double(&site.layer("layer", weight.as_ref()).unwrap().factors().unwrap().a);
    let eigen = covariance(&double(&x)).self_adjoint_eigen(Side::Lower).unwrap();
    let leading = eigen.U().subcols(WIDTH - RANK, RANK);
    assert_near(&(rows.transpose() * &rows), &(leading * leading.transpose()), 1e-4);
}

/// The product of pairs is that of their differences, for pairs that are very close.
#[test]
fn paired_rows_that_are_close() {
    let x = gaussian::<f64>(ROWS, WIDTH, 2, "x");
    let toward = gaussian::<f64>(WIDTH, WIDTH, 2, "toward") * Scale(1.0 / (WIDTH as f64).sqrt());
    let moved = &x * toward + gaussian::<f64>(ROWS, WIDTH, 2, "noise") * Scale(0.3);
    let x = Mat::from_fn(ROWS, WIDTH, |i, j| x[(i, j)] + if j % 3 == 0 { 2.0 } else { 0.0 });
    let weight = gaussian::<f32>(OUTPUTS, WIDTH, 2, "weight");
    for distance in [1e-2, 1e-3, 1e-4, 1e-5, 1e-6] {
        let difference = &moved * Scale(distance);
        let pairs: Vec<f64> = (0..ROWS)
            .flat_map(|i| (0..2 * WIDTH).map(move |j| (i, j)))
            .map(|(i, j)| if j < WIDTH { difference[(i, j)] } else { x[(i, j - WIDTH)] })
            .collect();
        let mut moments = PairedMoments::new(WIDTH);
        for pairs in pairs.chunks(BLOCK_ROWS * 2 * WIDTH) {
            let (rows, width) = (pairs.len() / (2 * WIDTH), 2 * WIDTH);
            let rows = Rows { values: Values::F64(pairs), rows, width, stride: width };
            moments.add(rows, &mut Workspace::default(), 1).unwrap();
        }
        let Sides { source, target, change } = moments.split().unwrap();
        let evidence = Evidence { target: &target, source: Some(&source), change: Some(change.as_ref()) };
        let wanted = plain_product(&x, &double(&weight), &mean_product(&difference, &x));
        assert_near(&product(evidence, &weight, Coupling::Paired), &wanted, 1e-5);
        let z = &x + &difference;
        assert_near(&source.covariance().unwrap(), &covariance(&z), 1e-6);
        assert_near(&source.second_moment().unwrap(), &mean_product(&z, &z), 1e-6);
    }
}
