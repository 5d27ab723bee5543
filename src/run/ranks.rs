//! The ranks of all layers, chosen when all spectra are known. The blocks of a module share one.

use super::site::DecomposedLayer;
use crate::error::Result;
use crate::factors::module_and_block;
use crate::method::Options;
use crate::rank::{self, Layer};
use std::collections::BTreeMap;

/// The rank of each layer, in their order: of a block, its own part of the rank of its module.
///
/// # Errors
/// As [`rank::allocate`].
pub(super) fn allocate(layers: &[DecomposedLayer<'_>], options: &Options) -> Result<Vec<usize>> {
    let drafts: Vec<Layer<'_>> = layers
        .iter()
        .map(|layer| Layer { parts: layer.planned.shape.parts(), ..layer.draft.as_layer(options.start) })
        .collect();
    let module = |layer: &DecomposedLayer<'_>| {
        let name = layer.planned.module.as_str();
        let block = layer.planned.shape.blocks().and_then(|_| module_and_block(name));
        block.map_or(name, |(module, _)| module).to_owned()
    };
    let mut modules: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, layer) in layers.iter().enumerate() {
        modules.entry(module(layer)).or_default().push(index);
    }
    let joint: Vec<Joint> = modules.values().map(|blocks| Joint::of(blocks, &drafts)).collect();
    let joint: Vec<Layer<'_>> = joint.iter().map(Joint::as_layer).collect();
    let mut ranks = vec![0; layers.len()];
    for (blocks, rank) in modules.values().zip(rank::allocate(options.ranks, options.limits, &joint)?) {
        blocks.iter().for_each(|&index| ranks[index] = rank / drafts[index].parts);
    }
    Ok(ranks)
}

/// What the choice of ranks sees of a module: the energy that each unit of rank holds in all of its blocks.
struct Joint {
    spectrum: Vec<f64>,
    energy: f64,
    cost: u64,
    rank_per_component: usize,
    parts: usize,
}

impl Joint {
    fn of(blocks: &[usize], drafts: &[Layer<'_>]) -> Self {
        let blocks = || blocks.iter().map(|&index| &drafts[index]);
        let parts = blocks().map(|block| block.parts).max().unwrap_or(1);
        let length = blocks().map(|block| block.spectrum.len()).min().unwrap_or(0);
        // Where a unit of the blocks' rank is several of the module's, each of those holds its share.
        let unit = |i: usize| {
            let energy: f64 = blocks().map(|block| block.spectrum[i] * block.spectrum[i]).sum();
            std::iter::repeat_n((energy / parts as f64).sqrt(), parts)
        };
        Self {
            spectrum: (0..length).flat_map(unit).collect(),
            energy: blocks().map(|block| block.energy).sum(),
            cost: blocks().map(|block| block.cost).fold(0, u64::saturating_add) / parts as u64,
            rank_per_component: blocks().map(|block| block.rank_per_component).max().unwrap_or(1),
            parts,
        }
    }

    fn as_layer(&self) -> Layer<'_> {
        let Self { spectrum, energy, cost, rank_per_component, parts } = self;
        let (energy, cost) = (*energy, *cost);
        Layer { spectrum, energy, cost, rank_per_component: *rank_per_component, parts: *parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module of one block is seen as that block; of experts, the energies add up, and so do the costs; of groups, each of
    /// the units that go together holds its share.
    #[test]
    fn blocks_are_seen_as_one_layer() {
        let drafts = |parts| {
            [[3.0, 1.0], [4.0, 2.0]]
                .map(|spectrum: [f64; 2]| (spectrum, spectrum.iter().map(|s| s * s).sum::<f64>()))
                .map(|(spectrum, energy)| (spectrum.to_vec(), energy, parts))
        };
        let seen = |parts, blocks: &[usize]| {
            let owned = drafts(parts);
            let layers = owned.iter().map(|(spectrum, energy, parts)| Layer {
                spectrum,
                energy: *energy,
                cost: 10,
                rank_per_component: 1,
                parts: *parts,
            });
            let Joint { spectrum, energy, cost, parts, .. } = Joint::of(blocks, &layers.collect::<Vec<_>>());
            (spectrum, energy, cost, parts)
        };
        assert_eq!(seen(1, &[0]), (vec![3.0, 1.0], 10.0, 10, 1));
        assert_eq!(seen(1, &[0, 1]), (vec![5.0, 5.0_f64.sqrt()], 30.0, 20, 1));
        let (spectrum, energy, cost, parts) = seen(2, &[0, 1]);
        assert_eq!((energy, cost, parts), (30.0, 10, 2));
        let squares: Vec<f64> = spectrum.iter().map(|s| (s * s * 1e9).round() / 1e9).collect();
        assert_eq!(squares, [12.5, 12.5, 2.5, 2.5]);
    }
}
