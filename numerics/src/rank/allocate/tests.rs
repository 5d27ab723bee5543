//! Tests of the policies of ranks.

use super::*;
use expect_test::expect;
use quickcheck::quickcheck;

/// Layers with descending spectra, some of them equal, so that ties occur.
fn spectra(raw: &[Vec<u8>]) -> Vec<Vec<f64>> {
    raw.iter()
        .take(12)
        .map(|values| {
            let mut spectrum: Vec<f64> = values.iter().take(20).map(|v| f64::from(v % 16) / 4.0).collect();
            spectrum.sort_by(|a, b| b.total_cmp(a));
            spectrum
        })
        .collect()
}

fn layers(spectra: &[Vec<f64>]) -> Vec<Layer<'_>> {
    spectra
        .iter()
        .zip([10, 30, 10, 7, 100].into_iter().cycle())
        .map(|(spectrum, cost)| Layer {
            spectrum,
            energy: spectrum.iter().map(|s| s * s).sum(),
            cost,
            rank_per_component: 1,
            parts: 1,
            effective_rank: None,
        })
        .collect()
}

fn spent(ranks: &[usize], layers: &[Layer<'_>]) -> u64 {
    ranks.iter().zip(layers).map(|(rank, layer)| *rank as u64 * layer.cost).sum()
}

fn limits(min: u8, max: u8, multiple: u8) -> Limits {
    let min = usize::from(min % 4);
    Limits { min, max: min + usize::from(max % 20), multiple: usize::from(multiple % 4) + 1 }
}

quickcheck! {
    /// Every policy keeps the limits, for every layer.
    fn limits_are_kept(raw: Vec<Vec<u8>>, min: u8, max: u8, multiple: u8, rank: u8, share: u8, budget: u16) -> bool {
        let (spectra, limits) = (spectra(&raw), limits(min, max, multiple));
        let layers = layers(&spectra);
        let policies = [
            Policy::Fixed(usize::from(rank)),
            Policy::Energy(f64::from(share) / 255.0),
            Policy::Budget(u64::from(budget)),
            Policy::BudgetOfRank(usize::from(rank)),
        ];
        policies.into_iter().all(|policy| match allocate(policy, limits, &layers) {
            Ok(ranks) => ranks.iter().zip(&layers).all(|(rank, layer)| {
                rank % limits.multiple == 0
                    && *rank <= limits.max.min(layer.spectrum.len())
                    && (*rank >= limits.min || rank + limits.multiple > limits.max.min(layer.spectrum.len()))
            }),
            Err(_) => matches!(policy, Policy::Budget(_) | Policy::BudgetOfRank(_)),
        })
    }

    /// A budget is never overspent, and the rest does not pay for a further unit of any layer.
    fn budget_is_kept_and_used(raw: Vec<Vec<u8>>, budget: u16) -> bool {
        let spectra = spectra(&raw);
        let layers = layers(&spectra);
        let limits = Limits { min: 0, max: 20, multiple: 1 };
        let Ok(ranks) = allocate(Policy::Budget(u64::from(budget)), limits, &layers) else { return true };
        let left = u64::from(budget).checked_sub(spent(&ranks, &layers));
        left.is_some_and(|left| {
            ranks.iter().zip(&layers).all(|(rank, layer)| *rank == layer.spectrum.len() || layer.cost > left)
        })
    }

    /// A larger share never gives a smaller rank. The rank keeps the share, and the next smaller rank does not.
    fn energy_is_monotone_and_tight(raw: Vec<Vec<u8>>, a: u8, b: u8) -> bool {
        let spectra = spectra(&raw);
        let layers = layers(&spectra);
        let limits = Limits { min: 0, max: 20, multiple: 1 };
        let share = |x: u8| f64::from(x) / 255.0;
        let ranks = |x: u8| allocate(Policy::Energy(share(x)), limits, &layers).unwrap();
        let kept = |layer: &Layer<'_>, rank: usize| layer.spectrum[..rank].iter().map(|s| s * s).sum::<f64>();
        let monotone = ranks(a.min(b)).iter().zip(&ranks(a.max(b))).all(|(low, high)| low <= high);
        monotone && ranks(a).iter().zip(&layers).all(|(rank, layer)| {
            let wanted = share(a) * layer.energy;
            kept(layer, *rank) >= wanted && (*rank == 0 || kept(layer, rank - 1) < wanted)
        })
    }

    /// With steps of one and equal costs, greedy is optimal: no other ranks of the same cost keep more energy share.
    fn greedy_is_optimal_for_equal_costs(first: Vec<u8>, second: Vec<u8>, budget: u8) -> bool {
        let spectra = spectra(&[first, second]);
        let mut layers = layers(&spectra);
        layers.iter_mut().for_each(|layer| layer.cost = 1);
        let limits = Limits { min: 0, max: 20, multiple: 1 };
        let budget = usize::from(budget % 40);
        let Ok(ranks) = allocate(Policy::Budget(budget as u64), limits, &layers) else { return true };
        let share = |layer: &Layer<'_>, rank: usize| {
            layer.spectrum[..rank].iter().map(|s| s * s).sum::<f64>() / layer.energy.max(f64::MIN_POSITIVE)
        };
        let value = |a: usize, b: usize| share(&layers[0], a) + share(&layers[1], b);
        let best = (0..=spectra[0].len().min(budget))
            .map(|a| value(a, spectra[1].len().min(budget - a)))
            .fold(0.0, f64::max);
        value(ranks[0], ranks[1]) >= best - 1e-12
    }
}

