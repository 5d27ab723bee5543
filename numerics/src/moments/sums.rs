//! Sums over the rows of a site: how many rows, their sum, their Gram matrix, and the largest absolute value of every column.

use crate::dense::Buffer;
use crate::error::{Error, Result};
use crate::simd::{self, Rows, Sums, Values, Workspace};
use crate::triangle::Triangle;
use faer::{Col, Mat, MatRef, Par};
use std::num::Saturating;

/// Sums over the rows of a site.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    pub(super) width: usize,
    pub(super) count: u64,
    pub(super) sum: Vec<f64>,
    pub(super) gram: Buffer<f64>,
    pub(super) abs_max: Vec<f32>,
    pub(super) zero_rows: u64,
}

/// Length of the upper triangle of a `width × width` matrix.
const fn triangle(width: usize) -> usize {
    width * (width + 1) / 2
}

impl Moments {
    /// The moments of no rows of `width` numbers.
    ///
    /// # Panics
    /// If there is not enough memory.
    pub fn new(width: usize) -> Self {
        Self {
            width,
            count: 0,
            sum: vec![0.0; width],
            gram: Buffer::zeros(triangle(width)).expect("memory for the Gram triangle"),
            abs_max: vec![0.0; width],
            zero_rows: 0,
        }
    }

    /// As [`Self::new`]; `None` if there is not enough memory.
    pub fn try_new(width: usize) -> Option<Self> {
        let triangle = width.checked_mul(width.checked_add(1)?)? / 2;
        // The largest first: if it fails, nothing else is filled.
        Some(Self {
            gram: Buffer::zeros(triangle)?,
            sum: vec![0.0; width],
            abs_max: vec![0.0; width],
            width,
            count: 0,
            zero_rows: 0,
        })
    }

    /// Moments whose sums were computed before: of `count` rows, their sum (`d`), the upper triangle of their Gram matrix, row after
    /// row (`d (d + 1) / 2`, a vector for example), and the largest absolute values (`d`).
    ///
    /// # Errors
    /// [`Error::Shape`] for lengths that do not fit; [`Error::NonFinite`] for NaN or infinity.
    pub fn from_sums(
        count: u64,
        sum: Vec<f64>,
        gram: impl Into<Buffer<f64>>,
        abs_max: Vec<f32>,
    ) -> Result<Self> {
        let (width, gram) = (sum.len(), gram.into());
        let lengths = [
            ("length of the Gram triangle", triangle(width), gram.len()),
            ("number of maxima", width, abs_max.len()),
        ];
        for (what, expected, found) in lengths {
            if expected != found {
                return Err(Error::Shape { what, expected, found });
            }
        }
        let finite = sum.iter().chain(&gram[..]).all(|sum| sum.is_finite())
            && abs_max.iter().all(|max| max.is_finite());
        if !finite {
            return Err(Error::NonFinite { what: "a sum over activations" });
        }
        Ok(Self { width, count, sum, gram, abs_max, zero_rows: 0 })
    }

    /// The same moments with this number of rows that are all zero, for sums that were computed before.
    #[must_use]
    pub fn with_zero_rows(self, zero_rows: u64) -> Self {
        Self { zero_rows: zero_rows.min(self.count), ..self }
    }

    /// The moments of all rows of a matrix in memory, `n × d`, on one thread.
    ///
    /// # Errors
    /// [`Error::NonFiniteRow`] for NaN or infinity.
    pub fn of(rows: MatRef<'_, f32>) -> Result<Self> {
        let mut moments = Self::new(rows.ncols());
        let mut workspace = Workspace::default();
        let width = rows.ncols();
        let mut block = vec![0.0f32; simd::BLOCK_ROWS * width];
        for first in (0..rows.nrows()).step_by(simd::BLOCK_ROWS) {
            let count = simd::BLOCK_ROWS.min(rows.nrows() - first);
            for (i, out) in block.chunks_exact_mut(width.max(1)).take(count).enumerate() {
                for (value, j) in out.iter_mut().zip(0..) {
                    *value = rows[(first + i, j)];
                }
            }
            let values = Values::F32(&block[..count * width]);
            moments.add(Rows { values, rows: count, width, stride: width }, &mut workspace, 1).map_err(
                |error| match error {
                    Error::NonFiniteRow { row, column } => Error::NonFiniteRow { row: first + row, column },
                    other => other,
                },
            )?;
        }
        Ok(moments)
    }

