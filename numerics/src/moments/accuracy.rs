//! The accuracy of moments on activations far from zero, against sums in f64.

use super::Moments;
use crate::random::gaussian;
use crate::simd::{self, Rows, Values, Workspace};
use faer::Mat;
use half::{bf16, f16};

/// The numbers of a matrix in one number format.
enum Recording {
    F64(Vec<f64>),
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// A number format: its name, the relative distance of neighbouring numbers, and the conversion to it.
type Format = (&'static str, f64, fn(&[f64]) -> Recording);

const FORMATS: [Format; 4] = [
    ("f64", 2.3e-16, |x| Recording::F64(x.to_vec())),
    ("f32", 1.2e-7, |x| Recording::F32(x.iter().map(|x| *x as f32).collect())),
    ("f16", 9.8e-4, |x| Recording::F16(x.iter().map(|x| f16::from_f64(*x)).collect())),
    ("bf16", 7.9e-3, |x| Recording::Bf16(x.iter().map(|x| bf16::from_f64(*x)).collect())),
];

const ROWS: usize = 3 * simd::BLOCK_ROWS + 77;
const WIDTH: usize = 30;

impl Recording {
    fn values(&self, first: usize, last: usize) -> Values<'_> {
        match self {
            Self::F64(x) => Values::F64(&x[first..last]),
            Self::F32(x) => Values::F32(&x[first..last]),
            Self::F16(x) => Values::F16(&x[first..last]),
            Self::Bf16(x) => Values::Bf16(&x[first..last]),
        }
    }

    fn number(&self, index: usize) -> f64 {
        match self {
            Self::F64(x) => x[index],
            Self::F32(x) => x[index].into(),
            Self::F16(x) => x[index].into(),
            Self::Bf16(x) => x[index].into(),
        }
    }

    fn moments(&self) -> Moments {
        self.moments_by(&mut Workspace::default())
    }

    fn moments_by(&self, workspace: &mut Workspace) -> Moments {
        let mut moments = Moments::new(WIDTH);
        let block_rows = workspace.block_rows(self.values(0, 0).element());
        for first in (0..ROWS).step_by(block_rows) {
            let rows = block_rows.min(ROWS - first);
            let values = self.values(first * WIDTH, (first + rows) * WIDTH);
            moments.add(Rows { values, rows, width: WIDTH, stride: WIDTH }, workspace, 1).unwrap();
        }
        moments
    }

    /// The covariance by its definition, in two passes.
    fn covariance(&self) -> Mat<f64> {
        let x = Mat::from_fn(ROWS, WIDTH, |i, j| self.number(i * WIDTH + j));
        let mean: Vec<f64> = (0..WIDTH).map(|j| x.col(j).sum() / ROWS as f64).collect();
        let centred = Mat::from_fn(ROWS, WIDTH, |i, j| x[(i, j)] - mean[j]);
        centred.transpose() * &centred * faer::Scale(1.0 / ROWS as f64)
    }

    /// The largest error of an entry of the covariance in f32, and with each way to multiply bf16, relative to the standard deviations of
    /// its columns.
    fn error(&self) -> f64 {
        let exact = self.covariance();
        let workspaces = std::iter::once(Workspace::default()).chain(Workspace::all_products());
        let errors = workspaces
            .map(|mut workspace| difference(&self.moments_by(&mut workspace).covariance().unwrap(), &exact));
        errors.fold(0.0, f64::max)
    }
}

fn difference(found: &Mat<f64>, exact: &Mat<f64>) -> f64 {
    let width = exact.nrows();
    let entries = (0..width).flat_map(|i| (0..width).map(move |j| (i, j)));
    let error = |(i, j)| (found[(i, j)] - exact[(i, j)]).abs() / (exact[(i, i)] * exact[(j, j)]).sqrt();
    entries.map(error).fold(0.0, f64::max)
}

/// Correlated rows. Column `j` has a mean of `ratio(j)` standard deviations, as far as the format can represent that; its scale is one of
/// three.
fn recording((_, spacing, hold): Format, ratio: impl Fn(usize) -> f64) -> Recording {
    let mixing = gaussian::<f64>(WIDTH, WIDTH, 1, "mixing") * faer::Scale(0.1);
    let rows = gaussian::<f64>(ROWS, WIDTH, 1, "rows") * (mixing + Mat::<f64>::identity(WIDTH, WIDTH));
    let number = |i: usize, j: usize| {
        let deviation = rows[(i, j)] * (2.0 * spacing * ratio(j)).max(1.0);
        [1.0, 0.01, 3.0][j % 3] * (ratio(j) + deviation)
    };
    let numbers: Vec<f64> =
        (0..ROWS).flat_map(|i| (0..WIDTH).map(move |j| (i, j))).map(|(i, j)| number(i, j)).collect();
    hold(&numbers)
}

fn check(ratio: impl Fn(usize) -> f64 + Copy) {
    for format in FORMATS {
        let error = recording(format, ratio).error();
        println!("{} {error:.1e}", format.0);
        // Far from zero, short formats have few different numbers, and all their products are rounded in the same way.
        let short = matches!(format.0, "f16" | "bf16");
        assert!(error < if short { 1e-5 } else { 2e-6 }, "{}: {error:e}", format.0);
    }
}

#[test]
fn covariance_of_centred_channels() {
    check(|_| 0.0);
}

#[test]
fn covariance_at_means_of_10_deviations() {
    check(|_| 10.0);
}

#[test]
fn covariance_at_means_of_30_deviations() {
    check(|_| 30.0);
}

#[test]
fn covariance_at_means_of_100_deviations() {
    check(|_| 100.0);
}

#[test]
fn covariance_at_means_of_300_deviations() {
    check(|_| -300.0);
}

#[test]
fn covariance_at_means_of_10000_deviations() {
    check(|_| 1e4);
}

#[test]
fn covariance_with_one_channel_at_1000_deviations() {
    check(|j| if j == 7 { 1000.0 } else { 0.0 });
}

/// Rows of f64 that differ only beyond the digits of f32.
#[test]
fn covariance_of_f64_rows_at_means_of_100000_deviations() {
    let error = recording(FORMATS[0], |_| 1e5).error();
    println!("{error:.1e}");
    assert!(error < 1e-5, "{error:e}");
}

/// Moments of recordings with different means can be merged.
#[test]
fn moments_with_different_means_merge() {
    let [near, far] = [100.0, -1e4].map(|ratio| recording(FORMATS[1], |_| ratio));
    let mut merged = near.moments();
    merged.merge(&far.moments()).unwrap();
    let both = (0..2 * ROWS * WIDTH).map(|index| match index.checked_sub(ROWS * WIDTH) {
        None => near.number(index),
        Some(index) => far.number(index),
    });
    let both: Vec<f64> = both.collect();
    let mean = |j: usize| both.iter().skip(j).step_by(WIDTH).sum::<f64>() / (2 * ROWS) as f64;
    let mean: Vec<f64> = (0..WIDTH).map(mean).collect();
    let centred = Mat::from_fn(2 * ROWS, WIDTH, |i, j| both[i * WIDTH + j] - mean[j]);
    let exact = centred.transpose() * &centred * faer::Scale(1.0 / (2 * ROWS) as f64);
    // The means differ by so much that the entries are nearly 2.6e7 times those of the parts: the errors of the parts show after both
    // means are subtracted.
    let error = difference(&merged.covariance().unwrap(), &exact);
    assert!(error < 1e-12, "{error:e}");
}

/// Activations that are mostly zero, as after a ReLU, are as accurate as others.
#[test]
fn covariance_of_sparse_channels() {
    let rows = gaussian::<f64>(ROWS, WIDTH, 3, "rows");
    let numbers: Vec<f64> =
        (0..ROWS * WIDTH).map(|index| (rows[(index / WIDTH, index % WIDTH)] - 1.5).max(0.0)).collect();
    for (name, _, hold) in FORMATS {
        let error = hold(&numbers).error();
        println!("{name} {error:.1e}");
        assert!(error < 2e-6, "{name}: {error:e}");
    }
}

/// A row of outliers in a block does not reduce the accuracy of other rows and channels.
#[test]
fn covariance_with_outlying_rows() {
    let rows = gaussian::<f64>(ROWS, WIDTH, 4, "rows");
    for (mean, first) in [(0.0, 0), (100.0, 0), (100.0, 300)] {
        let outlier = |i: usize, j: usize| if i % simd::BLOCK_ROWS == first && j < 2 { 1000.0 } else { 0.0 };
        let numbers: Vec<f64> = (0..ROWS)
            .flat_map(|i| (0..WIDTH).map(move |j| (i, j)))
            .map(|(i, j)| mean + rows[(i, j)] + outlier(i, j))
            .collect();
        let error = (FORMATS[1].2)(&numbers).error();
        println!("{mean} {error:.1e}");
        assert!(error < 1e-5, "{mean}: {error:e}");
    }
}
