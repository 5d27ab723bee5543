//! The kernels against a naive oracle, and against one another, bit for bit.

use super::*;
use crate::error::Error;
use expect_test::expect;
use half::{bf16, f16};
use quickcheck::{Arbitrary, Gen};
use std::fmt;

/// The statistics of a matrix, as [`Sums`] holds them.
#[derive(Clone, Debug, PartialEq)]
struct Statistics {
    gram: Vec<f64>,
    sum: Vec<f64>,
    abs_max: Vec<f32>,
}

impl Statistics {
    /// Not zero, to catch a kernel that overwrites.
    fn start(width: usize) -> Self {
        let gram = (0..width * (width + 1) / 2).map(|i| 0.5 + i as f64).collect();
        Self { gram, sum: vec![-3.25; width], abs_max: vec![0.125; width] }
    }

    fn sums(&mut self) -> Sums<'_> {
        Sums { gram: &mut self.gram, sum: &mut self.sum, abs_max: &mut self.abs_max }
    }

    fn bits(&self) -> (Vec<u64>, Vec<u64>, Vec<u32>) {
        // An overflow may give NaN, which has many bit patterns.
        let one_nan = |number: &f64| if number.is_nan() { f64::NAN } else { *number };
        let bits = |numbers: &[f64]| numbers.iter().map(one_nan).map(f64::to_bits).collect();
        (bits(&self.gram), bits(&self.sum), self.abs_max.iter().map(|number| number.to_bits()).collect())
    }
}

/// The definition, as in the documentation of the module.
fn oracle(rows: Rows<'_>, into: &mut Statistics) {
    if rows.rows == 0 {
        return;
    }
    let count = rows.rows;
    let x = |row: usize, column: usize| rows.values.get(row * rows.stride + column);
    let largest = |j: usize| (0..count).fold(0f32, |largest, row| largest.max(x(row, j).abs()));
    let pilot = |j: usize| {
        let mean = (0..count).fold(0f32, |chain, row| chain + x(row, j)) / count as f32;
        if largest(j) > 2f32.powi(64) || mean.abs() < largest(j) / 8.0 { 0.0 } else { mean }
    };
    let c: Vec<f32> = (0..rows.width).map(pilot).collect();
    let difference = |row: usize, j: usize| match rows.values {
        Values::F64(values) => (values[row * rows.stride + j] - f64::from(c[j])) as f32,
        _ => x(row, j) - c[j],
    };
    let y: Vec<Vec<f32>> =
        (0..rows.width).map(|j| (0..count).map(|row| difference(row, j)).collect()).collect();
    let s: Vec<f64> = y.iter().map(|y| y.iter().fold(0f64, |chain, y| chain + f64::from(*y))).collect();
    let t: Vec<f64> = s.iter().zip(&c).map(|(s, c)| s + count as f64 * f64::from(*c)).collect();
    let mut gram = into.gram.iter_mut();
    for i in 0..rows.width {
        for (j, gram) in (i..rows.width).zip(&mut gram) {
            let centred =
                y[i].iter().zip(&y[j]).fold(0f32, |chain, (left, right)| left.mul_add(*right, chain));
            *gram += f64::from(c[i]).mul_add(t[j], s[i].mul_add(f64::from(c[j]), f64::from(centred)));
        }
        into.sum[i] += t[i];
        into.abs_max[i] = into.abs_max[i].max(largest(i));
    }
}

fn run(rows: Rows<'_>, tier: Tier, threads: usize) -> Statistics {
    let mut statistics = Statistics::start(rows.width);
    let mut workspace = Workspace::new(tier, Precision::F32).unwrap();
    accumulate(rows, statistics.sums(), &mut workspace, threads).unwrap();
    statistics
}

#[derive(Clone, Copy, Debug)]
enum Format {
    F64,
    F32,
    F16,
    Bf16,
}

const FORMATS: [Format; 4] = [Format::F64, Format::F32, Format::F16, Format::Bf16];

