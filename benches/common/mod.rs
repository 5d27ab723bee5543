//! The inputs of the benchmarks: the kernels, and the ways that they are compared with.

use cntlora::element::Element;
use cntlora::simd::{BLOCK_ROWS, Precision, Rows, Sums, Tier, Values, Workspace, accumulate};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, MatRef, Par};
use half::bf16;
use pulp::{Simd, WithSimd};
use std::time::Instant;

/// A site of a real model, with rows for a few tenths of a second.
#[derive(Clone, Copy)]
pub struct Site {
    /// Number of columns.
    pub width: usize,
    /// Number of rows, whole blocks.
    pub rows: usize,
}

/// Hidden sizes of BERT base and of BERT large, hidden size of Llama 7B and its intermediate size.
pub const SITES: [Site; 4] = [
    Site { width: 768, rows: 16 * BLOCK_ROWS },
    Site { width: 1024, rows: 8 * BLOCK_ROWS },
    Site { width: 4096, rows: 4 * BLOCK_ROWS },
    Site { width: 11008, rows: 4 * BLOCK_ROWS },
];

impl Site {
    /// Floating-point operations of the upper triangle.
    pub fn operations(self) -> u64 {
        (self.rows * self.width * (self.width + 1)) as u64
    }
}

/// One thread, and all threads.
pub fn thread_counts() -> Vec<usize> {
    let mut counts = vec![1, rayon::current_num_threads()];
    counts.dedup();
    counts
}

/// The ways from rows to a Gram matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The kernels, from f32.
    F32,
    /// The kernels, from bf16 that is converted.
    Bf16,
    /// The kernels, from bf16 with the fastest products of bf16.
    Bf16Products,
    /// faer's triangular product alone, from f32: no conversion, no column statistics, f32 throughout.
    Faer,
}

impl Way {
    /// All ways that this processor supports.
    pub fn all() -> Vec<Self> {
        let mut ways = vec![Way::F32, Way::Bf16, Way::Bf16Products, Way::Faer];
        ways.retain(|&way| way != Way::Bf16Products || Precision::Bf16.products_name() != "f32");
        ways
    }

    pub fn name(self) -> &'static str {
        match self {
            Way::F32 => "f32",
            Way::Bf16 => "bf16",
            Way::Bf16Products => "bf16_products",
            Way::Faer => "faer_f32",
        }
    }
}

/// Rows of a site, and buffers for their statistics.
pub struct Problem {
    site: Site,
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    gram: Vec<f64>,
    sum: Vec<f64>,
    abs_max: Vec<f32>,
    square: Vec<f32>,
    fused: Workspace,
    products: Workspace,
}

impl Problem {
    pub fn new(site: Site) -> Self {
        let bf16: Vec<bf16> = (0..site.rows * site.width).map(number).map(bf16::from_f32).collect();
        let mut problem = Self {
            site,
            f32: bf16.iter().map(|x| x.to_f32()).collect(),
            bf16,
            gram: vec![0.0; site.width * (site.width + 1) / 2],
            sum: vec![0.0; site.width],
            abs_max: vec![0.0; site.width],
            square: vec![0.0; site.width * site.width],
            fused: Workspace::default(),
            products: Workspace::new(Tier::best(), Precision::Bf16).expect("the best tier is there"),
        };
        problem.check();
        problem
    }

    /// Checks some elements of the result against f64 before the benchmark. Also touches all memory once.
    fn check(&mut self) {
        let Site { width, rows } = self.site;
        let column = |column: usize| self.f32.iter().skip(column).step_by(width).map(|&x| f64::from(x));
        let places = [(0, 0), (0, width - 1), (1, width / 2), (width / 2, width - 1), (width - 1, width - 1)];
        let expected = places.map(|(i, j)| column(i).zip(column(j)).map(|(x, y)| x * y).sum::<f64>());
        for way in Way::all() {
            self.gram.fill(0.0);
            self.square.fill(0.0);
            self.run(way, 1);
            for ((i, j), expected) in places.into_iter().zip(expected) {
                let found = match way {
                    Way::Faer => f64::from(self.square[j * width + i]),
                    _ => self.gram[i * (2 * width - i - 1) / 2 + j],
                };
                // The squares of a column sum to a third of the rows.
                let close = (found - expected).abs() < 3e-5 * rows as f64;
                assert!(close, "{}, ({i}, {j}): {found} in place of {expected}", way.name());
            }
        }
    }

    /// From all rows to the Gram matrix.
    pub fn run(&mut self, way: Way, threads: usize) {
        let width = self.site.width;
        if way == Way::Faer {
            let x = MatRef::from_row_major_slice(&self.f32, self.site.rows, width);
            return triangular::matmul(
                MatMut::from_row_major_slice_mut(&mut self.square, width, width),
                BlockStructure::TriangularLower,
                Accum::Add,
                x.transpose(),
                BlockStructure::Rectangular,
                x,
                BlockStructure::Rectangular,
                1.0,
                if threads == 1 { Par::Seq } else { Par::rayon(threads) },
            );
        }
        // As in a run, the blocks come from a thread of the pool.
        match threads {
            1 => self.accumulate(way, 1),
            _ => rayon::scope(|_| self.accumulate(way, threads)),
        }
    }

    fn accumulate(&mut self, way: Way, threads: usize) {
        let width = self.site.width;
        let workspace = if way == Way::Bf16Products { &mut self.products } else { &mut self.fused };
        let element = if way == Way::F32 { Element::F32 } else { Element::Bf16 };
        let block_rows = workspace.block_rows(element);
        for first in (0..self.site.rows).step_by(block_rows) {
            let values = match way {
                Way::F32 => Values::F32(&self.f32[first * width..]),
                _ => Values::Bf16(&self.bf16[first * width..]),
            };
            let rows = Rows { values, rows: block_rows.min(self.site.rows - first), width, stride: width };
            let into = Sums { gram: &mut self.gram, sum: &mut self.sum, abs_max: &mut self.abs_max };
            accumulate(rows, into, workspace, threads).expect("the rows are finite");
        }
    }
}

/// Numbers between -1 and 1 with a long period.
pub fn number(index: usize) -> f32 {
    let mixed = (index as u32).wrapping_add(1).wrapping_mul(0x9e37_79b9);
    (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// The number of f32 numbers in a vector of the best tier.
pub struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    fn with_simd<S: Simd>(self, _simd: S) -> usize {
        S::F32_LANES
    }
}

/// Operations per second.
pub fn rate(operations: u64, run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    operations as f64 / start.elapsed().as_secs_f64()
}

/// The median and the maximum of rates.
pub fn median_and_best(mut rates: Vec<f64>) -> (f64, f64) {
    rates.sort_by(f64::total_cmp);
    (rates[rates.len() / 2], rates[rates.len() - 1])
}
