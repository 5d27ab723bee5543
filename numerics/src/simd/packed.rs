//! The memory of one packed block: its centred rows as panels, and its column statistics.
//!
//! A panel holds [`VECTORS`](super::shape::VECTORS) vectors of neighbouring columns, line after line. A line is one row of f32, or two
//! rows of bf16 interleaved: a *word* is four bytes either way. The last panel is padded with zeros.

use super::Rows;
use super::columns::all_finite;
use super::pack::{Lost, Pack};
use super::shape::GROUP;
use super::threads::share;
use crate::error::Result;

/// A packed block. Its memory is reused for the next one.
#[derive(Default)]
pub(super) struct Packed<W> {
    /// The panels of all columns, padded to whole groups.
    panels: Panels<W>,
    /// Sum of each column in f32, padded to whole groups, as are all following fields.
    sum: Vec<f32>,
    /// Bits of the largest absolute value of each column.
    pub magnitude: Vec<u32>,
    /// The pilot of each column, `c`.
    pub pilot: Vec<f64>,
    /// Sum of each column after the subtraction, `s`.
    pub rest: Vec<f64>,
    /// Sum of each original column, `s + n c`.
    pub total: Vec<f64>,
    /// Parts of numbers that the panels cannot hold, for each group of columns.
    pub lost: Vec<Vec<Lost>>,
    /// The products of these parts.
    pub corrections: Vec<Correction>,
}

/// The products of the lost parts of a column, `Σ l_i h_j` for all `j` (see `corrections`).
pub(super) struct Correction {
    pub column: usize,
    pub products: Vec<f64>,
}

/// Panels of one width, one after the other. Their memory is reused.
#[derive(Default)]
pub(super) struct Panels<W> {
    words: Vec<W>,
    /// Words before the first cache line.
    start: usize,
    /// Words in one panel.
    panel_len: usize,
}

const CACHE_LINE: usize = 64;

impl<W: Copy + Default> Panels<W> {
    /// Room for panels of `columns` columns together.
    pub(super) fn resize(&mut self, columns: usize, panel_width: usize, lines: usize) -> &mut [W] {
        self.panel_len = lines * panel_width;
        let slack = CACHE_LINE / size_of::<W>();
        let len = columns * lines;
        if self.words.len() < len + slack {
            self.words = vec![W::default(); len + slack];
        }
        // `align_offset` may fail. Then only speed suffers.
        self.start = self.words.as_ptr().align_offset(CACHE_LINE).min(slack);
        &mut self.words[self.start..][..len]
    }
}

impl<W> Panels<W> {
    pub(super) fn get(&self, index: usize) -> &[W] {
        &self.starting_at(index)[..self.panel_len]
    }

    fn starting_at(&self, index: usize) -> &[W] {
        &self.words[self.start..][index * self.panel_len..]
    }
}

impl<W: Copy + Default + Send> Packed<W> {
    /// Fills itself with a block of at least one row and column, in panels of so many lines; `pack` fills a group of columns.
    pub(super) fn fill(
        &mut self,
        rows: Rows<'_>,
        lines: usize,
        panel_width: usize,
        threads: usize,
        pack: impl Fn(Pack<'_, W>) + Sync,
    ) {
        let columns = rows.width.next_multiple_of(GROUP);
        let groups = columns / GROUP;
        self.lost.resize_with(groups, Vec::new);
        self.corrections.clear();
        self.sum.resize(columns, 0.0);
        self.magnitude.resize(columns, 0);
        for numbers in [&mut self.pilot, &mut self.rest, &mut self.total] {
            numbers.resize(columns, 0.0);
        }
        let panels = self.panels.resize(columns, panel_width, lines).chunks_mut(GROUP * lines);
        let sums = self.sum.chunks_mut(GROUP).zip(self.magnitude.chunks_mut(GROUP));
        let pilots = self.pilot.chunks_mut(GROUP).zip(self.rest.chunks_mut(GROUP));
        let pieces = (0..rows.width).step_by(GROUP).zip(panels.zip(&mut self.lost)).zip(sums.zip(pilots));
        share(threads, pieces, |((first_column, (panels, lost)), ((sum, magnitude), (pilot, rest)))| {
            lost.clear();
            pack(Pack { rows, first_column, panels, lines, sum, magnitude, pilot, rest, lost });
        });
        let count = rows.rows as f64;
        for ((total, rest), pilot) in self.total.iter_mut().zip(&self.rest).zip(&self.pilot) {
            *total = rest + count * pilot;
        }
    }
}

impl<W> Packed<W> {
    /// Checks that all numbers are finite. That is known from the maxima; the rows are searched only for the message.
    pub(super) fn check(&self, rows: &Rows<'_>) -> Result<()> {
        if all_finite(&self.magnitude) { Ok(()) } else { rows.check() }
    }

    pub(super) fn panel(&self, index: usize) -> &[W] {
        self.panels.get(index)
    }

    /// The words that follow the first `words` of a panel: the rest of it, and all panels after it.
    pub(super) fn words_after(&self, panel: usize, words: usize) -> &[W] {
        &self.panels.starting_at(panel)[words..]
    }
}
