//! The statistics of a site, from rows in any number, format and layout.

use super::AnyRows;
use super::rows::{Number, copy};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::moments::Moments;
use crate::simd::{Precision, Rows, Tier, Unsupported, Values, Workspace};
use faer::MatRef;
use half::{bf16, f16};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// The statistics of the rows that a site reads.
///
/// ```
/// use cntlora_numerics::initializer::Statistics;
/// use faer::Mat;
///
/// let rows = Mat::from_fn(1000, 6, |i, j| ((i * i + 3 * j) % 11) as f32);
/// let mut statistics = Statistics::new(6);
/// // Rows may come in any pieces: the statistics have the bits of one pass over all rows.
/// statistics.add(rows.subrows(0, 300))?;
/// statistics.add(rows.subrows(300, 700))?;
/// let mut at_once = Statistics::new(6);
/// at_once.add(&rows)?;
/// assert_eq!(statistics.moments(), at_once.moments());
/// # Ok::<(), cntlora_numerics::error::Error>(())
/// ```
///
/// Rows are added in blocks of [`Workspace::block_rows`]: rows that do not fill a block wait in a buffer for more. A change of the number
/// format ends a block early.
pub struct Statistics {
    moments: Moments,
    workspace: Workspace,
    buffer: Buffer,
    /// True if rows that are not finite are skipped.
    skips: bool,
    /// Number of rows that were skipped, without those that wait in the buffer.
    skipped: u64,
}

/// Rows that do not fill a block yet. All of them are finite, unless such rows are skipped when the block is added.
#[derive(Default)]
struct Buffer {
    rows: usize,
    /// Number of these rows that are not finite.
    not_finite: usize,
    /// The format of the rows.
    format: Option<Element>,
    f64: Vec<f64>,
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
}

impl Buffer {
    /// The rows from `first` on.
    fn rows_from(&self, first: usize, width: usize) -> Rows<'_> {
        let start = first * width;
        let values = match self.format.unwrap_or(Element::F32) {
            Element::F64 => Values::F64(&self.f64[start..]),
            Element::F32 => Values::F32(&self.f32[start..]),
            Element::F16 => Values::F16(&self.f16[start..]),
            Element::Bf16 => Values::Bf16(&self.bf16[start..]),
        };
        Rows { values, rows: self.rows - first, width, stride: width }
    }
}

/// A number format with a place in the buffer.
trait Buffered: Number {
    fn place(buffer: &mut Buffer) -> &mut Vec<Self>;
}

macro_rules! buffered {
    ($($number:ident)+) => {
        $(impl Buffered for $number {
            fn place(buffer: &mut Buffer) -> &mut Vec<Self> {
                &mut buffer.$number
            }
        })+
    };
}
buffered!(f64 f32 f16 bf16);

/// Rows of one number format.
trait Source<T> {
    fn rows(&self) -> usize;
    fn copy(&self, rows: Range<usize>, out: &mut [T]);
    /// Rows that can be added as they are.
    fn block(&self, rows: Range<usize>) -> Option<Rows<'_>>;
}

impl<T: Number> Source<T> for MatRef<'_, T> {
    fn rows(&self) -> usize {
        self.nrows()
    }

    fn copy(&self, rows: Range<usize>, out: &mut [T]) {
        copy(self.subrows(rows.start, rows.len()), out, |number| number);
    }

    fn block(&self, _: Range<usize>) -> Option<Rows<'_>> {
        None
    }
}

/// Row after row in a slice.
struct Slice<'a, T> {
    numbers: &'a [T],
    rows: usize,
    width: usize,
    stride: usize,
}

impl<T: Number> Source<T> for Slice<'_, T> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn copy(&self, rows: Range<usize>, out: &mut [T]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(self.width.max(1))) {
            out.copy_from_slice(&self.numbers[row * self.stride..][..self.width]);
        }
    }

    fn block(&self, rows: Range<usize>) -> Option<Rows<'_>> {
        let (count, width, stride) = (rows.len(), self.width, self.stride);
        Some(Rows { values: T::values(&self.numbers[rows.start * stride..]), rows: count, width, stride })
    }
}

