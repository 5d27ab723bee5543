//! The statistics of a site, from rows in any number, format and layout.

use super::AnyRows;
use super::blocks::{Block, Buffered, Slice, Source, add};
use crate::error::{Error, Result};
use crate::moments::Moments;
use crate::simd::{Precision, Rows, Tier, Unsupported, Values, Workspace};
use std::borrow::Cow;
use std::fmt;

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
/// Rows are added in blocks of [`Workspace::block_rows`]: rows that do not fill a block wait for more. A change of the number format ends a
/// block early. With [`take`](Self::take), full blocks wait too, until [`Together`](super::Together) multiplies those of many statistics.
pub struct Statistics {
    moments: Moments,
    workspace: Workspace,
    /// Blocks that are complete but not in the sums yet, in order.
    waiting: Vec<Block>,
    /// The block that further rows belong to.
    current: Block,
    /// True if rows that are not finite are skipped.
    skips: bool,
    /// Number of rows that were skipped, without those of blocks that wait.
    skipped: u64,
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
        self.skipped + self.blocks().map(|block| block.not_finite as u64).sum::<u64>()
    }

    /// Adds rows: any number of them, in any number format and layout, on the current rayon pool.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows of another width, and nothing was added; [`Error::NonFiniteRow`] for NaN or infinity, after
    /// conversion to f32: then a part of the rows before that row may have been added, and the statistics should be discarded.
    pub fn add<'a>(&mut self, rows: impl Into<AnyRows<'a>>) -> Result<()> {
        self.multiply();
        self.add_any(rows.into(), When::Now)
    }

    /// As [`add`](Self::add), but the rows are only copied and checked, on this thread. They count, but full blocks wait for
    /// [`Together`](super::Together), or for the next rows that are added.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn take<'a>(&mut self, rows: impl Into<AnyRows<'a>>) -> Result<()> {
        self.add_any(rows.into(), When::Later)
    }

    /// Bytes of the full blocks that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(|block| block.bytes(self.width())).sum()
    }

    /// Operations that the full blocks need, in products of two numbers.
    pub(super) fn waiting_work(&self) -> f64 {
        let rows: usize = self.waiting.iter().map(|block| block.rows).sum();
        rows as f64 * (self.width() as f64).powi(2)
    }

    /// Not generic, so that it is compiled with this crate.
    fn add_any(&mut self, rows: AnyRows<'_>, when: When) -> Result<()> {
        rows.check(self.width())?;
        match rows {
            AnyRows::F64(rows) => self.add_from(&rows, when),
            AnyRows::F32(rows) => self.add_from(&rows, when),
            AnyRows::F16(rows) => self.add_from(&rows, when),
            AnyRows::Bf16(rows) => self.add_from(&rows, when),
            AnyRows::Slice(Rows { values, rows, width, stride }) => match values {
                Values::F64(numbers) => self.add_from(&Slice { numbers, rows, width, stride }, when),
                Values::F32(numbers) => self.add_from(&Slice { numbers, rows, width, stride }, when),
                Values::F16(numbers) => self.add_from(&Slice { numbers, rows, width, stride }, when),
                Values::Bf16(numbers) => self.add_from(&Slice { numbers, rows, width, stride }, when),
            },
        }
    }

    fn add_from<T: Buffered>(&mut self, source: &impl Source<T>, when: When) -> Result<()> {
        if self.current.format != Some(T::ELEMENT) {
            self.finish_block(when);
            self.current.format = Some(T::ELEMENT);
        }
        let (width, block_rows) = (self.width(), self.workspace.block_rows(T::ELEMENT));
        let mut first = 0;
        while first < source.rows() {
            let before = self.current.rows;
            let count = (block_rows - before).min(source.rows() - first);
            let rows = first..first + count;
            let in_source = |error| match error {
                Error::NonFiniteRow { row, column } => Error::NonFiniteRow { row: first + row, column },
                other => other,
            };
            match source.block(rows.clone()).filter(|_| count == block_rows && when == When::Now) {
                Some(block) => {
                    let added = add(&mut self.moments, block, &mut self.workspace, threads(), self.skips);
                    self.skipped += added.map_err(in_source)?;
                }
                None => {
                    let place = T::place(&mut self.current);
                    place.reserve_exact(block_rows * width - place.len());
                    source.append(rows, place);
                    self.current.rows += count;
                    if let Err(error) = self.current.check_from(before, width, self.skips) {
                        T::place(&mut self.current).truncate(before * width);
                        self.current.rows = before;
                        return Err(in_source(error));
                    }
                    if self.current.rows == block_rows {
                        self.finish_block(when);
                    }
                }
            }
            first += count;
        }
        Ok(())
    }

    /// Ends the current block.
    fn finish_block(&mut self, when: When) {
        if self.current.rows > 0 {
            let next = Block::of(self.current.format);
            self.waiting.push(std::mem::replace(&mut self.current, next));
        }
        if when == When::Now {
            self.multiply();
        }
    }

    /// Adds the blocks that wait to the sums, on the current rayon pool.
    fn multiply(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut workspace = std::mem::take(&mut self.workspace);
        self.multiply_with(&mut workspace, threads());
        self.workspace = workspace;
    }

    /// Adds the blocks that wait to the sums. The workspace must have the same precision.
    pub(super) fn multiply_with(&mut self, workspace: &mut Workspace, threads: usize) {
        for block in self.waiting.drain(..) {
            self.skipped += block.add_to(&mut self.moments, workspace, threads, self.skips);
            if self.current.rows == 0 {
                // Its memory is used again.
                self.current = block.emptied();
            }
        }
    }

    /// All blocks that are not in the sums.
    fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.waiting.iter().chain([&self.current])
    }

    /// Adds the statistics of further rows. The result has other bits than one pass over all rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for statistics of another width.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.finish_block(When::Now);
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
        self.moments.count() + self.blocks().map(|block| (block.rows - block.not_finite) as u64).sum::<u64>()
    }

    /// The sums over all rows, which can be saved and read back with [`Moments::from_sums`].
    ///
    /// They are copied if rows wait.
    ///
    /// # Panics
    /// Never.
    pub fn moments(&self) -> Cow<'_, Moments> {
        if self.blocks().all(|block| block.rows == 0) {
            return Cow::Borrowed(&self.moments);
        }
        let (mut moments, mut workspace) = (self.moments.clone(), self.workspace.fresh());
        for block in self.blocks() {
            block.add_to(&mut moments, &mut workspace, threads(), self.skips);
        }
        Cow::Owned(moments)
    }
}

/// When full blocks are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Now,
    Later,
}

impl From<Moments> for Statistics {
    /// Statistics that begin with sums that were computed before.
    fn from(moments: Moments) -> Self {
        let (workspace, waiting, current) = (Workspace::default(), Vec::new(), Block::default());
        Self { moments, workspace, waiting, current, skips: false, skipped: 0 }
    }
}

impl fmt::Debug for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (width, count) = (self.width(), self.count());
        f.debug_struct("Statistics").field("width", &width).field("count", &count).finish_non_exhaustive()
    }
}

fn threads() -> usize {
    rayon::current_num_threads()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Element;
    use crate::random::gaussian;
    use crate::simd::BLOCK_ROWS;
    use faer::{Mat, MatRef};
    use half::{bf16, f16};
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
            for first in (0..rows.nrows()).step_by(pieces) {
                let piece = rows.subrows(first, pieces.min(rows.nrows() - first));
                statistics.add(piece).unwrap();
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
