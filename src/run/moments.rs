//! Streams of row blocks into moments.

use super::{Event, Observer};
use crate::activations::{ActivationSet, Block, Site};
use crate::error::Error;
use crate::moments::{Moments, PairedMoments};
use crate::plan::Nonfinite;
use crate::simd::{BLOCK_ROWS, Precision, Rows, Tier, Values, Workspace};
use crate::storage::Problem;

/// How rows are read and added.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub nonfinite: Nonfinite,
    pub precision: Precision,
    pub threads: usize,
    pub observer: &'a dyn Observer,
}

/// Sums, and how many rows were left out of them.
pub(super) struct Measured<T> {
    pub moments: T,
    pub skipped_rows: u64,
}

impl Reading<'_> {
    /// The moments of all rows of a site.
    pub(super) fn measure(self, set: &ActivationSet, site: &Site) -> Result<Measured<Moments>, Problem> {
        let mut workspace = self.workspace()?;
        let mut moments = Moments::new(site.width);
        let mut skipped_rows = 0;
        let mut blocks = set.blocks(site, site.spans(BLOCK_ROWS, Vec::new()));
        while let Some(block) = blocks.next()? {
            let count = block.rows.rows as u64;
            skipped_rows += self.add(
                block.rows,
                |rows| moments.add(rows, &mut workspace, self.threads),
                |row, column| (&block, row, column),
            )?;
            self.observer.event(Event::RowsAdded { site: &site.name, rows: count });
        }
        Ok(Measured { moments, skipped_rows })
    }

    /// The moments of pairs: row i of the source and row i of the target are the same input. A pair is left out
    /// if either side is.
    pub(super) fn measure_pairs(
        self,
        (source, source_site): (&ActivationSet, &Site),
        (target, target_site): (&ActivationSet, &Site),
    ) -> Result<Measured<PairedMoments>, Problem> {
        let width = target_site.width;
        let mut workspace = self.workspace()?;
        let mut moments = PairedMoments::new(width);
        let mut skipped_rows = 0;
        // Parts of both sides may be cut differently: a block ends where either side ends.
        let z_spans = source_site.spans(BLOCK_ROWS, target_site.borders());
        let x_spans = target_site.spans(BLOCK_ROWS, source_site.borders());
        let mut z_blocks = source.blocks(source_site, z_spans);
        let mut x_blocks = target.blocks(target_site, x_spans);
        let mut pairs: Vec<f32> = Vec::new();
        while let (Some(z), Some(x)) = (z_blocks.next()?, x_blocks.next()?) {
            let rows = x.rows.rows;
            pairs.resize(rows * 2 * width, 0.0);
            for (row, pair) in pairs.chunks_exact_mut(2 * width).enumerate() {
                let (left, right) = pair.split_at_mut(width);
                z.rows.copy_row(row, left);
                x.rows.copy_row(row, right);
            }
            let joined = Rows { values: Values::F32(&pairs), rows, width: 2 * width, stride: 2 * width };
            skipped_rows += self.add(
                joined,
                |rows| moments.add(rows, &mut workspace, self.threads),
                |row, column| if column < width { (&z, row, column) } else { (&x, row, column - width) },
            )?;
            self.observer.event(Event::RowsAdded { site: &target_site.name, rows: 2 * rows as u64 });
        }
        Ok(Measured { moments, skipped_rows })
    }

    fn workspace(self) -> Result<Workspace, Problem> {
        Workspace::new(Tier::best(), self.precision).map_err(|error| Problem::usage(error.to_string()))
    }

    /// Adds rows, or, where some are not finite and may be skipped, the others. Returns how many were skipped.
    fn add<'b>(
        self,
        rows: Rows<'_>,
        mut add: impl FnMut(Rows<'_>) -> crate::error::Result<()>,
        place: impl Fn(usize, usize) -> (&'b Block<'b>, usize, usize),
    ) -> Result<u64, Problem> {
        match add(rows) {
            Ok(()) => Ok(0),
            Err(Error::NonFiniteRow { .. }) if self.nonfinite == Nonfinite::SkipRows => {
                let finite = finite_rows(rows);
                let kept = finite.len() / rows.width;
                let (width, stride) = (rows.width, rows.width);
                add(Rows { values: Values::F32(&finite), rows: kept, width, stride })
                    .map_err(|error| Problem::data(error.to_string()))?;
                Ok((rows.rows - kept) as u64)
            }
            Err(Error::NonFiniteRow { row, column }) => {
                let (block, row, column) = place(row, column);
                let row = block.first_row + row as u64;
                Err(Problem::data(format!("row {row}, column {column} is not a finite f32 number"))
                    .in_file(block.path)
                    .in_tensor(block.tensor)
                    .help(
                        "record these activations again, or leave such rows out with --nonfinite skip-rows",
                    ))
            }
            Err(other) => Err(Problem::data(other.to_string())),
        }
    }
}

/// The rows that are finite in every column, as f32.
fn finite_rows(rows: Rows<'_>) -> Vec<f32> {
    let mut finite = Vec::with_capacity(rows.rows * rows.width);
    let mut numbers = vec![0.0f32; rows.width];
    for row in 0..rows.rows {
        rows.copy_row(row, &mut numbers);
        if numbers.iter().all(|value| value.is_finite()) {
            finite.extend_from_slice(&numbers);
        }
    }
    finite
}
