//! The kernels under Criterion, for saved baselines. See `benches/README.md`.

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod common;

/// The width of a panel, for the next module.
mod kernel {
    pub const VECTORS: usize = 2;
}
/// The column statistics, which are not public.
#[allow(dead_code, reason = "the benchmark adds rows, and does not ask whether they were finite")]
#[path = "../numerics/src/simd/columns.rs"]
mod columns;

use cntlora::simd::{BLOCK_ROWS, Rows, Sums, Values, Workspace, accumulate, peak};
use columns::Columns;
use common::{Problem, SITES, Way, number, thread_counts};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use pulp::{Simd, WithSimd};
use std::hint::black_box;

/// The peak of the processor; elements per second are floating-point operations per second.
fn fma_peak(c: &mut Criterion) {
    let mut group = c.benchmark_group("fma_peak");
    for threads in thread_counts() {
        group.throughput(Throughput::Elements(peak::operations(threads)));
        group.bench_function(format!("{threads}_threads"), |b| b.iter(|| peak::run(threads)));
    }
}

/// The whole kernel: conversion, packing, column statistics, Gram, f64 accumulation. Also faer's product alone.
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

/// The pass over the rows: conversion, packing, column statistics and finite scan, in bytes of the format.
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

/// Sums, absolute maxima and the finite scan of one block: of lines that are in L1, as after packing.
struct Statistics<'a> {
    panels: usize,
    line: &'a [f32],
}

impl WithSimd for Statistics<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        match S::F32_LANES {
            16 => self.run::<{ 16 * kernel::VECTORS }>(),
            8 => self.run::<{ 8 * kernel::VECTORS }>(),
            4 => self.run::<{ 4 * kernel::VECTORS }>(),
            _ => self.run::<{ kernel::VECTORS }>(),
        }
    }
}

impl Statistics<'_> {
    #[inline(always)]
    fn run<const WIDTH: usize>(self) {
        let (mut sum, mut magnitude) = ([0.0; WIDTH], [0; WIDTH]);
        for _ in 0..self.panels {
            let mut seen = Columns::load(&sum, &magnitude);
            for _ in 0..BLOCK_ROWS {
                seen.add(black_box(self.line).first_chunk::<WIDTH>().expect("a whole line"));
            }
            seen.store(&mut sum, &mut magnitude);
        }
        black_box((sum, magnitude));
    }
}

/// The time of the column statistics of a block, and of the whole block for comparison, on one thread.
fn column_statistics(c: &mut Criterion) {
    let mut group = c.benchmark_group("column_statistics");
    let arch = pulp::Arch::new();
    for site in SITES {
        let panel_width = kernel::VECTORS * arch.dispatch(common::Lanes);
        let line: Vec<f32> = (0..panel_width).map(number).collect();
        let panels = site.width.div_ceil(panel_width);
        group.bench_function(BenchmarkId::new("alone", site.width), |b| {
            b.iter(|| arch.dispatch(Statistics { panels, line: &line }));
        });
        let mut problem = Problem::new(common::Site { rows: BLOCK_ROWS, ..site });
        group.bench_function(BenchmarkId::new("whole_block", site.width), |b| {
            b.iter(|| problem.run(Way::F32, 1));
        });
    }
}

criterion_group!(kernels, fma_peak, gram, reading_pass, column_statistics);
criterion_main!(kernels);
