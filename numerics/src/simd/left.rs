//! The left factor of a piece: a copy of some columns, in panels that are as wide as a tile is high.
//!
//! A tile reads one line after the other of its left panel, a number at a time. So the lines of a tile lie together, and the copy stays in
//! L2 while all columns of the right factor pass by.

use super::kernel::{Kernel, UNITS, VECTORS};
use super::packed::{Packed, Panels};
use std::ops::Range;

/// Fills the panels with the columns of a piece.
#[inline(always)]
pub(super) fn copy<K: Kernel>(packed: &Packed<K::Word>, columns: Range<usize>, into: &mut Panels<K::Word>)
where
    K::Word: Default,
{
    match K::HEIGHT / UNITS {
        4 => copy_units::<K, 4>(packed, columns, into),
        _ => copy_units::<K, 2>(packed, columns, into),
    }
}

/// Copies neighbouring words of a line, `UNIT` at a time: no unit crosses the edge of a panel.
#[inline(always)]
fn copy_units<K: Kernel, const UNIT: usize>(
    packed: &Packed<K::Word>,
    columns: Range<usize>,
    into: &mut Panels<K::Word>,
) where
    K::Word: Default,
{
    let panel_width = VECTORS * K::LANES;
    let lines = packed.panel(0).len() / panel_width;
    let panels = into.resize(columns.len().next_multiple_of(K::HEIGHT), K::HEIGHT, lines);
    let firsts = columns.step_by(K::HEIGHT);
    for (first, panel) in firsts.zip(panels.chunks_exact_mut(K::HEIGHT * lines)) {
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
