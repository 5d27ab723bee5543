//! Adds streams of row blocks to moments.

use super::partial::{PAIRS, PartialRun};
use super::saved_sums::{Extent, Keeper, SavedSums, Sums};
use super::{Event, Observer};
use crate::activations::{ActivationSet, Block, Part, Site};
use crate::error::Error;
use crate::moments::{Moments, PairedMoments, join_pairs};
use crate::plan::Nonfinite;
use crate::simd::{BLOCK_ROWS, Precision, Rows, Tier, Values, Workspace};
use crate::storage::Problem;
use std::ops::Range;

/// Options for reading and adding rows.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub nonfinite: Nonfinite,
    pub precision: Precision,
    pub threads: usize,
    pub observer: &'a dyn Observer,
    /// The folder for saved progress, if there is one.
    pub partial: Option<&'a PartialRun>,
}

/// Sums, and the number of skipped rows.
pub(super) struct Measured<T> {
    pub moments: T,
    pub skipped_rows: u64,
    /// True if the saved sums contain all rows.
    pub saved: bool,
}

impl Reading<'_> {
    /// Measures the given rows of a site. The range starts and ends at borders of blocks. `kind` names the saved sums.
    pub(super) fn measure(
        self,
        set: &ActivationSet,
        site: &Site,
        rows: Range<u64>,
        kind: &str,
    ) -> Result<Measured<Moments>, Problem> {
        let extent = Extent { site: &site.name, width: site.width, rows, precision: self.precision };
        let saved = self.partial.map(|partial| partial.sums(&site.name, kind));
        let Sums { mut moments, mut next_row, mut skipped_rows } = self.begin(saved.as_ref(), &extent, 1)?;
        let mut keeper = Keeper::new(saved.as_ref(), &extent, self.observer);
        let mut workspace = self.workspace()?;
        let longest = |part: &Part| workspace.block_rows(part.element);
        let block_rows = site.parts().iter().map(longest).min().unwrap_or(BLOCK_ROWS);
        let mut blocks = set.blocks(site, site.spans(next_row..extent.rows.end, block_rows, Vec::new()));
        while let Some(block) = blocks.next()? {
            let count = block.rows.rows as u64;
            skipped_rows += self.add(
                block.rows,
                |rows| moments.add(rows, &mut workspace, self.threads),
                |row, column| not_finite(&block, row, column),
            )?;
            next_row += count;
            self.observer.event(Event::RowsAdded { site: &site.name, rows: count });
            keeper.block_added(&moments, next_row, skipped_rows)?;
        }
        let saved = keeper.all_added(&moments, next_row, skipped_rows)?;
        Ok(Measured { moments, skipped_rows, saved })
    }

    /// Measures pairs: row i of the source and row i of the target come from the same input. A pair is skipped if a row of it is.
    pub(super) fn measure_pairs(
        self,
        (source, source_site): (&ActivationSet, &Site),
        (target, target_site): (&ActivationSet, &Site),
    ) -> Result<Measured<PairedMoments>, Problem> {
        let width = target_site.width;
        let rows = 0..target_site.rows();
        let extent = Extent { site: &target_site.name, width: 2 * width, rows, precision: self.precision };
        let saved = self.partial.map(|partial| partial.sums(&target_site.name, PAIRS));
        let Sums { moments, mut next_row, mut skipped_rows } = self.begin(saved.as_ref(), &extent, 2)?;
        let mut moments =
            PairedMoments::from_joint(moments).map_err(|error| Problem::data(error.to_string()))?;
        let mut keeper = Keeper::new(saved.as_ref(), &extent, self.observer);
        let mut workspace = self.workspace()?;
        // Both sides can have different parts. A block ends at the end of a part of either side.
        let rows = next_row..extent.rows.end;
        let z_spans = source_site.spans(rows.clone(), BLOCK_ROWS, target_site.borders());
        let x_spans = target_site.spans(rows, BLOCK_ROWS, source_site.borders());
        let mut z_blocks = source.blocks(source_site, z_spans);
        let mut x_blocks = target.blocks(target_site, x_spans);
        let mut pairs: Vec<f64> = Vec::new();
        while let (Some(z), Some(x)) = (z_blocks.next()?, x_blocks.next()?) {
            let rows = x.rows.rows;
            join_pairs(z.rows, x.rows, &mut pairs);
            let joined = Rows { values: Values::F64(&pairs), rows, width: 2 * width, stride: 2 * width };
            skipped_rows += self.add(
                joined,
                |rows| moments.add(rows, &mut workspace, self.threads),
                |row, column| {
                    let mut numbers = vec![0.0; width];
                    for side in [&z, &x] {
                        side.rows.copy_row(row, &mut numbers);
                        if let Some(column) = numbers.iter().position(|number| !is_finite(number)) {
                            return not_finite(side, row, column);
                        }
                    }
                    too_far(&x, row, column)
                },
            )?;
            next_row += rows as u64;
            self.observer.event(Event::RowsAdded { site: &target_site.name, rows: 2 * rows as u64 });
            keeper.block_added(moments.joint(), next_row, skipped_rows)?;
        }
        let saved = keeper.all_added(moments.joint(), next_row, skipped_rows)?;
        Ok(Measured { moments, skipped_rows, saved })
    }

    /// Loads the saved sums, or starts with empty ones. `sides` is the number of rows in files for each added row.
    fn begin(self, saved: Option<&SavedSums>, extent: &Extent<'_>, sides: u64) -> Result<Sums, Problem> {
        let loaded = match saved {
            Some(saved) => saved.load(extent)?,
            None => None,
        };
        if let Some(Sums { next_row, .. }) = &loaded {
            let rows = (next_row - extent.rows.start).saturating_mul(sides);
            self.observer.event(Event::Resumed { site: extent.site, rows });
        }
        if let Some(loaded) = loaded {
            return Ok(loaded);
        }
        let moments = Moments::try_new(extent.width).ok_or_else(|| {
            let what =
                format!("not enough memory for {} bytes of moments", Moments::memory(extent.width as u64));
            Problem::environment(what).in_tensor(extent.site)
        })?;
        Ok(Sums { moments, next_row: extent.rows.start, skipped_rows: 0 })
    }

    fn workspace(self) -> Result<Workspace, Problem> {
        Workspace::new(Tier::best(), self.precision).map_err(|error| Problem::usage(error.to_string()))
    }

    /// Adds rows. Skips rows that are not finite, if that is allowed. Returns the number of skipped rows.
    /// `refusal` gives the problem for a row and column.
    fn add(
        self,
        rows: Rows<'_>,
        mut add: impl FnMut(Rows<'_>) -> crate::error::Result<()>,
        refusal: impl Fn(usize, usize) -> Problem,
    ) -> Result<u64, Problem> {
        match add(rows) {
            Ok(()) => Ok(0),
            Err(Error::NonFiniteRow { .. }) if self.nonfinite == Nonfinite::SkipRows => {
                let finite = rows.finite();
                let kept = finite.len() / rows.width;
                let (width, stride) = (rows.width, rows.width);
                add(Rows { values: Values::F64(&finite), rows: kept, width, stride })
                    .map_err(|error| Problem::data(error.to_string()))?;
                Ok((rows.rows - kept) as u64)
            }
            Err(Error::NonFiniteRow { row, column }) => Err(refusal(row, column)),
            Err(other) => Err(Problem::data(other.to_string())),
        }
    }
}

/// Returns whether a number is finite as an f32.
fn is_finite(number: &f64) -> bool {
    (*number as f32).is_finite()
}

/// The problem of a number that is not finite.
fn not_finite(block: &Block<'_>, row: usize, column: usize) -> Problem {
    let row = block.first_row + row as u64;
    Problem::data(format!("row {row}, column {column} is not a finite f32 number"))
        .in_file(block.path)
        .in_tensor(block.tensor)
        .help(
            "record these activations again, or skip such rows with --nonfinite skip-rows; `cntlora inspect --values` counts \
             such numbers",
        )
}

/// The problem of a number whose difference from the pre-training row overflows.
fn too_far(block: &Block<'_>, row: usize, column: usize) -> Problem {
    let row = block.first_row + row as u64;
    Problem::data(format!(
        "row {row}, column {column}: its difference from the pre-training activations is not a finite f32 number"
    ))
    .in_file(block.path)
    .in_tensor(block.tensor)
    .help("check that both recordings come from the same inputs, or skip such rows with --nonfinite skip-rows")
}

#[cfg(test)]
mod tests;