    /// Adds one block of at most [`Workspace::block_rows`] rows.
    ///
    /// The result depends on where blocks begin: to get the same bits again, cut the rows in the same way.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows of another width; [`Error::NonFiniteRow`] for NaN or infinity. Nothing was added then.
    ///
    /// # Panics
    /// If there are more rows than a block holds.
    pub fn add(&mut self, rows: Rows<'_>, workspace: &mut Workspace, threads: usize) -> Result<()> {
        if rows.width != self.width {
            return Err(Error::Shape { what: "width of the rows", expected: self.width, found: rows.width });
        }
        let into = Sums { gram: &mut self.gram, sum: &mut self.sum, abs_max: &mut self.abs_max };
        simd::accumulate(rows, into, workspace, threads)?;
        self.count += rows.rows as u64;
        self.zero_rows += rows.zero_rows();
        Ok(())
    }

    /// As [`Self::add`], without the rows that are not finite. Returns the number of these rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows of another width.
    ///
    /// # Panics
    /// As [`Self::add`].
    pub fn add_finite(&mut self, rows: Rows<'_>, workspace: &mut Workspace, threads: usize) -> Result<u64> {
        match self.add(rows, workspace, threads) {
            Err(Error::NonFiniteRow { .. }) => {
                let finite = rows.finite();
                let (width, kept) = (rows.width, finite.len() / rows.width);
                let finite = Rows { values: Values::F64(&finite), rows: kept, width, stride: width };
                self.add(finite, workspace, threads)?;
                Ok((rows.rows - kept) as u64)
            }
            added => added.map(|()| 0),
        }
    }

    /// Adds the moments of further rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for moments of another width.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if other.width != self.width {
            return Err(Error::Shape {
                what: "width of the moments",
                expected: self.width,
                found: other.width,
            });
        }
        self.count += other.count;
        self.zero_rows += other.zero_rows;
        add_to(&mut self.sum, &other.sum);
        add_to(&mut self.gram, &other.gram);
        for (mine, theirs) in self.abs_max.iter_mut().zip(&other.abs_max) {
            *mine = mine.max(*theirs);
        }
        Ok(())
    }

    /// Numbers per row, `d`.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Number of rows that are all zero, such as the padding of a batch. It is 0 if it is not known.
    pub fn zero_rows(&self) -> u64 {
        self.zero_rows
    }

    /// Sum of all rows, `d`.
    pub fn sum(&self) -> &[f64] {
        &self.sum
    }

    /// Upper triangle of the Gram matrix `Σ x xᵀ`, row after row, `d (d + 1) / 2`.
    pub fn gram_triangle(&self) -> &[f64] {
        &self.gram
    }

    /// Largest absolute value of each column.
    pub fn abs_max(&self) -> &[f32] {
        &self.abs_max
    }

    /// Mean row, `d`.
    ///
    /// # Errors
    /// [`Error::NoRows`].
    pub fn mean(&self) -> Result<Col<f64>> {
        let scale = self.scale()?;
        Ok(Col::from_fn(self.width, |j| self.sum[j] * scale))
    }

    /// Second moment `E[x xᵀ]`, uncentred, `d × d`.
    ///
    /// # Errors
    /// [`Error::NoRows`].
    pub fn second_moment(&self) -> Result<Mat<f64>> {
        Ok(self.second_moment_triangle(Par::Seq)?.to_mat())
    }

    /// Covariance `Σ = E[(x − μ) (x − μ)ᵀ]`, `d × d`: `(gram − sum sumᵀ / n) / n`.
    ///
    /// The rounding error is about 1e-16 of the product of the means of two columns, so a few digits remain even at means of 10⁷ standard
    /// deviations. [`simd`] states the accuracy of the sums.
    ///
    /// # Errors
    /// [`Error::NoRows`].
    pub fn covariance(&self) -> Result<Mat<f64>> {
        Ok(self.covariance_triangle(Par::Seq)?.to_mat())
    }

    /// As [`Self::second_moment`], as a triangle.
    pub(crate) fn second_moment_triangle(&self, par: Par) -> Result<Triangle> {
        let scale = self.scale()?;
        let row = |_, gram: &[f64], out: &mut [f64]| {
            out.iter_mut().zip(gram).for_each(|(out, gram)| *out = gram * scale);
        };
        Ok(self.triangle(row, par))
    }

    /// As [`Self::covariance`], as a triangle.
    pub(crate) fn covariance_triangle(&self, par: Par) -> Result<Triangle> {
        let (scale, mean) = (self.scale()?, self.mean()?);
        let row = |i: usize, gram: &[f64], out: &mut [f64]| {
            let mean = mean[i];
            for ((out, gram), sum) in out.iter_mut().zip(gram).zip(&self.sum[i..]) {
                *out = (-mean).mul_add(*sum, *gram) * scale;
            }
        };
        Ok(self.triangle(row, par))
    }

    /// A triangle whose rows a function writes from its number and the row of the Gram triangle.
    fn triangle(&self, row: impl Fn(usize, &[f64], &mut [f64]) + Sync, par: Par) -> Triangle {
        let mut triangle = Triangle::zeros(self.width);
        let gram = &self.gram[..];
        let write = |i: usize, out: &mut [f64]| row(i, &gram[simd::row_start(self.width, i)..], out);
        triangle.change_rows(write, par);
        triangle
    }

    /// Bytes that the moments of a site of this width hold.
    pub fn memory(width: u64) -> u64 {
        let width = Saturating(width);
        (Saturating(4) * width * (width + Saturating(1)) + Saturating(12) * width).0
    }

    /// Entry of the Gram matrix. Only the upper triangle is stored.
    pub(super) fn gram(&self, i: usize, j: usize) -> f64 {
        let (i, j) = (i.min(j), i.max(j));
        self.gram[simd::row_start(self.width, i) + j - i]
    }

    pub(super) fn scale(&self) -> Result<f64> {
        if self.count == 0 { Err(Error::NoRows) } else { Ok(1.0 / self.count as f64) }
    }
}

