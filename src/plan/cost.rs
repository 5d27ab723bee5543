//! Memory and work, estimated from the shapes.
//!
//! A run holds, in bytes,
//!
//! | what | bytes |
//! |---|---|
//! | moments of a kind of activations | [`Moments::memory`] of the width, of twice the width when rows are paired, and of its rows two blocks as read and one as packed, of pairs another as differences; where rows are unfolded, an image |
//! | basis of a site | [`Basis::memory`], of an embedding [`Basis::memory_of_tokens`] |
//! | weight of a layer `m × d` | as stored, and `4 · m d` |
//! | decomposition of a layer | [`Options::memory`] |
//! | components of a layer | `4 · k (m + d)` for the `k` that are computed |
//! | writing | the components of all layers twice; four times with [`Start::Residual`] |
//!
//! Narrow sites are in memory side by side, as many as `schedule` allows, wide ones one at a time; of the layers of a site one
//! weight is; the components of all layers stay.
//!
//! Work counts a multiplication and an addition each: `d (d + 1)` for each row that is read, then for each site `12 d³` (and `10 d³` for the
//! eigendecompositions of the transport) and for each layer `2 m d²`; for the site of an embedding its classes take the place of `d` in the transport, which is
//! all that is counted of it, and for its layer the products of `k` components with the weight. That is for cntlora; the other methods are counted as
//! if they did as much for a layer, and `d³` for a site whose activations they look at.

use super::{PlannedLayer, PlannedSite, SiteRows, Work};
use crate::activations::Blocks;
use crate::constraint::Coupling;
use crate::factors::{LayerShape, Start};
use crate::method::{Basis, Method, Options};
use crate::moments::Moments;
use crate::simd::BLOCK_ROWS;

/// What the program itself takes, and …
const OVERHEAD: u64 = 80 << 20;
/// … one part in this many of what is counted, for what is not: the allocator's gaps and the factorizations' scratch.
const OVERHEAD_SHARE: u64 = 8;

/// Bytes that a run holds.
pub(super) struct Memory {
    /// For each site that is worked on beside others, from the largest on.
    pub(super) narrow: Vec<u64>,
    /// For the largest of the other sites.
    pub(super) wide: u64,
    /// Components of all layers, which stay.
    pub(super) kept: u64,
    /// What is held while the adapter is made of them and written.
    pub(super) writing: u64,
}

impl Memory {
    /// Of a whole run.
    pub(super) fn of_run(sites: &[PlannedSite], options: &Options) -> Self {
        let kept = components_memory(sites.iter().flat_map(|site| &site.layers), options);
        // The factors are not larger than the components, with which they are in memory first, and beside what is written of them then:
        // their bytes, or, where the update is taken away, copies for the weights as they are stored, in f64.
        let copies = if options.start == Start::Residual { 4 } else { 2 };
        let sites = sites.iter().map(|site| (site.is_narrow(), site_memory(site, options)));
        Self { kept, writing: kept.saturating_mul(copies), ..Self::of_sites(sites) }
    }

    /// Of measuring the moments of these sites.
    pub(super) fn of_moments(sites: &[SiteRows]) -> Self {
        let memory = |site: &SiteRows| match site.counts {
            true => site.sums(),
            false => (site.sums() + block_memory(site.width as u64)).saturating_add(site.image_bytes),
        };
        Self::of_sites(sites.iter().map(|site| (site.is_narrow(), memory(site))))
    }

    /// From what each site takes, and whether it is narrow.
    fn of_sites(sites: impl Iterator<Item = (bool, u64)>) -> Self {
        let (narrow, wide): (Vec<_>, Vec<_>) = sites.partition(|(is_narrow, _)| *is_narrow);
        let mut narrow: Vec<u64> = narrow.into_iter().map(|(_, memory)| memory).collect();
        narrow.sort_unstable_by(|a, b| b.cmp(a));
        let wide = wide.into_iter().map(|(_, memory)| memory).max().unwrap_or(0);
        Self { narrow, wide, kept: 0, writing: 0 }
    }

