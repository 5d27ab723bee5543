//! How a run divides over the nodes of a cluster: memory, work, and bytes of the busiest node of each phase.
//!
//! Three phases follow each other. **Moments**: every node measures a part of the rows (`cntlora moments --shard`). **Layers**: every node
//! decomposes the layers of a part of the sites, from the moments of all parts (`cntlora init --moments … --shard`). **Joining**: one node
//! looks at the spectra of all layers, chooses the ranks and writes the adapter (`cntlora merge`).

use super::cost::Memory;
use super::shard::part_of;
use super::{Inputs, Plan, PlannedSite, Recording, Shard, SiteRows, cost};
use crate::activations::Site;
use crate::moments::{Counts, Moments};
use serde::{Deserialize, Serialize};

/// What the nodes do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Division {
    /// How many nodes there are, at least one.
    pub nodes: u64,
    /// Measuring. All zero where the moments are known.
    pub moments: Share,
    /// Decomposing.
    pub layers: Share,
    /// Joining, on one node.
    pub joining: Share,
}

/// What a node does in a phase: the largest of each figure on any node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Bytes that are held at the peak, estimated from the shapes.
    pub memory: u64,
    /// Floating-point operations.
    pub operations: f64,
    /// Bytes read.
    pub read: u64,
    /// Bytes written, saved progress included, which is removed again.
    pub written: u64,
}

impl Share {
    /// One after the other.
    fn then(self, next: Self) -> Self {
        Self {
            memory: self.memory.max(next.memory),
            operations: self.operations + next.operations,
            read: self.read.saturating_add(next.read),
            written: self.written.saturating_add(next.written),
        }
    }

    /// The larger of each figure.
    fn max(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            operations: self.operations.max(other.operations),
            read: self.read.max(other.read),
            written: self.written.max(other.written),
        }
    }
}

impl Division {
    /// How a planned run divides.
    pub fn new(plan: &Plan, inputs: &Inputs, nodes: u64) -> Self {
        let nodes = nodes.max(1);
        let shards = || (0..nodes).map(|index| Shard { index, count: nodes });
        let mut moments = Share::default();
        // Files that hold moments of a site, by the place of the site in the plan.
        let mut holders = vec![0u64; plan.sites.len()];
        let mut rows = Vec::new();
        for recording in inputs.target.iter().chain(&inputs.source) {
            match recording {
                Recording::Activations(set) => {
                    rows.push(
                        plan.sites.iter().filter_map(|site| set.site(&site.name)).collect::<Vec<&Site>>(),
                    );
                }
                Recording::Moments(_) => holders.iter_mut().for_each(|holders| *holders += 1),
            }
        }
        for shard in shards() {
            let mut share = Share::default();
            // One kind of activations after the other.
            for sites in &rows {
                let part = part_of(shard, sites);
                for (site, holders) in plan.sites.iter().zip(&mut holders) {
                    *holders += u64::from(part.iter().any(|rows| rows.name == site.name));
                }
                share = share.then(measuring(plan, &part));
            }
            moments = moments.max(share);
        }
        let all: Vec<(&PlannedSite, u64)> = plan.sites.iter().zip(holders).collect();
        let mut layers = Share::default();
        for shard in shards() {
            let part = plan.sites_of(shard);
            let part: Vec<_> = all
                .iter()
                .filter(|(site, _)| part.iter().any(|chosen| chosen.name == site.name))
                .copied()
                .collect();
            layers = layers.max(decomposing(plan, &part));
        }
        Self { nodes, moments, layers, joining: joining(plan) }
    }
}

fn measuring(plan: &Plan, part: &[SiteRows]) -> Share {
    let sums: u64 = part.iter().map(SiteRows::sums).fold(0, u64::saturating_add);
    Share {
        memory: Memory::of_moments(part).peak(plan.side_by_side),
        operations: part.iter().map(SiteRows::work).sum(),
        read: part.iter().map(|site| site.bytes).fold(0, u64::saturating_add),
        // Once as progress, and once in the file.
        written: sums.saturating_mul(2),
    }
}

/// `part` says of each site how many files hold moments of it.
fn decomposing(plan: &Plan, part: &[(&PlannedSite, u64)]) -> Share {
    let sites: Vec<PlannedSite> = part.iter().map(|(site, _)| (*site).clone()).collect();
    let sums = |site: &PlannedSite| match site.classes {
        Some(_) => Counts::memory(site.width as u64),
        None => Moments::memory(site.width as u64),
    };
    let moments = part.iter().map(|(site, holders)| sums(site).saturating_mul(*holders));
    let layers = || sites.iter().flat_map(|site| &site.layers);
    let weights = layers().map(|layer| (layer.outputs * layer.inputs * layer.element.size()) as u64);
    Share {
        memory: Memory::of_run(&sites, &plan.method).peak(plan.side_by_side),
        operations: cost::work(&sites, &plan.method).factors,
        read: moments.chain(weights).fold(0, u64::saturating_add),
        written: cost::components_memory(layers(), &plan.method),
    }
}

fn joining(plan: &Plan) -> Share {
    let components = cost::components_memory(plan.layers(), &plan.method);
    let largest = plan.layers().map(|layer| (layer.max_rank * (layer.outputs + layer.inputs)) as u64);
    let factors = 4 * largest.fold(0, u64::saturating_add);
    // The decomposition of each product is that of its thin factors.
    let operations = plan.layers().map(|layer| {
        let rank = layer.max_rank as f64;
        4.0 * rank * rank * (layer.outputs + layer.inputs) as f64
    });
    Share {
        memory: components.saturating_add(factors),
        operations: operations.sum(),
        read: components,
        written: factors,
    }
}