fn add_to(sums: &mut [f64], more: &[f64]) {
    for (sum, value) in sums.iter_mut().zip(more) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::gaussian;
    use quickcheck::quickcheck;

    fn sample(rows: u16, width: u8, seed: u64) -> Mat<f32> {
        gaussian(usize::from(rows % 1500), usize::from(width % 9) + 1, seed, "rows")
    }

    fn close(a: &Moments, b: &Moments) -> bool {
        let near = |a: &[f64], b: &[f64]| {
            a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + a.abs().max(b.abs())))
        };
        a.count == b.count && near(&a.sum, &b.sum) && near(&a.gram, &b.gram) && a.abs_max == b.abs_max
    }

    quickcheck! {
        /// Merging the moments of two samples gives the moments of their concatenation.
        fn merge_is_concatenation(rows: u16, width: u8, seed: u64, cut: u16) -> bool {
            let x = sample(rows, width, seed);
            let (head, tail) = x.as_ref().split_at_row(usize::from(cut) % (x.nrows() + 1));
            let mut merged = Moments::of(head).unwrap();
            merged.merge(&Moments::of(tail).unwrap()).unwrap();
            close(&merged, &Moments::of(x.as_ref()).unwrap())
        }

        /// Rows of zeros are counted in every number format, and only these.
        fn zero_rows_are_counted(zeros: Vec<bool>, width: u8) -> bool {
            let width = usize::from(width % 9) + 1;
            let number = |i: usize, j: usize| if zeros[i] || j + 1 < width { 0.0 } else { -1.5 };
            let places = (0..zeros.len()).flat_map(|i| (0..width).map(move |j| (i, j)));
            let doubles: Vec<f64> = places.map(|(i, j)| number(i, j)).collect();
            let singles: Vec<f32> = doubles.iter().map(|x| *x as f32).collect();
            let halves: Vec<half::f16> = doubles.iter().map(|x| half::f16::from_f64(*x)).collect();
            let brains: Vec<half::bf16> = doubles.iter().map(|x| half::bf16::from_f64(-*x)).collect();
            let expected = zeros.iter().filter(|zero| **zero).count() as u64;
            let formats = [Values::F64(&doubles), Values::F32(&singles), Values::F16(&halves), Values::Bf16(&brains)];
            for values in formats {
                let mut moments = Moments::new(width);
                let rows = Rows { values, rows: zeros.len(), width, stride: width };
                moments.add(rows, &mut Workspace::default(), 1).unwrap();
                let mut twice = moments.clone();
                twice.merge(&moments).unwrap();
                assert_eq!((moments.zero_rows(), twice.zero_rows()), (expected, 2 * expected));
            }
            true
        }

        /// Sums that were saved and read back are the same moments.
        fn saved_sums_give_the_same_moments(rows: u16, width: u8, seed: u64) -> bool {
            let moments = Moments::of(sample(rows, width, seed).as_ref()).unwrap();
            let (sum, gram) = (moments.sum().to_vec(), moments.gram_triangle().to_vec());
            Moments::from_sums(moments.count(), sum, gram, moments.abs_max().to_vec()).unwrap() == moments
        }

        /// Against the definition in f64: mean and second moment.
        fn agrees_with_the_definition(rows: u16, width: u8, seed: u64) -> bool {
            let x = sample(rows.max(1), width, seed);
            if x.nrows() == 0 { return true; }
            let exact = Mat::from_fn(x.nrows(), x.ncols(), |i, j| f64::from(x[(i, j)]));
            let n = x.nrows() as f64;
            let moments = Moments::of(x.as_ref()).unwrap();
            let second = (exact.transpose() * &exact) * faer::Scale(1.0 / n);
            let mean = moments.mean().unwrap();
            let mean_error = (0..x.ncols()).map(|j| (mean[j] - exact.col(j).sum() / n).abs()).fold(0.0, f64::max);
            (moments.second_moment().unwrap() - second).norm_max() < 1e-5 && mean_error < 1e-5
        }
    }

    #[test]
    fn statistics_of_no_rows_are_errors() {
        let moments = Moments::new(3);
        assert_eq!(moments.mean(), Err(Error::NoRows));
        assert_eq!(moments.covariance(), Err(Error::NoRows));
        assert_eq!(moments.second_moment(), Err(Error::NoRows));
    }

    /// Widths beyond all memory are reported and do not abort.
    #[test]
    fn the_memory_of_huge_widths_is_the_largest_number() {
        assert_eq!([1 << 31, 1 << 32, 1 << 63, u64::MAX].map(Moments::memory), [u64::MAX; 4]);
        assert!(Moments::memory((1 << 31) - 8) < u64::MAX);
    }

    #[test]
    fn widths_beyond_all_memory_are_reported() {
        assert_eq!(Moments::try_new(3), Some(Moments::new(3)));
        assert_eq!(Moments::try_new(1 << 31), None);
        assert_eq!(Moments::try_new(usize::MAX), None);
    }

    /// The position in the error counts from the first row, not from the first row of a block.
    #[test]
    fn position_of_a_nan_counts_from_the_first_row() {
        let mut x = gaussian::<f32>(1200, 5, 0, "rows");
        x[(1100, 3)] = f32::NAN;
        assert_eq!(Moments::of(x.as_ref()), Err(Error::NonFiniteRow { row: 1100, column: 3 }));
    }

    #[test]
    fn inconsistent_sums_are_refused() {
        let from = |sum: &[f64], gram: &[f64], max: &[f32]| {
            Moments::from_sums(1, sum.to_vec(), gram.to_vec(), max.to_vec()).unwrap_err()
        };
        let (two, three) = ([1.0; 2], [1.0; 3]);
        let what = "length of the Gram triangle";
        assert_eq!(from(&two, &two, &[1.0; 2]), Error::Shape { what, expected: 3, found: 2 });
        let what = "number of maxima";
        assert_eq!(from(&two, &three, &[1.0; 3]), Error::Shape { what, expected: 2, found: 3 });
        let what = "a sum over activations";
        assert_eq!(from(&[f64::NAN; 2], &three, &[1.0; 2]), Error::NonFinite { what });
        assert_eq!(from(&two, &three, &[f32::INFINITY; 2]), Error::NonFinite { what });
    }

    #[test]
    fn another_width_is_refused() {
        let mut moments = Moments::new(3);
        let refused = |what| Err(Error::Shape { what, expected: 3, found: 2 });
        assert_eq!(moments.merge(&Moments::new(2)), refused("width of the moments"));
        let rows = Rows { values: Values::F32(&[1.0, 2.0]), rows: 1, width: 2, stride: 2 };
        assert_eq!(moments.add(rows, &mut Workspace::default(), 1), refused("width of the rows"));
    }
}