impl Statistics {
    /// The statistics of no rows of `width` numbers.
    pub fn new(width: usize) -> Self {
        Moments::new(width).into()
    }

    /// Statistics that begin with sums that were computed before, with the arithmetic of a precision.
    ///
    /// # Errors
    /// If this processor lacks the instructions.
    pub fn with_precision(moments: Moments, precision: Precision) -> std::result::Result<Self, Unsupported> {
        Ok(Self { workspace: Workspace::new(Tier::best(), precision)?, ..Self::from(moments) })
    }

    /// From now on, rows with NaN or infinity are skipped and counted, in place of an error.
    #[must_use]
    pub fn skipping_nonfinite(self) -> Self {
        Self { skips: true, ..self }
    }

    /// Number of rows that were skipped.
    pub fn skipped(&self) -> u64 {
        self.skipped + self.buffer.not_finite as u64
    }

    /// Adds rows: any number of them, in any number format and layout, on the current rayon pool.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows of another width, and nothing was added; [`Error::NonFiniteRow`] for NaN or infinity, after
    /// conversion to f32: then a part of the rows before that row may have been added, and the statistics should be discarded.
    pub fn add<'a>(&mut self, rows: impl Into<AnyRows<'a>>) -> Result<()> {
        self.add_any(rows.into())
    }

    /// As [`add`](Self::add), with the memory of a workspace that many statistics can share. It must have the same precision.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_with<'a>(&mut self, rows: impl Into<AnyRows<'a>>, workspace: &mut Workspace) -> Result<()> {
        std::mem::swap(&mut self.workspace, workspace);
        let added = self.add_any(rows.into());
        std::mem::swap(&mut self.workspace, workspace);
        added
    }

    /// Not generic, so that it is compiled with this crate.
    fn add_any(&mut self, rows: AnyRows<'_>) -> Result<()> {
        rows.check(self.width())?;
        match rows {
            AnyRows::F64(rows) => self.add_from(&rows),
            AnyRows::F32(rows) => self.add_from(&rows),
            AnyRows::F16(rows) => self.add_from(&rows),
            AnyRows::Bf16(rows) => self.add_from(&rows),
            AnyRows::Slice(Rows { values, rows, width, stride }) => match values {
                Values::F64(numbers) => self.add_from(&Slice { numbers, rows, width, stride }),
                Values::F32(numbers) => self.add_from(&Slice { numbers, rows, width, stride }),
                Values::F16(numbers) => self.add_from(&Slice { numbers, rows, width, stride }),
                Values::Bf16(numbers) => self.add_from(&Slice { numbers, rows, width, stride }),
            },
        }
    }

    fn add_from<T: Buffered>(&mut self, source: &impl Source<T>) -> Result<()> {
        if self.buffer.format != Some(T::ELEMENT) {
            self.finish_block()?;
            self.buffer.format = Some(T::ELEMENT);
        }
        let (width, block_rows) = (self.width(), self.workspace.block_rows(T::ELEMENT));
        let mut first = 0;
        while first < source.rows() {
            let waiting = self.buffer.rows;
            let count = (block_rows - waiting).min(source.rows() - first);
            let rows = first..first + count;
            // The position in the rows that were given, of a number whose row is counted from the row `start` of the block.
            let given = |start: usize| {
                move |error| match error {
                    Error::NonFiniteRow { row, column } => {
                        Error::NonFiniteRow { row: first + start + row - waiting, column }
                    }
                    other => other,
                }
            };
            match source.block(rows.clone()).filter(|_| count == block_rows) {
                Some(block) => {
                    self.skipped +=
                        add(&mut self.moments, block, &mut self.workspace, self.skips).map_err(given(0))?;
                }
                None => {
                    let place = T::place(&mut self.buffer);
                    place.resize((waiting + count) * width, T::default());
                    source.copy(rows, &mut place[waiting * width..]);
                    self.buffer.rows += count;
                    // A whole block is checked as it is added. The rows that waited were checked before.
                    let added = match self.buffer.rows == block_rows {
                        true => self.finish_block().map_err(given(0)),
                        false => self.check_from(waiting).map_err(given(waiting)),
                    };
                    if let Err(error) = added {
                        self.buffer.rows = waiting;
                        return Err(error);
                    }
                }
            }
            first += count;
        }
        Ok(())
    }

    /// Adds the rows of the buffer.
    fn finish_block(&mut self) -> Result<()> {
        if self.buffer.rows > 0 {
            let waiting = self.buffer.rows_from(0, self.moments.width());
            self.skipped += add(&mut self.moments, waiting, &mut self.workspace, self.skips)?;
            (self.buffer.rows, self.buffer.not_finite) = (0, 0);
        }
        Ok(())
    }

    /// Looks for numbers that are not finite in the rows of the buffer from `first` on: refuses them, or counts their rows.
    fn check_from(&mut self, first: usize) -> Result<()> {
        let rows = self.buffer.rows_from(first, self.moments.width());
        if self.skips {
            self.buffer.not_finite += (0..rows.rows).filter(|&row| !rows.is_finite(row)).count();
            return Ok(());
        }
        match rows.first_non_finite() {
            None => Ok(()),
            Some((row, column)) => Err(Error::NonFiniteRow { row, column }),
        }
    }

    /// Adds the statistics of further rows. The result has other bits than one pass over all rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for statistics of another width.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.finish_block()?;
        self.moments.merge(&other.moments())?;
        self.skipped += other.skipped();
        Ok(())
    }

    /// Numbers per row, `d`.
    pub fn width(&self) -> usize {
        self.moments.width()
    }

    /// Number of rows, without those that were skipped.
    pub fn count(&self) -> u64 {
        self.moments.count() + (self.buffer.rows - self.buffer.not_finite) as u64
    }

    /// The sums over all rows, which can be saved and read back with [`Moments::from_sums`].
    ///
    /// They are copied where rows wait in the buffer.
    ///
    /// # Panics
    /// Never.
    pub fn moments(&self) -> Cow<'_, Moments> {
        if self.buffer.rows == 0 {
            return Cow::Borrowed(&self.moments);
        }
        let mut moments = self.moments.clone();
        let waiting = self.buffer.rows_from(0, self.width());
        let added = add(&mut moments, waiting, &mut self.workspace.fresh(), self.skips);
        added.expect("rows in the buffer have this width, and are finite or skipped");
        Cow::Owned(moments)
    }
}

