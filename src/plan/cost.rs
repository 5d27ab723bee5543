//! Estimates of memory and work from the shapes.
//!
//! The memory of a run, in bytes:
//!
//! | part | bytes |
//! |---|---|
//! | moments of one kind of activations | [`Moments::memory`] of the width (twice the width for pairs), two blocks of rows as read and one packed; one more block of differences for pairs; one image for unfolded rows |
//! | computations of a site without its weights | [`Options::site_memory`] |
//! | weight of a layer `m × d` | as stored (one byte for each number of a quantized weight), and `4 · m d` |
//! | decomposition of a layer | [`Options::memory`] |
//! | components of a layer | `4 · k (m + d)` for `k` computed components |
//! | writing | twice the components of all layers; four times with [`Start::Residual`] |
//!
//! Several narrow sites are in memory at the same time, and then several wide ones, as many as `schedule` allows. Each site holds one
//! weight at a time. The components of all layers stay in memory.
//!
//! Work counts multiplications and additions: `d (d + 1)` for each row, `12 d³` for each site (and `10 d³` for the eigendecompositions
//! of the transport), and `2 m d²` for each layer. For the site of an embedding, only the transport counts, with the number of classes
//! for `d`; for its layer, the products of `k` components with the weight. These numbers are for the method cntlora. The estimate for
//! other methods is the same for a layer, and `d³` for a site if they read activations.

use super::{PlannedLayer, PlannedSite, SideBySide, SiteRows, Work};
use crate::activations::Blocks;
use crate::constraint::Coupling;
use crate::factors::Start;
use crate::method::{Bytes, Options, SiteSize};
use crate::moments::Moments;
use crate::simd::BLOCK_ROWS;

/// Memory of the program itself.
const OVERHEAD: u64 = 80 << 20;
/// An additional share, `1 / OVERHEAD_SHARE`, for gaps of the allocator and scratch memory of the factorizations.
const OVERHEAD_SHARE: u64 = 8;

/// From this number of sites on, a measurement saves the sums of many sites together, and keeps them in memory until then.
pub(crate) const MANY_SITES: usize = 1000;

/// The most bytes of such sums in memory.
pub(crate) const MANY_SUMS: u64 = 64 << 20;

/// Memory of a run, in bytes.
pub(super) struct Memory {
    /// For each narrow site, in descending order.
    pub(super) narrow: Vec<u64>,
    /// For each wide site, in descending order.
    pub(super) wide: Vec<u64>,
    /// Components of all layers, which stay in memory.
    pub(super) kept: u64,
    /// Peak while the adapter is made and written.
    pub(super) writing: u64,
}

impl Memory {
    /// The memory of a whole run.
    pub(super) fn of_run(sites: &[PlannedSite], options: &Options) -> Self {
        let kept = components_memory(sites.iter().flat_map(|site| &site.layers), options);
        // The factors are at most as large as the components. They are in memory together with the components first, and then with
        // the bytes to write, or with f64 copies for the stored weights if the base changes.
        let copies = if options.start == Start::Residual { 4 } else { 2 };
        let sites = sites.iter().map(|site| (site.is_narrow(), site_memory(site, options)));
        Self { kept, writing: kept.saturating_mul(copies), ..Self::of_sites(sites) }
    }

    /// The memory to measure the moments of these sites.
    pub(super) fn of_moments(sites: &[SiteRows]) -> Self {
        let memory = |site: &SiteRows| match site.counts {
            true => site.sums(),
            false => {
                site.sums().saturating_add(block_memory(site.width as u64)).saturating_add(site.image_bytes)
            }
        };
        let kept = match sites.len() < MANY_SITES {
            true => 0,
            false => sites.iter().map(SiteRows::sums).fold(0, u64::saturating_add).min(MANY_SUMS),
        };
        Self { kept, ..Self::of_sites(sites.iter().map(|site| (site.is_narrow(), memory(site)))) }
    }

