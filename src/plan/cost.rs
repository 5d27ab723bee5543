//! Memory and work, estimated from the shapes.
//!
//! A run holds, in bytes,
//!
//! | what | bytes |
//! |---|---|
//! | moments of a kind of activations | [`Moments::memory`] of the width, of twice the width when rows are paired, and a block of rows as read and as packed |
//! | constraint of a site | [`Constraint::memory`] |
//! | weight of a layer `m × d` | as stored, and `4 · m d` |
//! | decomposition of a layer | [`low_rank::memory`] |
//! | components of a layer | `4 · k (m + d)` for the `k` that are computed |
//!
//! Narrow sites are in memory side by side, one on each thread, wide ones one at a time; of the layers of a site one
//! weight is; the components of all layers stay.
//!
//! Work counts a multiplication and an addition each: `d (d + 1)` for each row, then for each site `12 d³` (and `10 d³` for the
//! eigendecompositions of the transport) and for each layer `2 m d²`.

use super::{PlannedLayer, PlannedSite, Work};
use crate::constraint::{Constraint, Coupling};
use crate::low_rank;
use crate::method::Options;
use crate::moments::Moments;
use crate::simd::BLOCK_ROWS;

/// Bytes that the run holds at its peak, with this many threads.
pub(super) fn peak_memory(sites: &[PlannedSite], options: &Options, threads: usize) -> u64 {
    let (narrow, wide): (Vec<_>, Vec<_>) = sites.iter().partition(|site| site.is_narrow());
    let memory = |site: &&PlannedSite| site_memory(site, options);
    let mut narrow: Vec<u64> = narrow.iter().map(memory).collect();
    narrow.sort_unstable_by(|a, b| b.cmp(a));
    let side_by_side: u64 = narrow.iter().take(threads).sum();
    let largest = wide.iter().map(memory).max().unwrap_or(0).max(side_by_side);
    let layers = sites.iter().flat_map(|site| &site.layers);
    let kept: u64 =
        layers.map(|layer| 4 * components(layer, options) * (layer.outputs + layer.inputs) as u64).sum();
    largest + kept
}

fn components(layer: &PlannedLayer, options: &Options) -> u64 {
    options.components(layer.outputs.min(layer.inputs)) as u64
}

/// The largest of what the stages of a site hold at a time.
fn site_memory(site: &PlannedSite, options: &Options) -> u64 {
    let width = site.width as u64;
    let measured_source = site.source_rows.is_some();
    let block = |width: u64| (8 + 4) * width * BLOCK_ROWS as u64;
    let moments = match options.coupling {
        // The sides and the cross moment are split from the joint moments while those are there.
        Coupling::Paired => 2 * Moments::memory(2 * width) + block(2 * width),
        _ if measured_source => 2 * Moments::memory(width) + block(width),
        _ => Moments::memory(width) + block(width),
    };
    let (building, held) = Constraint::memory(width, options.terms(), measured_source);
    let layer = |layer: &PlannedLayer| {
        let (m, d) = (layer.outputs as u64, layer.inputs as u64);
        m * d * (layer.element.size() as u64 + 4) + low_rank::memory(m, d, components(layer, options))
    };
    let layers = held + site.layers.iter().map(layer).max().unwrap_or(0);
    (moments + building).max(layers)
}

/// Floating-point operations of the run.
pub(super) fn work(sites: &[PlannedSite], options: &Options) -> Work {
    let mut work = Work::default();
    for site in sites {
        let d = site.width as f64;
        let rows = site.rows as f64 + site.source_rows.unwrap_or(0) as f64;
        work.moments += rows * d * (d + 1.0);
        let eigendecompositions = if options.coupling == Coupling::Transport { 10.0 } else { 0.0 };
        work.factors += (12.0 + eigendecompositions) * d * d * d;
        work.factors += site.layers.iter().map(|layer| 2.0 * layer.outputs as f64 * d * d).sum::<f64>();
    }
    work
}
