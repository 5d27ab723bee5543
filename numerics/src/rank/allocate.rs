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
    /// The total of this rank in every layer, in proportion to `ln(e + 1)` with the [effective rank](Layer::effective_rank) `e`: Astra's
    /// rule, which counts ranks and not parameters.
    Proportional(usize),
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
    /// `exp` of the entropy of the shares of energy of all singular values, for [`Policy::Proportional`], which counts layers
    /// without it as 0.
    pub effective_rank: Option<f64>,
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
        Policy::Proportional(rank) => Ok(in_proportion(rank, limits, layers)),
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

/// As Astra: each layer's part of the total, rounded, and then unit by unit until the total is that of `rank` in every layer, the layers of
/// larger effective rank first, as far as the limits allow it. If no layer has an effective rank, all have equal parts.
fn in_proportion(rank: usize, limits: Limits, layers: &[Layer<'_>]) -> Vec<usize> {
    let scores: Vec<f64> = layers.iter().map(|layer| layer.effective_rank.unwrap_or(0.0).ln_1p()).collect();
    let whole: f64 = scores.iter().sum();
    let total = rank.saturating_mul(layers.len());
    let part = |score: f64| if whole > 0.0 { score / whole * total as f64 } else { rank as f64 };
    let bounds: Vec<(usize, usize)> = layers.iter().map(|layer| limits.of(layer)).collect();
    let steps: Vec<usize> = layers.iter().map(|layer| limits.step_of(layer)).collect();
    let mut ranks: Vec<usize> = (0..layers.len())
        .map(|i| {
            // Halves are rounded to the even number, as in Python.
            let units = (part(scores[i]) / steps[i] as f64).round_ties_even() as usize;
            units.saturating_mul(steps[i]).clamp(bounds[i].0, bounds[i].1)
        })
        .collect();
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
    let mut given = ranks.iter().copied().fold(0, usize::saturating_add);
    loop {
        let before = given;
        for &i in &order {
            if given < total && steps[i] <= total - given && ranks[i] < bounds[i].1 {
                ranks[i] += steps[i];
                given += steps[i];
            } else if given > total && ranks[i] > bounds[i].0 {
                ranks[i] -= steps[i];
                given -= steps[i];
            }
        }
        if given == before {
            return ranks;
        }
    }
}

#[cfg(test)]
mod tests;
