//! The division of a run over the nodes of a cluster: memory, work and bytes of the busiest node in each phase.
//!
//! There are three phases. **Moments**: each node measures a part of the rows (`cntlora moments --shard`). **Layers**: each node
//! decomposes the layers of a part of the sites, from the moments of all parts (`cntlora init --moments … --shard`). **Joining**: one
//! node reads the spectra of all layers, chooses the ranks and writes the adapter (`cntlora merge`).

use super::cost::Memory;
use super::shard::part_of;
use super::{Inputs, Plan, PlannedSite, Recording, Shard, SiteRows, cost};
use crate::activations::Site;
use crate::moments_file;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The work of the nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Division {
    /// Number of nodes, at least one.
    pub nodes: u64,
    /// Measurement of the moments. Zero if the moments are known.
    pub moments: Share,
    /// Decomposition of the layers.
    pub layers: Share,
    /// Joining on one node.
    pub joining: Share,
}

/// The work of a node in a phase: the maximum of each number over all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Peak memory in bytes, estimated from the shapes.
    pub memory: u64,
    /// Floating-point operations.
    pub operations: f64,
    /// Bytes read.
    pub read: u64,
    /// Bytes written, including saved progress, which is removed later.
    pub written: u64,
}

impl Share {
    /// The sum of two consecutive shares.
    fn then(self, next: Self) -> Self {
        Self {
            memory: self.memory.max(next.memory),
            operations: self.operations + next.operations,
            read: self.read.saturating_add(next.read),
            written: self.written.saturating_add(next.written),
        }
    }

    /// The maximum of each number.
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
    /// The division of a planned run.
    pub fn new(plan: &Plan, inputs: &Inputs, nodes: u64) -> Self {
        let nodes = nodes.max(1);
        let shards = || (0..nodes).map(|index| Shard { index, count: nodes });
        let mut moments = Share::default();
        // Number of files with moments of each site of the plan.
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
            // Fine-tuning and pre-training activations are measured one after the other.
            for sites in &rows {
                let part = part_of(shard, sites);
                let names: BTreeSet<&str> = part.iter().map(|rows| rows.name.as_str()).collect();
                for (site, holders) in plan.sites.iter().zip(&mut holders) {
                    *holders += u64::from(names.contains(site.name.as_str()));
                }
                share = share.then(measuring(plan, &part));
            }
            moments = moments.max(share);
        }
        let all: Vec<(&PlannedSite, u64)> = plan.sites.iter().zip(holders).collect();
        let mut layers = Share::default();
        for shard in shards() {
            let names: BTreeSet<&str> =
                plan.sites_of(shard).into_iter().map(|site| site.name.as_str()).collect();
            let part: Vec<_> =
                all.iter().filter(|(site, _)| names.contains(site.name.as_str())).copied().collect();
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
        // Saved progress, and the output file.
        written: sums.saturating_mul(2),
    }
}

/// `part` contains the number of files with moments for each site.
fn decomposing(plan: &Plan, part: &[(&PlannedSite, u64)]) -> Share {
    let sites: Vec<PlannedSite> = part.iter().map(|(site, _)| (*site).clone()).collect();
    let sums = |site: &PlannedSite| moments_file::memory(site.width as u64, site.classes.is_some());
    let moments = part.iter().map(|(site, holders)| sums(site).saturating_mul(*holders));
    let layers = || sites.iter().flat_map(|site| &site.layers);
    let weights = layers().map(|layer| {
        (layer.outputs as u64).saturating_mul(layer.inputs as u64).saturating_mul(layer.element.size() as u64)
    });
    Share {
        memory: Memory::of_run(&sites, &plan.method).peak(plan.side_by_side),
        operations: cost::work(&sites, &plan.method).factors,
        read: moments.chain(weights).fold(0, u64::saturating_add),
        written: cost::components_memory(layers(), &plan.method),
    }
}

fn joining(plan: &Plan) -> Share {
    let components = cost::components_memory(plan.layers(), &plan.method);
    let largest = plan.layers().map(|layer| {
        (layer.outputs as u64).saturating_add(layer.inputs as u64).saturating_mul(layer.max_rank as u64)
    });
    let factors = largest.fold(0, u64::saturating_add).saturating_mul(4);
    // A product is decomposed through its thin factors.
    let operations = plan.layers().map(|layer| {
        let rank = layer.max_rank as f64;
        4.0 * rank * rank * (layer.outputs as f64 + layer.inputs as f64)
    });
    Share {
        memory: components.saturating_add(factors),
        operations: operations.sum(),
        read: components,
        written: factors,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan;
    use super::super::testing::{Fixture, WIDTH};
    use super::*;

    /// The parts together do all the work once. The memory of a node does not grow with the number of parts.
    #[test]
    fn parts_do_all_the_work_once() {
        let mut fixture = Fixture::bert();
        fixture.activations("target", 9000, WIDTH);
        fixture.request.source = vec![fixture.activations("source", 3000, WIDTH)];
        let (plan, inputs) = plan(&fixture.request).unwrap();
        let alone = Division::new(&plan, &inputs, 1);
        assert_eq!(alone.layers.operations, plan.work.factors);
        assert_eq!(alone.layers.memory, plan.peak_memory);
        assert_eq!(alone.moments.operations, plan.work.moments);
        for nodes in [2, 3, 8] {
            let division = Division::new(&plan, &inputs, nodes);
            for (part, whole) in [(division.moments, alone.moments), (division.layers, alone.layers)] {
                assert!(
                    part.operations * nodes as f64 >= whole.operations * (1.0 - 1e-12),
                    "{part:?} of {whole:?}"
                );
                assert!(part.operations <= whole.operations && part.memory <= whole.memory);
            }
            assert_eq!(division.joining, alone.joining);
            let mut sites: Vec<_> =
                (0..nodes).flat_map(|index| plan.sites_of(Shard { index, count: nodes })).collect();
            sites.sort_by(|a, b| a.name.cmp(&b.name));
            assert!(sites.into_iter().eq(&plan.sites));
        }
    }
}