/// A layer that divides its rank among parts gets a multiple of their number, by every policy.
#[test]
fn divided_ranks_are_multiples_of_the_parts() {
    let spectrum = [4.0, 4.0, 4.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0];
    let layer = |parts| Layer {
        spectrum: &spectrum,
        energy: 63.0,
        cost: 10,
        rank_per_component: 1,
        parts,
        effective_rank: None,
    };
    let layers = [layer(3), layer(1)];
    let limits = |multiple| Limits { min: 1, max: 8, multiple };
    let ranks = |policy, multiple| allocate(policy, limits(multiple), &layers).unwrap();
    assert_eq!(ranks(Policy::Fixed(4), 1), [6, 4]);
    assert_eq!(ranks(Policy::Fixed(4), 2), [6, 4]);
    assert_eq!(ranks(Policy::Energy(0.8), 1), [6, 4]);
    assert_eq!(ranks(Policy::Budget(90), 1), [6, 3]);
    assert_eq!(ranks(Policy::BudgetOfRank(6), 1), [6, 6]);
    assert_eq!(ranks(Policy::Shared(4), 1), [3, 5]);
}

/// If a component takes two units of rank, every policy gives even ranks, which keep as much energy as half the rank otherwise.
#[test]
fn ranks_of_mirrored_pairs_are_even() {
    let spectrum = [4.0, 2.0, 2.0, 1.0];
    let layer = |rank_per_component| Layer {
        spectrum: &spectrum,
        energy: 25.0,
        cost: 10,
        rank_per_component,
        parts: 1,
        effective_rank: None,
    };
    let limits = |multiple| Limits { min: 0, max: 7, multiple };
    let ranks = |policy, multiple| allocate(policy, limits(multiple), &[layer(2), layer(1)]).unwrap();
    assert_eq!(ranks(Policy::Fixed(3), 1), [4, 3]);
    assert_eq!(ranks(Policy::Fixed(9), 1), [6, 4]);
    assert_eq!(ranks(Policy::Energy(0.8), 1), [4, 2]);
    assert_eq!(ranks(Policy::Energy(0.8), 3), [6, 3]);
    // The first component of each, then the cheaper units of the second layer.
    assert_eq!(ranks(Policy::Budget(30), 1), [2, 1]);
    assert_eq!(ranks(Policy::Budget(70), 1), [4, 3]);
    assert_eq!(ranks(Policy::BudgetOfRank(6), 1), [6, 4]);
    assert_eq!(layer(2).energy_kept(4), layer(1).energy_kept(2));
}

#[test]
fn ties_go_to_the_earlier_layer() {
    let spectrum = [2.0, 1.0];
    let layer = Layer {
        spectrum: &spectrum,
        energy: 5.0,
        cost: 10,
        rank_per_component: 1,
        parts: 1,
        effective_rank: None,
    };
    let limits = Limits { min: 0, max: 2, multiple: 1 };
    assert_eq!(allocate(Policy::Budget(30), limits, &[layer; 2]), Ok(vec![2, 1]));
}

/// EVA's rule as PEFT states it: the largest shares of all layers, as many as the budget has ranks.
#[test]
fn shared_ranks_go_to_the_largest_shares() {
    let spectra = [[3.0, 2.0, 1.0, 0.5], [1.0, 0.9, 0.8, 0.1], [9.0, 0.3, 0.2, 0.1]];
    let energies = [15.0, 3.0, 82.0];
    let layers: Vec<Layer<'_>> = spectra
        .iter()
        .zip(energies)
        .zip([7, 1000, 3])
        .map(|((spectrum, energy), cost)| Layer {
            spectrum,
            energy,
            cost,
            rank_per_component: 1,
            parts: 1,
            effective_rank: None,
        })
        .collect();
    let mut pool: Vec<(usize, f64)> = (0..3)
        .flat_map(|layer| spectra[layer][..3].iter().map(move |s| (layer, s * s / energies[layer])))
        .collect();
    pool.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut expected = vec![0; 3];
    pool[..6].iter().for_each(|(layer, _)| expected[*layer] += 1);
    let limits = Limits { min: 0, max: 3, multiple: 1 };
    assert_eq!(allocate(Policy::Shared(2), limits, &layers), Ok(expected.clone()));
    assert_eq!(expected, [2, 3, 1]);
}