    /// At the peak, with this many narrow sites side by side.
    pub(super) fn peak(&self, side_by_side: usize) -> u64 {
        let narrow = self.narrow.iter().take(side_by_side).copied().fold(0, u64::saturating_add);
        let held = narrow.max(self.wide).saturating_add(self.kept).max(self.writing);
        held.saturating_add(held / OVERHEAD_SHARE).saturating_add(OVERHEAD)
    }
}

/// Blocks of rows, as read and as packed.
fn block_memory(width: u64) -> u64 {
    (8 * Blocks::HELD as u64 + 4) * width * BLOCK_ROWS as u64
}

/// Bytes of a block of differences and rows side by side.
fn pairs_memory(width: u64) -> u64 {
    8 * 2 * width * BLOCK_ROWS as u64
}

/// Bytes of the components of layers.
pub(super) fn components_memory<'a>(
    layers: impl Iterator<Item = &'a PlannedLayer>,
    options: &Options,
) -> u64 {
    let memory =
        |layer: &PlannedLayer| 4 * components(layer, options) * (layer.outputs + layer.inputs) as u64;
    layers.map(memory).fold(0, u64::saturating_add)
}

fn components(layer: &PlannedLayer, options: &Options) -> u64 {
    options.of_part(layer.shape.parts()).components(layer.outputs.min(layer.inputs)) as u64
}

/// The largest of what the stages of a site hold at a time.
fn site_memory(site: &PlannedSite, options: &Options) -> u64 {
    let width = site.width as u64;
    let measured_source = site.source_rows.is_some();
    let moments = match options.coupling {
        // Counts of both kinds, as they are kept and as they are read.
        _ if site.classes.is_some() => 4 * 8 * width,
        _ if !options.method.reads_activations() => 0,
        // The sides and the change between them are split from the joint moments while those are there.
        Coupling::Paired => 2 * Moments::memory(2 * width) + block_memory(2 * width) + pairs_memory(width),
        _ if measured_source => 2 * Moments::memory(width) + block_memory(width),
        _ => Moments::memory(width) + block_memory(width),
    };
    let (building, held) = match site.classes {
        Some(classes) => Basis::memory_of_tokens(width, classes, options, measured_source),
        None => Basis::memory(width, options, measured_source),
    };
    let layer = |layer: &PlannedLayer| {
        let (m, d) = (layer.outputs as u64, layer.inputs as u64);
        let decomposition = options.of_part(layer.shape.parts()).memory(m, d);
        m * d * (layer.element.size() as u64 + 4) + decomposition
    };
    let layers = held + site.layers.iter().map(layer).max().unwrap_or(0);
    (moments + building).saturating_add(site.image_bytes).max(layers)
}

/// Floating-point operations of adding rows to moments.
pub(super) fn work_of_rows(rows: u64, width: usize) -> f64 {
    let d = width as f64;
    rows as f64 * d * (d + 1.0)
}

/// Floating-point operations of the run.
pub(super) fn work(sites: &[PlannedSite], options: &Options) -> Work {
    let mut work = Work::default();
    for site in sites {
        let d = site.classes.map_or(site.width as f64, |classes| classes as f64);
        work.moments += work_of_rows(site.rows_to_read, site.width);
        let cubes = match (options.method, options.coupling) {
            (Method::Cntlora, Coupling::Transport) => 22.0,
            // All else is diagonal.
            _ if site.classes.is_some() => 0.0,
            (Method::Cntlora, _) => 12.0,
            (method, _) => f64::from(u8::from(method.reads_activations())),
        };
        work.factors += cubes * d * d * d;
        let of_layer = |layer: &PlannedLayer| {
            let is_embedding = layer.shape == LayerShape::Embedding;
            let side = if is_embedding { components(layer, options) as f64 } else { d };
            2.0 * (layer.outputs * layer.inputs) as f64 * side
        };
        work.factors += site.layers.iter().map(of_layer).sum::<f64>();
    }
    work
}
