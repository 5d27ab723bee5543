//! The memory of one packed block: its centred rows as panels, and its column statistics.
//!
//! A panel holds [`VECTORS`] vectors of neighbouring columns, line after line. A line is one row of f32, or two
//! rows of bf16 interleaved: a *word* is four bytes either way. The last panel is padded with zeros.

use super::Rows;
use super::kernel::VECTORS;
use super::pack::{PANELS, Pack};
use super::threads::share;

/// A packed block. Its memory is reused for the next one.
#[derive(Default)]
pub(super) struct Packed<W> {
    words: Vec<W>,
    /// Words before the first cache line: each panel starts on one.
    start: usize,
    /// Words in one panel.
    panel_len: usize,
    /// Sum of each column in f32, padded to whole panels.
    sum: Vec<f32>,
    /// Bits of the largest absolute value of each column, padded likewise, as are all following fields.
    pub magnitude: Vec<u32>,
    /// The pilot of each column, `c`.
    pub pilot: Vec<f64>,
    /// Sum of each column after the subtraction, `s`.
    pub rest: Vec<f64>,
    /// Sum of each original column, `s + n c`.
    pub total: Vec<f64>,
}

const CACHE_LINE: usize = 64;

impl<W: Copy + Default + Send> Packed<W> {
    /// Fills itself with a block of at least one row and column, `rows_per_line` rows to a line; `pack` fills a few
    /// panels.
    pub(super) fn fill(
        &mut self,
        rows: Rows<'_>,
        rows_per_line: usize,
        lanes: usize,
        threads: usize,
        pack: impl Fn(Pack<'_, W>) + Sync,
    ) {
        let panel_width = VECTORS * lanes;
        let panels = rows.width.div_ceil(panel_width);
        self.resize(panels, rows.rows.div_ceil(rows_per_line), panel_width);
        let columns = (0..rows.width).step_by(PANELS * panel_width);
        let panels = self.words[self.start..][..panels * self.panel_len].chunks_mut(PANELS * self.panel_len);
        let sums = self.sum.chunks_mut(PANELS * panel_width);
        let magnitudes = self.magnitude.chunks_mut(PANELS * panel_width);
        let pilots = self.pilot.chunks_mut(PANELS * panel_width);
        let rests = self.rest.chunks_mut(PANELS * panel_width);
        let pieces = columns.zip(panels).zip(sums.zip(magnitudes)).zip(pilots.zip(rests));
        share(threads, pieces, |(((first_column, panels), (sum, magnitude)), (pilot, rest))| {
            pack(Pack { rows, first_column, panels, sum, magnitude, pilot, rest });
        });
        let count = rows.rows as f64;
        for ((total, rest), pilot) in self.total.iter_mut().zip(&self.rest).zip(&self.pilot) {
            *total = rest + count * pilot;
        }
    }

    fn resize(&mut self, panels: usize, lines: usize, panel_width: usize) {
        self.panel_len = lines * panel_width;
        let slack = CACHE_LINE / size_of::<W>();
        let len = panels * self.panel_len + slack;
        if self.words.len() < len {
            self.words = vec![W::default(); len];
        }
        // `align_offset` may fail. Then only speed suffers.
        self.start = self.words.as_ptr().align_offset(CACHE_LINE).min(slack);
        self.sum.resize(panels * panel_width, 0.0);
        self.magnitude.resize(panels * panel_width, 0);
        for numbers in [&mut self.pilot, &mut self.rest, &mut self.total] {
            numbers.resize(panels * panel_width, 0.0);
        }
    }
}

impl<W> Packed<W> {
    pub(super) fn panel(&self, index: usize) -> &[W] {
        &self.words[self.start..][index * self.panel_len..][..self.panel_len]
    }
}