/// A block of any format and awkward size, held in all formats at once.
#[derive(Clone)]
struct Block {
    rows: usize,
    width: usize,
    stride: usize,
    format: Format,
    f64: Vec<f64>,
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
}

impl Block {
    fn new(
        rows: usize,
        width: usize,
        stride: usize,
        format: Format,
        numbers: impl Iterator<Item = f64>,
    ) -> Self {
        let len = if rows == 0 { 0 } else { (rows - 1) * stride + width };
        let f64: Vec<f64> = numbers.take(len).collect();
        assert_eq!(f64.len(), len);
        let f32 = f64.iter().map(|&x| x as f32).collect();
        let f16 = f64.iter().map(|&x| f16::from_f64(x)).collect();
        let bf16 = f64.iter().map(|&x| bf16::from_f64(x)).collect();
        Self { rows, width, stride, format, f64, f32, f16, bf16 }
    }

    /// Numbers between -2 and 2, some zero, that depend on nothing but their position.
    fn smooth(rows: usize, width: usize, format: Format) -> Self {
        Self::new(rows, width, width, format, (0u64..).map(pseudo_random))
    }

    fn set(&mut self, index: usize, number: f64) {
        self.f64[index] = number;
        self.f32[index] = number as f32;
        self.f16[index] = f16::from_f64(number);
        self.bf16[index] = bf16::from_f64(number);
    }

    fn rows(&self) -> Rows<'_> {
        let values = match self.format {
            Format::F64 => Values::F64(&self.f64),
            Format::F32 => Values::F32(&self.f32),
            Format::F16 => Values::F16(&self.f16),
            Format::Bf16 => Values::Bf16(&self.bf16),
        };
        Rows { values, rows: self.rows, width: self.width, stride: self.stride }
    }
}

fn pseudo_random(index: u64) -> f64 {
    let mixed = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed >> 40) as f64 / (1u64 << 22) as f64) - 2.0
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, width, stride, format, .. } = self;
        write!(f, "{rows} × {width} {format:?}, stride {stride}")
    }
}

impl Arbitrary for Block {
    fn arbitrary(g: &mut Gen) -> Self {
        let mut below = |n: usize| usize::arbitrary(g) % n;
        // Around the sizes of tiles, panels, and groups of panels, of each tier.
        let width = [below(8), below(60), 44 + below(9), 90 + below(12), 380 + below(10)][below(5)];
        let rows = [below(3), below(20), 60 + below(9), 300 + below(BLOCK_ROWS - 300)][below(4)]
            .min(20_000 / (width + 1));
        let stride = width + [0, below(20)][below(2)];
        let (format, seed, exponent) = (FORMATS[below(4)], below(1 << 40) as u64, below(12) as i32 - 8);
        // Some are far from zero, and some have squares that overflow.
        let offset = [0.0, 0.0, 3.0, -1e3][below(4)];
        let huge = below(4) == 0 && !matches!(format, Format::F16);
        let scale = 2f64.powi(if huge { exponent + 60 } else { exponent });
        Self::new(rows, width, stride, format, (seed..).map(|index| scale * (pseudo_random(index) + offset)))
    }
}

/// The properties of one tier, on the processors that have it.
macro_rules! properties_of_tier {
    ($name:ident, $tier:expr) => {
        mod $name {
            use super::*;
            use quickcheck::quickcheck;

            quickcheck! {
                /// The result agrees with its definition: odd sizes, strides, no rows, one row, every format.
                fn equals_the_oracle(block: Block) -> bool {
                    let mut expected = Statistics::start(block.width);
                    oracle(block.rows(), &mut expected);
                    $tier.instructions().is_none() || run(block.rows(), $tier, 1).bits() == expected.bits()
                }

                /// The result does not depend on the thread that computes a tile.
                fn threads_do_not_change_the_result(block: Block) -> bool {
                    $tier.instructions().is_none() || {
                        let alone = run(block.rows(), $tier, 1);
                        [2, 7].into_iter().all(|threads| run(block.rows(), $tier, threads).bits() == alone.bits())
                    }
                }

                /// The error names the first number in row-major order that is not finite, and nothing is added.
                fn refuses_what_is_not_finite(block: Block, offenders: Vec<(usize, usize, u8)>) -> bool {
                    $tier.instructions().is_none() || refuses_offenders(block, &offenders, $tier)
                }
            }
        }
    };
}