fn of_effective_rank(spectrum: &[f64], effective_rank: f64) -> Layer<'_> {
    let effective_rank = Some(effective_rank);
    Layer { spectrum, energy: 1.0, cost: 10, rank_per_component: 1, parts: 1, effective_rank }
}

/// Astra's rule: results of its authors' code. A unit that rounding leaves over goes to the layer of the largest effective rank, and a
/// unit that is too much is taken from it.
#[test]
fn proportional_ranks_are_those_of_astra() {
    let spectrum = [1.0; 64];
    let ranks = |rank, effective: &[f64]| {
        let layers: Vec<_> = effective.iter().map(|e| of_effective_rank(&spectrum, *e)).collect();
        let limits = Limits { min: 1, max: 64, multiple: 1 };
        allocate(Policy::Proportional(rank), limits, &layers).unwrap()
    };
    assert_eq!(ranks(8, &[1.0, 3.0, 7.0]), [4, 8, 12]);
    assert_eq!(ranks(16, &[120.0, 30.5, 4.2, 900.0]), [18, 13, 6, 27]);
    assert_eq!(ranks(4, &[9.0, 9.0, 9.0, 2.0]), [4, 5, 5, 2]);
    assert_eq!(ranks(7, &[3.0, 14.0, 15.0, 92.0, 65.0, 35.0, 89.0, 79.0]), [3, 5, 6, 9, 8, 7, 9, 9]);
    assert_eq!(ranks(4, &[5.0, 5.0, 1.1]), [5, 5, 2]);
    assert_eq!(ranks(3, &[2.0, 2.0, 2.0, 60.0, 2.0]), [2, 2, 2, 7, 2]);
}

/// The limits and the full ranks of layers hold, and layers with room take the rest.
#[test]
fn proportional_ranks_keep_the_limits() {
    let spectrum = [1.0; 64];
    let layer = |full: usize, effective_rank| of_effective_rank(&spectrum[..full], effective_rank);
    let layers = [layer(3, 500.0), layer(64, 20.0), layer(64, 0.0)];
    let ranks = |rank, min, max, multiple| {
        allocate(Policy::Proportional(rank), Limits { min, max, multiple }, &layers).unwrap()
    };
    assert_eq!(ranks(8, 0, 64, 1), [3, 15, 6]);
    assert_eq!(ranks(8, 0, 9, 1), [3, 9, 9]);
    assert_eq!(ranks(8, 2, 16, 4), [0, 16, 8]);
    assert_eq!(ranks(8, 8, 8, 1), [3, 8, 8]);
    // Without effective ranks, as for weights of zero, all layers get the same.
    let equal = [layer(64, 0.0); 3];
    let limits = Limits { min: 0, max: 64, multiple: 1 };
    assert_eq!(allocate(Policy::Proportional(5), limits, &equal), Ok(vec![5; 3]));
    let mirrored = [Layer { rank_per_component: 2, ..layer(64, 3.0) }, layer(64, 3.0)];
    assert_eq!(allocate(Policy::Proportional(5), limits, &mirrored), Ok(vec![4, 6]));
    assert_eq!(allocate(Policy::Proportional(5), limits, &[]), Ok(vec![]));
}

#[test]
fn budgets_that_are_too_small_are_refused() {
    let layer = Layer {
        spectrum: &[1.0, 0.5],
        energy: 1.25,
        cost: 10,
        rank_per_component: 1,
        parts: 1,
        effective_rank: None,
    };
    let refused =
        |min, budget| allocate(Policy::Budget(budget), Limits { min, max: 2, multiple: 1 }, &[layer]);
    expect!["the parameter budget is 9, but must be at least the cost of the least ranks"]
        .assert_eq(&refused(1, 9).unwrap_err().to_string());
    expect!["the parameter budget is 9, but must be enough for one unit of rank of a layer"]
        .assert_eq(&refused(0, 9).unwrap_err().to_string());
}

/// Fixed ranks are rounded up to a multiple, but never above what the layer has.
#[test]
fn fixed_ranks_round_up_within_the_layer() {
    let spectrum = [1.0; 20];
    let layer = |full| Layer {
        spectrum: &spectrum[..full],
        energy: 1.0,
        cost: 1,
        rank_per_component: 1,
        parts: 1,
        effective_rank: None,
    };
    let limits = Limits { min: 0, max: 64, multiple: 8 };
    let ranks = allocate(Policy::Fixed(12), limits, &[layer(20), layer(15), layer(7)]);
    assert_eq!(ranks, Ok(vec![16, 8, 0]));
}
