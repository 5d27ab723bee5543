//! The policies of ranks, and how each of them chooses.

use crate::error::{Error, Result};

/// How ranks are chosen.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The same rank everywhere.
    Fixed(usize),
    /// The least rank that keeps this share, in (0, 1], of the layer's energy.
    Energy(f64),
    /// This many parameters in total, spent greedily on energy share per parameter.
    Budget(u64),
    /// A budget of the parameters of this fixed rank.
    BudgetOfRank(usize),
    /// The total of this rank in every layer, given unit by unit to the largest energy shares: EVA's rule, which counts ranks and not
    /// parameters.
    Shared(usize),
}

/// Limits that every policy keeps. No layer gets more than its full rank, also if the least rank is larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Least rank of a layer.
    pub min: usize,
    /// Largest rank of a layer.
    pub max: usize,
    /// Ranks are multiples of this: least ranks are rounded up, largest ranks down.
    pub multiple: usize,
}

/// A layer as the choice of ranks sees it.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Leading singular values, descending, one per component of the update. They limit the rank.
    pub spectrum: &'a [f64],
    /// Units of rank that each component takes: 2 if factors are mirrored pairs, otherwise 1.
    pub rank_per_component: usize,
    /// Sum of the squares of all singular values.
    pub energy: f64,
    /// Parameters that a unit of rank costs: `m + d`.
    pub cost: u64,
    /// Number of blocks that divide the rank: the groups of a convolution. Otherwise 1.
    pub parts: usize,
}

impl Layer<'_> {
    /// Share of the energy that a rank keeps; 1 if there is no energy.
    ///
    /// # Panics
    /// If the spectrum is too short for `rank`.
    pub fn energy_kept(&self, rank: usize) -> f64 {
        let kept = self.energy_between(0, rank);
        if self.energy > 0.0 { (kept / self.energy).min(1.0) } else { 1.0 }
    }

    /// Energy that rank `to` keeps beyond rank `from`. Both are multiples of [`Self::rank_per_component`].
    fn energy_between(&self, from: usize, to: usize) -> f64 {
        let components = from / self.rank_per_component..to / self.rank_per_component;
        self.spectrum[components].iter().map(|sigma| sigma * sigma).sum()
    }

    /// Largest rank that the spectrum allows.
    fn full_rank(&self) -> usize {
        self.spectrum.len().saturating_mul(self.rank_per_component)
    }
}

impl Limits {
    /// Least step between two ranks that are multiples of `unit` as well as of [`Self::multiple`].
    pub fn step(self, unit: usize) -> usize {
        least_common_multiple(self.multiple.max(1), unit.max(1))
    }

    /// Least step between two ranks of a layer.
    fn step_of(self, layer: &Layer<'_>) -> usize {
        self.step(layer.rank_per_component.saturating_mul(layer.parts))
    }

    /// Least and largest legal rank of a layer.
    fn of(self, layer: &Layer<'_>) -> (usize, usize) {
        let step = self.step_of(layer);
        let max = self.max.min(layer.full_rank()) / step * step;
        (self.min.next_multiple_of(step).min(max), max)
    }

    /// The least legal rank that is at least `rank`, or the largest legal one.
    fn at_least(self, rank: usize, layer: &Layer<'_>) -> usize {
        let (min, max) = self.of(layer);
        rank.next_multiple_of(self.step_of(layer)).clamp(min, max)
    }
}

/// The least common multiple of two numbers, or the largest number if it is larger than that.
pub fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (a / divisor).saturating_mul(b)
}