properties_of_tier!(scalar, Tier::Scalar);
#[cfg(target_arch = "aarch64")]
properties_of_tier!(neon, Tier::Neon);
#[cfg(target_arch = "x86_64")]
properties_of_tier!(avx2, Tier::Avx2);
#[cfg(target_arch = "x86_64")]
properties_of_tier!(avx512, Tier::Avx512);

fn refuses_offenders(mut block: Block, offenders: &[(usize, usize, u8)], tier: Tier) -> bool {
    if block.rows == 0 || block.width == 0 {
        return true;
    }
    let offenders: Vec<_> =
        offenders.iter().map(|&(r, c, what)| ((r % block.rows, c % block.width), what)).collect();
    for &((row, column), what) in &offenders {
        // The last is finite as an f64 only.
        let offender = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e39][usize::from(what % 4)];
        block.set(row * block.stride + column, offender);
    }
    let expected = offenders.iter().map(|&(position, _)| position).min();
    let expected = expected.map_or(Ok(()), |(row, column)| Err(Error::NonFiniteRow { row, column }));
    let mut statistics = Statistics::start(block.width);
    let found =
        accumulate(block.rows(), statistics.sums(), &mut Workspace::new(tier, Precision::F32).unwrap(), 2);
    found == expected && (found.is_ok() || statistics.bits() == Statistics::start(block.width).bits())
}

/// All tiers give the same bits, at a size with several pieces for each thread.
#[test]
fn tiers_agree() {
    for format in FORMATS {
        let block = Block::smooth(101, 499, format);
        let scalar = run(block.rows(), Tier::Scalar, 1);
        for tier in Tier::available() {
            assert_eq!(run(block.rows(), tier, 2).bits(), scalar.bits(), "{} {format:?}", tier.name());
        }
    }
}

/// Full blocks at a width that is no multiple of a panel.
#[test]
fn a_full_block_equals_the_oracle() {
    let block = Block::smooth(BLOCK_ROWS, 131, Format::F32);
    let mut expected = Statistics::start(131);
    oracle(block.rows(), &mut expected);
    for tier in Tier::available() {
        assert_eq!(run(block.rows(), tier, 1).bits(), expected.bits(), "{}", tier.name());
    }
}

/// A block of any format that fits f32 gives the same as the converted block of f32.
#[test]
fn formats_that_fit_f32_are_converted_first() {
    for format in [Format::F32, Format::F16, Format::Bf16] {
        let block = Block::smooth(37, 200, format);
        let converted: Vec<f32> = (0..37 * 200).map(|index| block.rows().values.get(index)).collect();
        let as_f32 = Rows { values: Values::F32(&converted), ..block.rows() };
        for tier in Tier::available() {
            assert_eq!(
                run(block.rows(), tier, 1).bits(),
                run(as_f32, tier, 1).bits(),
                "{} {format:?}",
                tier.name()
            );
        }
    }
}

/// A workspace that was used for a larger block gives the same bits as a new one.
#[test]
fn a_workspace_can_be_reused() {
    let sizes = [(200, 301), (3, 5), (1, 301), (512, 17), (0, 9), (7, 0), (5, 145)];
    for tier in Tier::available() {
        let mut workspace = Workspace::new(tier, Precision::F32).unwrap();
        for (rows, width) in sizes {
            let block = Block::smooth(rows, width, Format::F32);
            let mut statistics = Statistics::start(width);
            accumulate(block.rows(), statistics.sums(), &mut workspace, 1).unwrap();
            assert_eq!(
                statistics.bits(),
                run(block.rows(), tier, 1).bits(),
                "{} {rows} {width}",
                tier.name()
            );
        }
    }
}

