//! The left factor of a piece: a copy of some columns, in panels that are as wide as a tile is high.
//!
//! A tile reads one line after the other of its left panel, a number at a time. So the lines of a tile lie together, and the copy stays in
//! L2 while all columns of the right factor pass by.

use super::packed::{Packed, Panels};
use std::ops::Range;

/// A line of a left panel consists of so many units. None of them crosses the edge of a right panel, for any width of vectors.
const UNITS: usize = 3;

/// Fills panels of `height` columns with the columns of a piece.
#[inline(always)]
pub(super) fn copy<W: Copy + Default>(
    packed: &Packed<W>,
    columns: Range<usize>,
    panel_width: usize,
    height: usize,
    into: &mut Panels<W>,
) {
    match height / UNITS {
        4 => copy_units::<W, 4>(packed, columns, panel_width, into),
        _ => copy_units::<W, 2>(packed, columns, panel_width, into),
    }
}

/// Copies neighbouring words of a line, `UNIT` at a time.
#[inline(always)]
fn copy_units<W: Copy + Default, const UNIT: usize>(
    packed: &Packed<W>,
    columns: Range<usize>,
    panel_width: usize,
    into: &mut Panels<W>,
) {
    let height = UNITS * UNIT;
    let lines = packed.panel(0).len() / panel_width;
    let panels = into.resize(columns.len().next_multiple_of(height), height, lines);
    for (first, panel) in columns.step_by(height).zip(panels.chunks_exact_mut(height * lines)) {
        let from: [_; UNITS] = std::array::from_fn(|unit| {
            let column = first + unit * UNIT;
            packed.panel(column / panel_width)[column % panel_width..].as_chunks::<UNIT>().0
        });
        let to = panel.as_chunks_mut::<UNIT>().0.as_chunks_mut::<UNITS>().0;
        for (line, to) in to.iter_mut().enumerate() {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from[line * (panel_width / UNIT)];
            }
        }
    }
}