    /// From the memory of each site, and whether it is narrow.
    fn of_sites(sites: impl Iterator<Item = (bool, u64)>) -> Self {
        let (narrow, wide): (Vec<_>, Vec<_>) = sites.partition(|(is_narrow, _)| *is_narrow);
        let sorted = |sites: Vec<(bool, u64)>| {
            let mut sites: Vec<u64> = sites.into_iter().map(|(_, memory)| memory).collect();
            sites.sort_unstable_by(|a, b| b.cmp(a));
            sites
        };
        Self { narrow: sorted(narrow), wide: sorted(wide), kept: 0, writing: 0 }
    }

    /// Peak memory with these numbers of sites at the same time.
    pub(super) fn peak(&self, counts: SideBySide) -> u64 {
        let largest = |sites: &[u64], count| sites.iter().take(count).copied().fold(0, u64::saturating_add);
        let (narrow, wide) = (largest(&self.narrow, counts.narrow), largest(&self.wide, counts.wide));
        let held = narrow.max(wide).saturating_add(self.kept).max(self.writing);
        held.saturating_add(held / OVERHEAD_SHARE).saturating_add(OVERHEAD)
    }
}

/// Bytes of the blocks of rows, as read and packed: of f64, or of four times as many rows of bf16.
fn block_memory(width: u64) -> u64 {
    width.saturating_mul((8 * Blocks::HELD as u64 + 8) * BLOCK_ROWS as u64)
}

/// Bytes of a block of pairs: differences and rows.
fn pairs_memory(width: u64) -> u64 {
    width.saturating_mul(8 * 2 * BLOCK_ROWS as u64)
}

/// Bytes of the components of layers.
pub(super) fn components_memory<'a>(
    layers: impl Iterator<Item = &'a PlannedLayer>,
    options: &Options,
) -> u64 {
    let memory = |layer: &PlannedLayer| {
        let sides = (layer.outputs as u64).saturating_add(layer.inputs as u64);
        sides.saturating_mul(components(layer, options)).saturating_mul(4)
    };
    layers.map(memory).fold(0, u64::saturating_add)
}

fn components(layer: &PlannedLayer, options: &Options) -> u64 {
    options.of_part(layer.shape.parts()).components(layer.outputs.min(layer.inputs)) as u64
}

fn size(site: &PlannedSite) -> SiteSize {
    SiteSize { width: site.width as u64, classes: site.classes, measured_source: site.source_rows.is_some() }
}

/// Peak memory of a site over its stages.
fn site_memory(site: &PlannedSite, options: &Options) -> u64 {
    let width = site.width as u64;
    let measured_source = site.source_rows.is_some();
    let moments = match options.coupling {
        // Counts of both kinds of activations, in memory and while they are read.
        _ if site.classes.is_some() => width.saturating_mul(4 * 8),
        _ if !options.method.reads_activations() => 0,
        // The joint moments are still in memory while the moments of both sides and the change are split from them.
        Coupling::Paired => {
            let pair = width.saturating_mul(2);
            let moments = Moments::memory(pair).saturating_mul(2);
            moments.saturating_add(block_memory(pair)).saturating_add(pairs_memory(width))
        }
        _ if measured_source => Moments::memory(width).saturating_mul(2).saturating_add(block_memory(width)),
        _ => Moments::memory(width).saturating_add(block_memory(width)),
    };
    let Bytes { peak: building, held } = options.site_memory(size(site));
    let layer = |layer: &PlannedLayer| {
        let (m, d) = (layer.outputs as u64, layer.inputs as u64);
        let decomposition = options.of_part(layer.shape.parts()).memory(m, d);
        // A weight is computed or read in its place, in blocks. The numbers of a group of a convolution are at most half of its weight.
        let beside = if layer.quantization.is_some() { 1 } else { 2 };
        m.saturating_mul(d).saturating_mul(4 + beside).saturating_add(decomposition)
    };
    let layers = held.saturating_add(site.layers.iter().map(layer).max().unwrap_or(0));
    moments.saturating_add(building).saturating_add(site.image_bytes).max(layers)
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
        work.moments += work_of_rows(site.rows_to_read, site.width);
        work.factors += options.site_work(size(site));
        let of_layer = |layer: &PlannedLayer| {
            let options = options.of_part(layer.shape.parts());
            options.layer_work(layer.outputs as u64, layer.inputs as u64, &layer.shape)
        };
        work.factors += site.layers.iter().map(of_layer).sum::<f64>();
    }
    work
}
