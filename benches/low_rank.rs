//! From moments to factors under Criterion: the truncated decomposition against the dense one, the time of a site and of a layer, and the
//! whole job on one layer. See `benches/README.md`.

use cntlora::constraint::Coupling;
use cntlora::initializer::{Initializer, Statistics};
use cntlora::method::Options;
use cntlora::moments::Moments;
use cntlora::rank::{Limits, Policy};
use cntlora::{dense, low_rank, random};
use criterion::{BenchmarkId, Criterion, SamplingMode, criterion_group, criterion_main};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

/// Hidden size of Llama 7B.
const SIDE: usize = 4096;
const RANKS: [usize; 2] = [16, 64];

fn parallel() -> Par {
    Par::rayon(0)
}

/// A square matrix with random singular vectors and the singular values `i^power`.
fn with_spectrum(power: f64) -> Mat<f32> {
    let basis = |name| {
        let gaussian = random::gaussian(SIDE, SIDE, 0, name);
        dense::to_f32(dense::thin_qr("basis", gaussian, parallel()).expect("finite").0.as_ref())
    };
    let (left, right) = (basis("left"), basis("right"));
    let scaled = Mat::from_fn(SIDE, SIDE, |i, j| left[(i, j)] * ((j + 1) as f64).powf(power) as f32);
    dense::product(scaled.as_ref(), right.transpose(), parallel())
}

/// The error must be within 1e-4 of the optimal one.
fn check(matrix: &Mat<f32>, power: f64, rank: usize) {
    let svd = low_rank::truncated_svd(&matrix.as_ref(), rank, 0, "layer", parallel()).expect("finite");
    let scaled = Mat::from_fn(SIDE, rank, |i, j| svd.u[(i, j)] * svd.s[j] as f32);
    let mut rest = matrix.clone();
    matmul(rest.as_mut(), Accum::Add, scaled.as_ref(), svd.v.transpose(), -1.0, parallel());
    let error: f64 = rest.col_iter().flat_map(|column| column.iter()).map(|x| f64::from(*x).powi(2)).sum();
    let optimal: f64 = (rank + 1..=SIDE).map(|i| (i as f64).powf(2.0 * power)).sum();
    let excess = (error / optimal).sqrt() - 1.0;
    assert!(excess < 1e-4, "rank {rank} of i^{power}: {excess:e} above the optimal error");
    eprintln!("rank {rank} of i^{power}: truncation error {excess:.1e} above the optimal one");
}

fn truncated_svd(c: &mut Criterion) {
    let mut group = c.benchmark_group("low_rank");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for power in [-1.0, -0.5] {
        let matrix = with_spectrum(power);
        for rank in RANKS {
            check(&matrix, power, rank);
            group.bench_function(BenchmarkId::new(format!("rank_{rank}"), format!("i^{power}")), |b| {
                b.iter(|| low_rank::truncated_svd(&matrix.as_ref(), rank, 0, "layer", parallel()));
            });
        }
        group.bench_function(BenchmarkId::new("faer_thin_svd", format!("i^{power}")), |b| {
            b.iter(|| dense::thin_svd("matrix", dense::to_f64(matrix.as_ref()).as_ref(), parallel()));
        });
    }
}

/// Activations whose variances decay, about a mean, at a site of this width.
fn moments(width: usize, rows: usize) -> Moments {
    let gaussian = random::gaussian::<f32>(rows, width, 1, "rows");
    let rows = Mat::from_fn(rows, width, |i, j| gaussian[(i, j)] / (1.0 + j as f32).sqrt() + 0.1);
    Moments::of(rows.as_ref()).expect("finite")
}

fn options(coupling: Coupling, rank: usize) -> Options {
    let limits = Limits { min: 0, max: rank, multiple: 1 };
    Options { coupling, ranks: Policy::Fixed(rank), limits, ..Options::default() }
}

/// From moments: the time of a site, and of each of its layers.
fn site_and_layer(c: &mut Criterion) {
    let mut group = c.benchmark_group("moments_ready");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    let moments = moments(SIDE, 2048);
    // Row after row, as in a checkpoint.
    let weight = random::gaussian::<f32>(SIDE, SIDE, 2, "weight");
    let weight = weight.transpose();
    for (name, coupling) in [("uncorrelated", Coupling::Uncorrelated), ("transport", Coupling::Transport)] {
        let initializer = |rank| Initializer::new(options(coupling, rank)).expect("legal options");
        group.bench_function(BenchmarkId::new("site", name), |b| {
            b.iter(|| initializer(16).site(&moments).expect("factored"));
        });
        for rank in RANKS {
            let site = initializer(rank).site(&moments).expect("factored");
            group.bench_function(BenchmarkId::new(format!("layer_rank_{rank}"), name), |b| {
                b.iter(|| site.layer("layer", weight));
            });
        }
    }
}

/// From rows in memory to factors, for one layer of BERT large.
fn whole_job(c: &mut Criterion) {
    const WIDTH: usize = 1024;
    let rows = random::gaussian::<f32>(4096, WIDTH, 3, "rows");
    let weight = random::gaussian::<f32>(WIDTH, WIDTH, 3, "weight");
    let initializer = Initializer::new(options(Coupling::Transport, 16)).expect("legal options");
    let mut group = c.benchmark_group("whole_job");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.bench_function(BenchmarkId::new("rank_16", WIDTH), |b| {
        b.iter(|| {
            let mut statistics = Statistics::new(WIDTH);
            statistics.add(&rows).expect("finite");
            let site = initializer.site(&statistics).expect("factored");
            site.layer("layer", weight.as_ref()).and_then(|layer| layer.factors()).expect("factors")
        });
    });
}

criterion_group!(benches, truncated_svd, site_and_layer, whole_job);
criterion_main!(benches);
