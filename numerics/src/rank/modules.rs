//! Ranks of modules that consist of blocks, such as the experts in one fused parameter and the groups of a convolution.

use super::{Layer, Limits, Policy, allocate};
use crate::error::Result;
use std::collections::BTreeMap;

/// A rank for each layer, in their order. Layers with the same key are the blocks of one module and share a rank: each gets its part
/// of it. Ties go to the lesser key.
///
/// # Errors
/// As [`allocate`].
pub fn allocate_by_module<K: Ord>(
    policy: Policy,
    limits: Limits,
    layers: &[(K, Layer<'_>)],
) -> Result<Vec<usize>> {
    let mut modules: BTreeMap<&K, Vec<usize>> = BTreeMap::new();
    for (index, (module, _)) in layers.iter().enumerate() {
        modules.entry(module).or_default().push(index);
    }
    let joint: Vec<Joint> = modules.values().map(|blocks| Joint::of(blocks, layers)).collect();
    let joint: Vec<Layer<'_>> = joint.iter().map(Joint::as_layer).collect();
    let mut ranks = vec![0; layers.len()];
    for (blocks, rank) in modules.values().zip(allocate(policy, limits, &joint)?) {
        blocks.iter().for_each(|&index| ranks[index] = rank / layers[index].1.parts);
    }
    Ok(ranks)
}

/// A module as the choice of ranks sees it: the energy that each unit of rank holds in all of its blocks.
struct Joint {
    spectrum: Vec<f64>,
    energy: f64,
    cost: u64,
    rank_per_component: usize,
    parts: usize,
    effective_rank: Option<f64>,
}

impl Joint {
    fn of<K>(blocks: &[usize], layers: &[(K, Layer<'_>)]) -> Self {
        let blocks = || blocks.iter().map(|&index| &layers[index].1);
        let parts = blocks().map(|block| block.parts).max().unwrap_or(1);
        let length = blocks().map(|block| block.spectrum.len()).min().unwrap_or(0);
        // If one unit of the blocks' rank is several units of the module's rank, each of them holds an equal share.
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
            // The mean, if all blocks have one.
            effective_rank: blocks()
                .map(|block| block.effective_rank)
                .sum::<Option<f64>>()
                .map(|sum| sum / blocks().count() as f64),
        }
    }

    fn as_layer(&self) -> Layer<'_> {
        let Self { spectrum, .. } = self;
        let Self { energy, cost, rank_per_component, parts, effective_rank, .. } = *self;
        Layer { spectrum, energy, cost, rank_per_component, parts, effective_rank }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module of one block equals that block. The energies and costs of experts add up. Units of groups that belong together hold equal
    /// shares.
    #[test]
    fn blocks_are_seen_as_one_layer() {
        let drafts = |parts| {
            [[3.0, 1.0], [4.0, 2.0]]
                .map(|spectrum: [f64; 2]| (spectrum, spectrum.iter().map(|s| s * s).sum::<f64>()))
                .map(|(spectrum, energy)| (spectrum.to_vec(), energy, parts))
        };
        let seen = |parts, blocks: &[usize]| {
            let owned = drafts(parts);
            let layers = owned.iter().map(|(spectrum, energy, parts)| {
                let (energy, parts) = (*energy, *parts);
                ((), Layer { spectrum, energy, cost: 10, rank_per_component: 1, parts, effective_rank: None })
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