/// The accuracy that `Precision::Bf16` documents: no way to multiply bf16 has more than twice the error of f32.
#[test]
fn products_of_bf16_are_as_exact_as_documented() {
    for (rows, width) in
        [(4 * BLOCK_ROWS, 70), (BLOCK_ROWS, 150), (300, 49), (255, 17), (33, 97), (2, 48), (1, 5)]
    {
        let block = Block::smooth(rows, width, Format::Bf16);
        let f32 = run_with(block.rows(), &mut Workspace::all_products().last().unwrap(), 1);
        for mut workspace in Workspace::all_products() {
            let way = workspace.products_name();
            let [alone, shared] = [1, 3].map(|threads| run_with(block.rows(), &mut workspace, threads));
            assert_eq!(alone.bits(), shared.bits(), "{way}");
            assert_eq!(alone.abs_max, f32.abs_max, "{way}");
            let sums = alone.sum.iter().zip(&f32.sum);
            assert!(sums.into_iter().all(|(bf16, f32)| (bf16 - f32).abs() <= 1e-6 * rows as f64), "{way}");
            let [error, error_of_f32] = [&alone, &f32].map(|found| relative_error(block.rows(), found));
            assert!(
                error <= 2.0 * error_of_f32,
                "{way}, {rows} rows: {error:e}, but {error_of_f32:e} in f32"
            );
            assert!(rows < 100 || way == "f32" || alone.gram != f32.gram, "{way} was not used");
        }
    }
}

/// The tiles of the processor give the bits of their definition, also with offsets, corrections and many blocks of lines.
#[test]
fn tiles_equal_their_emulation() {
    let mut ways = Workspace::all_products();
    let mut emulated = ways.next().unwrap();
    let Some(mut tiles) = ways.find(|workspace| workspace.products_name() == "bf16 matrix tiles") else {
        return println!("not tested: this processor has no matrix tiles");
    };
    for (rows, width, offset) in
        [(1000, 130, 0.0), (97, 33, 40.0), (2500, 64, -700.0), (32, 1, 3.0), (1, 200, 0.0)]
    {
        let numbers =
            (0u64..).map(|index| offset * ((index % width as u64 % 3) as f64) + pseudo_random(index));
        let block = Block::new(rows, width, width + 3, Format::Bf16, numbers);
        let [expected, found] =
            [&mut emulated, &mut tiles].map(|workspace| run_with(block.rows(), workspace, 2).bits());
        assert!(expected == found, "{rows} rows of {width}");
    }
}