impl From<Moments> for Statistics {
    /// Statistics that begin with sums that were computed before.
    fn from(moments: Moments) -> Self {
        let (workspace, buffer) = (Workspace::default(), Buffer::default());
        Self { moments, workspace, buffer, skips: false, skipped: 0 }
    }
}

impl fmt::Debug for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (width, count) = (self.width(), self.count());
        f.debug_struct("Statistics").field("width", &width).field("count", &count).finish_non_exhaustive()
    }
}

/// Adds a block on the current rayon pool. Returns the number of skipped rows.
fn add(moments: &mut Moments, rows: Rows<'_>, workspace: &mut Workspace, skips: bool) -> Result<u64> {
    let threads = rayon::current_num_threads();
    match skips {
        true => moments.add_finite(rows, workspace, threads),
        false => moments.add(rows, workspace, threads).map(|()| 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::gaussian;
    use crate::simd::BLOCK_ROWS;
    use faer::Mat;
    use quickcheck::quickcheck;

    fn of<'a>(width: usize, pieces: impl IntoIterator<Item = AnyRows<'a>>) -> Statistics {
        let mut statistics = Statistics::new(width);
        pieces.into_iter().for_each(|piece| statistics.add(piece).unwrap());
        statistics
    }

    quickcheck! {
        /// Rows in any pieces and any layout have the bits of one pass over all rows.
        fn pieces_have_the_bits_of_one_pass(width: u8, cuts: Vec<u16>, seed: u64) -> bool {
            let width = usize::from(width % 7) + 1;
            let rows = gaussian::<f32>(3 * BLOCK_ROWS + 17, width, seed, "rows");
            let wanted = Moments::of(rows.as_ref()).unwrap();
            let stride = width + 2;
            let row_major: Vec<f32> = (0..rows.nrows() * stride)
                .map(|at| if at % stride < width { rows[(at / stride, at % stride)] } else { f32::NAN })
                .collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut) % (rows.nrows() + 1)).collect();
            cuts.extend([0, rows.nrows()]);
            cuts.sort_unstable();
            let pieces = |layout: usize| {
                let (rows, row_major) = (&rows, &row_major);
                of(width, cuts.windows(2).enumerate().map(move |(piece, cut)| {
                    let (first, count) = (cut[0], cut[1] - cut[0]);
                    match (layout + piece) % 3 {
                        0 => rows.subrows(first, count).into(),
                        1 => {
                            let all = MatRef::from_row_major_slice(row_major, row_major.len() / stride, stride);
                            all.submatrix(first, 0, count, width).into()
                        }
                        _ => {
                            let values = Values::F32(&row_major[first * stride..]);
                            Rows { values, rows: count, width, stride }.into()
                        }
                    }
                }))
            };
            (0..3).all(|layout| *pieces(layout).moments() == wanted)
        }
    }

    /// Every format is added in its own precision, and a change of format ends a block.
    #[test]
    fn formats_are_added_as_they_are() {
        let rows = gaussian::<f64>(900, 5, 1, "rows");
        let single = Mat::from_fn(900, 5, |i, j| rows[(i, j)] as f32);
        let half = Mat::from_fn(900, 5, |i, j| f16::from_f64(rows[(i, j)]));
        let brain = Mat::from_fn(900, 5, |i, j| bf16::from_f64(rows[(i, j)]));
        let widened = |number: &dyn Fn(usize, usize) -> f32| {
            Moments::of(Mat::from_fn(900, 5, number).as_ref()).unwrap()
        };
        assert_eq!(*of(5, [(&single).into()]).moments(), widened(&|i, j| single[(i, j)]));
        assert_eq!(*of(5, [(&half).into()]).moments(), widened(&|i, j| half[(i, j)].to_f32()));
        assert_eq!(*of(5, [(&brain).into()]).moments(), widened(&|i, j| brain[(i, j)].to_f32()));
        let statistics = of(5, [(&rows).into(), (&single).into(), (&half).into(), (&brain).into()]);
        assert_eq!(statistics.count(), 3600);
        let error = (statistics.moments().covariance().unwrap()
            - of(5, [(&rows).into()]).moments().covariance().unwrap())
        .norm_max();
        assert!(error < 1e-3, "{error:e}");
    }

    /// The position counts from the first row of the call, and the rows before the call stay.
    #[test]
    fn rows_that_are_not_finite_are_refused() {
        let mut rows = gaussian::<f32>(1400, 3, 0, "rows");
        let first = rows.subrows(0, 100).to_owned();
        let mut statistics = of(3, [(&first).into()]);
        for row in [1, 539, 540, 1300] {
            rows[(row, 2)] = f32::INFINITY;
            assert_eq!(statistics.add(&rows), Err(Error::NonFiniteRow { row, column: 2 }), "{row}");
            rows[(row, 2)] = 0.0;
            statistics = of(3, [(&first).into()]);
        }
        let short = rows.subrows(0, 200).to_owned();
        let mut bad = short.clone();
        bad[(7, 1)] = f32::NAN;
        assert_eq!(statistics.add(&bad), Err(Error::NonFiniteRow { row: 7, column: 1 }));
        statistics.add(&short).unwrap();
        assert_eq!(*statistics.moments(), *of(3, [(&first).into(), (&short).into()]).moments());
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let mut statistics = Statistics::new(3);
        let mut refused = |width, stride| {
            let rows = Rows { values: Values::F32(&[0.0; 7]), rows: 3, width, stride };
            statistics.add(rows).unwrap_err().to_string()
        };
        expect_test::expect!["width of the rows: expected 3, found 4"].assert_eq(&refused(4, 4));
        expect_test::expect!["stride of the rows: expected 3, found 2"].assert_eq(&refused(3, 2));
        expect_test::expect!["numbers in the slice of rows: expected 9, found 7"].assert_eq(&refused(3, 3));
    }

    /// Rows are cut into blocks as if none was skipped, so that the bits are those of blocks from a file.
    #[test]
    fn rows_that_are_not_finite_can_be_skipped() {
        let mut rows = gaussian::<f32>(2 * BLOCK_ROWS + 50, 3, 0, "rows");
        let bad = [0, 5, BLOCK_ROWS - 1, BLOCK_ROWS, 2 * BLOCK_ROWS + 7];
        bad.iter().for_each(|row| rows[(*row, row % 3)] = f32::NAN);
        let mut wanted = Moments::new(3);
        for first in (0..rows.nrows()).step_by(BLOCK_ROWS) {
            let kept = (first..rows.nrows().min(first + BLOCK_ROWS)).filter(|row| !bad.contains(row));
            let block: Vec<f64> = kept
                .flat_map(|row| (0..3).map(move |column| (row, column)))
                .map(|at| rows[at].into())
                .collect();
            let block = Rows { values: Values::F64(&block), rows: block.len() / 3, width: 3, stride: 3 };
            wanted.add(block, &mut Workspace::default(), 1).unwrap();
        }
        for pieces in [1, 7, 100, rows.nrows()] {
            let mut statistics = Statistics::new(3).skipping_nonfinite();
            let mut shared = Workspace::default();
            for first in (0..rows.nrows()).step_by(pieces) {
                let piece = rows.subrows(first, pieces.min(rows.nrows() - first));
                statistics.add_with(piece, &mut shared).unwrap();
                let read = statistics.count() + statistics.skipped();
                assert_eq!(read, (first + piece.nrows()) as u64);
            }
            assert_eq!(statistics.skipped(), 5);
            assert_eq!(*statistics.moments(), wanted, "{pieces}");
        }
    }

    /// Statistics of bf16 that are read early, or begin with sums, must use the chosen arithmetic too.
    #[test]
    fn a_precision_holds_for_all_rows() {
        let whole = Precision::Bf16.block_rows(Element::Bf16);
        let rows = gaussian::<f32>(whole + 70, 3, 0, "rows");
        let rows: Vec<bf16> =
            (0..rows.nrows() * 3).map(|at| bf16::from_f32(rows[(at / 3, at % 3)])).collect();
        let block = |from: usize, to: usize| Rows {
            values: Values::Bf16(&rows[3 * from..3 * to]),
            rows: to - from,
            width: 3,
            stride: 3,
        };
        let mut workspace = Workspace::new(Tier::best(), Precision::Bf16).unwrap();
        let mut wanted = Moments::new(3);
        wanted.add(block(0, whole), &mut workspace, 1).unwrap();
        let mut statistics = Statistics::with_precision(wanted.clone(), Precision::Bf16).unwrap();
        wanted.add(block(whole, whole + 70), &mut workspace, 1).unwrap();
        statistics.add(block(whole, whole + 70)).unwrap();
        assert_eq!(*statistics.moments(), wanted);
        let single = of(3, [block(0, whole + 70).into()]);
        let multiplied_as_f32 = Precision::Bf16.products_name() == "f32";
        assert_eq!(*single.moments() == wanted, multiplied_as_f32);
    }

    #[test]
    fn merged_statistics_are_those_of_all_rows() {
        let rows = gaussian::<f32>(1500, 4, 2, "rows");
        let mut merged = of(4, [rows.subrows(0, 700).into()]);
        merged.merge(&of(4, [rows.subrows(700, 800).into()])).unwrap();
        let (merged, whole) = (merged.moments().into_owned(), Moments::of(rows.as_ref()).unwrap());
        assert_eq!(merged.count(), 1500);
        assert!((merged.covariance().unwrap() - whole.covariance().unwrap()).norm_max() < 1e-5);
    }
}
