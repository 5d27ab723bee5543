//! The kernels under Criterion, for saved baselines. See `benches/README.md`.

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod common;

use cntlora::simd::{BLOCK_ROWS, Rows, Sums, Values, Workspace, accumulate};
use common::{Problem, SITES, Way, number, peak, thread_counts};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};

/// What the processor can do at most; elements per second are floating-point operations per second.
fn fma_peak(c: &mut Criterion) {
    let mut group = c.benchmark_group("fma_peak");
    for threads in thread_counts() {
        group.throughput(Throughput::Elements(peak::operations(threads)));
        group.bench_function(format!("{threads}_threads"), |b| b.iter(|| peak::run(threads)));
    }
}

/// All of it: conversion, packing, column statistics, Gram, f64 accumulation. And faer's product alone.
fn gram(c: &mut Criterion) {
    let mut group = c.benchmark_group("gram");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for site in SITES {
        let mut problem = Problem::new(site);
        group.throughput(Throughput::Elements(site.operations()));
        for threads in thread_counts() {
            for way in Way::all() {
                let id = BenchmarkId::new(format!("{}/{threads}_threads", way.name()), site.width);
                group.bench_function(id, |b| b.iter(|| problem.run(way, threads)));
            }
        }
    }
}

/// The one pass over the rows: conversion, packing, column statistics and finite scan, in bytes of the format.
///
/// The first number is NaN, so that the block is refused after the pass and before any product.
fn reading_pass(c: &mut Criterion) {
    const WIDTH: usize = 4096;
    let mut numbers: Vec<f32> = (0..BLOCK_ROWS * WIDTH).map(number).collect();
    numbers[0] = f32::NAN;
    let f64: Vec<f64> = numbers.iter().map(|&x| f64::from(x)).collect();
    let f16: Vec<f16> = numbers.iter().map(|&x| f16::from_f32(x)).collect();
    let bf16: Vec<bf16> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
    let formats = [
        ("f64", 8, Values::F64(&f64)),
        ("f32", 4, Values::F32(&numbers)),
        ("f16", 2, Values::F16(&f16)),
        ("bf16", 2, Values::Bf16(&bf16)),
    ];

    let mut group = c.benchmark_group("reading_pass");
    let mut gram = vec![0.0; WIDTH * (WIDTH + 1) / 2];
    let (mut sum, mut abs_max) = (vec![0.0; WIDTH], vec![0.0; WIDTH]);
    let mut workspace = Workspace::default();
    for threads in thread_counts() {
        for (name, size, values) in formats {
            group.throughput(Throughput::Bytes((BLOCK_ROWS * WIDTH * size) as u64));
            group.bench_function(BenchmarkId::new(format!("{name}/{threads}_threads"), WIDTH), |b| {
                b.iter(|| {
                    let rows = Rows { values, rows: BLOCK_ROWS, width: WIDTH, stride: WIDTH };
                    let into = Sums { gram: &mut gram, sum: &mut sum, abs_max: &mut abs_max };
                    accumulate(rows, into, &mut workspace, threads).expect_err("the first number is NaN")
                });
            });
        }
    }
}

criterion_group!(kernels, fma_peak, gram, reading_pass);
criterion_main!(kernels);