/// Sums of offsets do not hide the products of deviations, whatever the deviations are: rounded to bf16, of several magnitudes, or with
/// single numbers far from the others.
#[test]
fn offsets_cost_no_accuracy_in_bf16() {
    type Deviation = (&'static str, fn(u64) -> f64);
    let deviations: [Deviation; 4] = [
        ("even", |index| pseudo_random(index)),
        ("rare", |index| if index % 97 < 3 { pseudo_random(index) * 40.0 } else { pseudo_random(index) }),
        ("small", |index| {
            if index % 5 == 0 { -0.999 * 100.0 + pseudo_random(index) * 1e-3 } else { pseudo_random(index) }
        }),
        ("two values", |index| if pseudo_random(index) > 0.0 { 1.0 } else { -1.0 }),
    ];
    for (name, deviation) in deviations {
        for offset in [0.0, 3.0, 10.0, 100.0, -1000.0] {
            let (rows, width) = (1500, 40);
            let numbers = (0u64..).map(|index| offset + deviation(index));
            let block = Block::new(rows, width, width, Format::Bf16, numbers);
            for mut workspace in Workspace::all_products() {
                let way = workspace.products_name();
                let error = covariance_error(block.rows(), &run_with(block.rows(), &mut workspace, 2));
                let bound = if way == "bf16 dot products" { 3e-5 } else { 2e-5 };
                assert!(error < bound, "{way}, {name} at {offset}: {error:e}");
            }
        }
    }
}

/// The largest error of a covariance, relative to the standard deviations of its columns, against two passes in f64.
fn covariance_error(rows: Rows<'_>, found: &Statistics) -> f64 {
    let x = |row: usize, column: usize| f64::from(rows.values.get(row * rows.stride + column));
    let n = rows.rows as f64;
    let mean: Vec<f64> =
        (0..rows.width).map(|j| (0..rows.rows).map(|row| x(row, j)).sum::<f64>() / n).collect();
    let exact = |i: usize, j: usize| {
        (0..rows.rows).map(|row| (x(row, i) - mean[i]) * (x(row, j) - mean[j])).sum::<f64>()
    };
    let start = Statistics::start(rows.width);
    let sum = |j: usize| found.sum[j] - start.sum[j];
    let mut worst = 0f64;
    let mut grams = found.gram.iter().zip(&start.gram).map(|(end, start)| end - start);
    let variances: Vec<f64> = (0..rows.width).map(|j| exact(j, j)).collect();
    for i in 0..rows.width {
        for (j, gram) in (i..rows.width).zip(&mut grams) {
            let error = gram - sum(i) * sum(j) / n - exact(i, j);
            let scale = (variances[i] * variances[j]).sqrt();
            worst = worst.max(if scale > 0.0 { error.abs() / scale } else { error.abs() });
        }
    }
    worst
}

/// The largest error of an element `(i, j)`, relative to `√(G_ii G_jj)`, against products and sums in f64.
fn relative_error(rows: Rows<'_>, found: &Statistics) -> f64 {
    let x = |row: usize, column: usize| f64::from(rows.values.get(row * rows.stride + column));
    let exact = |i: usize, j: usize| (0..rows.rows).map(|row| x(row, i) * x(row, j)).sum::<f64>();
    let triangle = (0..rows.width).flat_map(|i| (i..rows.width).map(move |j| (i, j)));
    let found = found.gram.iter().zip(Statistics::start(rows.width).gram).map(|(end, start)| end - start);
    let errors = triangle
        .zip(found)
        .map(|((i, j), found)| (found - exact(i, j)).abs() / (exact(i, i) * exact(j, j)).sqrt());
    errors.fold(0.0, f64::max)
}

/// Centring does not break columns whose pilot, differences or squares would overflow, nor the columns beside them.
#[test]
fn columns_near_the_ends_of_f32() {
    let largest = f32::MAX;
    let columns: [[f32; 3]; 5] = [
        [largest, -largest, -largest],
        [largest, largest, largest],
        [1.0, 2.0, 4.0],
        [1e-42, 3e-42, 2e-42],
        [1e19, 1e19 + 4e12, 1e19 - 4e12],
    ];
    let values: Vec<f32> = (0..15).map(|index| columns[index % 5][index / 5]).collect();
    let rows = Rows { values: Values::F32(&values), rows: 3, width: 5, stride: 5 };
    for tier in Tier::available() {
        let found = run(rows, tier, 1);
        let start = Statistics::start(5);
        for (j, column) in columns.iter().enumerate() {
            let exact: f64 = column.iter().map(|x| f64::from(*x)).sum();
            let sum = found.sum[j] - start.sum[j];
            let rounding = (start.sum[j].abs() + 4.0 * f64::from(column[0].abs())) * f64::EPSILON;
            assert!((sum - exact).abs() <= rounding, "column {j}: {sum:e} for {exact:e}");
        }
        // The product of the columns 2 and 3 is theirs, and that of 4 with itself is finite, because it is that of its deviations.
        let product = |index: usize| found.gram[index] - start.gram[index];
        assert!((product(9) - 21.0).abs() < 1e-5, "{}", product(9));
        assert!((product(14) / 3e38 - 1.0).abs() < 1e-6, "{}", product(14));
        assert!(!found.gram[0].is_finite() && !found.gram[5].is_finite());
    }
}

/// The means of f64 rows are subtracted before rounding.
#[test]
fn differences_of_f64_rows_are_rounded_and_not_the_rows() {
    let values: Vec<f64> = (0..640u64).map(|index| 1e6 + pseudo_random(index)).collect();
    let mean = values.iter().sum::<f64>() / 640.0;
    let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / 640.0;
    let rows = Rows { values: Values::F64(&values), rows: 640, width: 1, stride: 1 };
    let found = run(rows, Tier::best(), 1);
    let (gram, sum) = (found.gram[0] - 0.5, found.sum[0] + 3.25);
    let error = (gram - sum * sum / 640.0) / 640.0 / variance - 1.0;
    // Of 12 digits before the deviations, f64 keeps 4 after them.
    assert!(error.abs() < 5e-4, "{error:e}");
}

/// Formats with more digits than bf16 are not rounded to bf16.
#[test]
fn products_of_bf16_are_not_used_for_other_formats() {
    for format in [Format::F64, Format::F32, Format::F16] {
        let block = Block::smooth(BLOCK_ROWS, 70, format);
        let expected = run(block.rows(), Tier::best(), 1);
        for mut workspace in Workspace::all_products() {
            let found = run_with(block.rows(), &mut workspace, 1);
            assert_eq!(found.bits(), expected.bits(), "{}", workspace.products_name());
        }
    }
}

/// Rows that are not finite are refused by each way to multiply bf16, and nothing of their block is added.
#[test]
fn products_of_bf16_refuse_numbers_that_are_not_finite() {
    for (format, rows) in [(Format::Bf16, 1300), (Format::F32, BLOCK_ROWS)] {
        for (row, column) in [(0, 0), (3, 6), (rows - 1, 49)] {
            let mut block = Block::smooth(rows, 50, format);
            block.set(row * 50 + column, f64::NAN);
            for mut workspace in Workspace::all_products() {
                let mut statistics = Statistics::start(50);
                let found = accumulate(block.rows(), statistics.sums(), &mut workspace, 1);
                assert_eq!(found, Err(Error::NonFiniteRow { row, column }), "{}", workspace.products_name());
                assert_eq!(statistics, Statistics::start(50));
            }
        }
    }
}

fn run_with(rows: Rows<'_>, workspace: &mut Workspace, threads: usize) -> Statistics {
    let mut statistics = Statistics::start(rows.width);
    accumulate(rows, statistics.sums(), workspace, threads).unwrap();
    statistics
}

/// A tier that the processor lacks is refused with a message.
#[test]
fn unsupported_tiers_are_refused() {
    for tier in [Tier::Neon, Tier::Avx2, Tier::Avx512] {
        let refusal = Workspace::new(tier, Precision::F32).err();
        assert_eq!(refusal.is_none(), Tier::available().any(|available| available == tier));
    }
}

#[test]
fn messages_of_refusals() {
    let best = format!("its best are {}", Tier::best());
    let tier = Unsupported(Tier::Neon).to_string().replace(&best, "its best are BEST");
    expect!["this processor has no NEON instructions; its best are BEST"].assert_eq(&tier);
}

#[test]
#[should_panic(expected = "at most 640 rows, found 641")]
fn a_block_has_an_upper_size() {
    run(Block::smooth(641, 1, Format::F32).rows(), Tier::Scalar, 1);
}

#[test]
#[should_panic(expected = "do not fit in 11 numbers")]
fn rows_must_be_there() {
    run(Rows { values: Values::F32(&[0.0; 11]), rows: 3, width: 4, stride: 4 }, Tier::Scalar, 1);
}

#[test]
#[should_panic(expected = "cannot start 3 numbers apart")]
fn rows_must_not_overlap() {
    run(Rows { values: Values::F32(&[0.0; 12]), rows: 3, width: 4, stride: 3 }, Tier::Scalar, 1);
}

#[test]
#[should_panic(expected = "length of the triangle of a Gram matrix of width 2")]
fn sums_must_have_the_width_of_the_rows() {
    let mut statistics = Statistics::start(2);
    statistics.gram.push(0.0);
    let rows = Block::smooth(1, 2, Format::F32);
    accumulate(rows.rows(), statistics.sums(), &mut Workspace::default(), 1).unwrap();
}