/// A rank for every layer, in their order. 0 means that the layer gets no adapter.
///
/// # Errors
/// [`Error::Option`] for a budget that does not pay for the least ranks, or for no rank at all.
pub fn allocate(policy: Policy, limits: Limits, layers: &[Layer<'_>]) -> Result<Vec<usize>> {
    let fixed = |rank: usize| layers.iter().map(move |layer| limits.at_least(rank, layer));
    match policy {
        Policy::Fixed(rank) => Ok(fixed(rank).collect()),
        Policy::Energy(share) => {
            Ok(layers.iter().map(|layer| limits.at_least(rank_of_share(share, layer), layer)).collect())
        }
        Policy::Budget(parameters) => by_budget(parameters, limits, layers),
        Policy::BudgetOfRank(rank) => {
            let cost = |(rank, layer): (usize, &Layer<'_>)| (rank as u64).saturating_mul(layer.cost);
            let full = layers.iter().map(|layer| rank.min(layer.full_rank()));
            by_budget(full.zip(layers).map(cost).fold(0, u64::saturating_add), limits, layers)
        }
        Policy::Shared(rank) => {
            let ranks = (rank as u64).saturating_mul(layers.len() as u64);
            let equal: Vec<Layer<'_>> = layers.iter().map(|layer| Layer { cost: 1, ..*layer }).collect();
            by_budget(ranks, limits, &equal)
        }
    }
}

/// Least rank whose singular values hold `share` of the energy.
fn rank_of_share(share: f64, layer: &Layer<'_>) -> usize {
    let wanted = share * layer.energy;
    let mut kept = 0.0;
    for (component, sigma) in layer.spectrum.iter().enumerate() {
        if kept >= wanted {
            return component * layer.rank_per_component;
        }
        kept += sigma * sigma;
    }
    layer.full_rank()
}

/// Greedy: the best energy share per parameter first, until nothing more fits. Ties go to the earlier layer.
fn by_budget(parameters: u64, limits: Limits, layers: &[Layer<'_>]) -> Result<Vec<usize>> {
    let too_small =
        |expected| Error::Option { what: "the parameter budget", expected, found: parameters as f64 };
    let mut ranks: Vec<usize> = layers.iter().map(|layer| limits.of(layer).0).collect();
    let cost = |(rank, layer): (&usize, &Layer<'_>)| (*rank as u64).saturating_mul(layer.cost);
    let least = ranks.iter().zip(layers).map(cost).fold(0, u64::saturating_add);
    let Some(mut left) = parameters.checked_sub(least) else {
        return Err(too_small("at least the cost of the least ranks"));
    };

    struct Step {
        value: f64,
        layer: usize,
        from: usize,
    }
    let mut steps = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let (min, max) = limits.of(layer);
        let unit = limits.step_of(layer);
        let per_parameter = 1.0 / (layer.energy.max(f64::MIN_POSITIVE) * unit as f64 * layer.cost as f64);
        for from in (min..max).step_by(unit) {
            // At most the largest rank, which is a multiple of the unit.
            let gain = layer.energy_between(from, from + unit);
            steps.push(Step { value: gain * per_parameter, layer: index, from });
        }
    }
    steps.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.layer.cmp(&b.layer)).then(a.from.cmp(&b.from)));
    for step in steps {
        let unit = limits.step_of(&layers[step.layer]);
        let cost = (unit as u64).saturating_mul(layers[step.layer].cost);
        if cost <= left && ranks[step.layer] == step.from {
            ranks[step.layer] += unit;
            left -= cost;
        }
    }
    if ranks.iter().all(|rank| *rank == 0) {
        return Err(too_small("enough for one unit of rank of a layer"));
    }
    Ok(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use quickcheck::quickcheck;

    /// Layers with descending spectra, some of them equal, so that ties occur.
    fn spectra(raw: &[Vec<u8>]) -> Vec<Vec<f64>> {
        raw.iter()
            .take(12)
            .map(|values| {
                let mut spectrum: Vec<f64> =
                    values.iter().take(20).map(|v| f64::from(v % 16) / 4.0).collect();
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
        let layer =
            |parts| Layer { spectrum: &spectrum, energy: 63.0, cost: 10, rank_per_component: 1, parts };
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
        let layer = Layer { spectrum: &spectrum, energy: 5.0, cost: 10, rank_per_component: 1, parts: 1 };
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

    #[test]
    fn budgets_that_are_too_small_are_refused() {
        let layer = Layer { spectrum: &[1.0, 0.5], energy: 1.25, cost: 10, rank_per_component: 1, parts: 1 };
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
        };
        let limits = Limits { min: 0, max: 64, multiple: 8 };
        let ranks = allocate(Policy::Fixed(12), limits, &[layer(20), layer(15), layer(7)]);
        assert_eq!(ranks, Ok(vec![16, 8, 0]));
    }
}
