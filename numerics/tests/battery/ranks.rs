//! Ranks by energy and by budget, of layers that read one site, from the oracle's singular values.

use crate::inputs::{Case, Ordinary, Table, Weight, Weights};
use crate::oracle::svd;
use crate::subject::{self, Decomposed, Site};
use crate::truth::{Facts, Truth};
use crate::updates::{Verdict, require};
use cntlora_numerics::constraint::Coupling;
use cntlora_numerics::factors::Start;
use cntlora_numerics::method::{Method, Options};
use cntlora_numerics::rank::{Limits, Policy};

struct Layer {
    weight: Table,
    /// Share of the energy of each unit, and the tolerance of sums in f32.
    shares: Vec<f64>,
    tolerance: f64,
    cost: u64,
}

/// Layers of a case: three shapes, and one of another kind of weight.
fn layers(case: &Case, options: &Options) -> Vec<Layer> {
    let (target, source) = case.rows();
    let facts = Facts::of(&target, source.as_ref(), case.coupling == Coupling::Paired);
    [(case.outputs, case.weight), (5, Weight::Dense), (17, Weight::Dense), (8, Weight::Integers)]
        .into_iter()
        .map(|(outputs, kind)| {
            let weight = kind.draw(outputs, target.width, case.seed ^ outputs as u64);
            let (truth, tolerance) = Truth::of_update(&facts, &weight.matrix(), &subject::terms(options));
            let whole = truth.image.norm();
            let share = |sigma: f64| if whole > 0.0 { (sigma / whole).powi(2) } else { 0.0 };
            let shares = svd(&truth.image).s.into_iter().map(share);
            // The error of a sum of squares with a total error of |E|, and of its divisor.
            let tolerance = if whole > 0.0 { 4.0 * tolerance.image / whole } else { 0.0 };
            Layer { shares: shares.collect(), tolerance, cost: (outputs + target.width) as u64, weight }
        })
        .collect()
}

/// Greedy, as the reference states it: the best share per parameter first, ties to the earlier layer.
fn greedy(layers: &[Layer], budget: u64, max: usize) -> Vec<usize> {
    let mut ranks = vec![0; layers.len()];
    let mut left = budget;
    let mut units: Vec<(f64, usize, usize)> = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let shares = layer.shares.iter().take(max).enumerate();
        units.extend(shares.map(|(from, share)| (share / layer.cost as f64, index, from)));
    }
    units.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    for (_, index, from) in units {
        if layers[index].cost <= left && ranks[index] == from {
            ranks[index] += 1;
            left -= layers[index].cost;
        }
    }
    ranks
}

fn kept(layer: &Layer, rank: usize) -> f64 {
    layer.shares[..rank].iter().sum()
}

fn check(case: &Case) -> Verdict {
    let base = subject::options_of(case, Method::Cntlora, Start::Update, 64);
    let (target, source) = case.rows();
    let layers = layers(case, &base);
    let failed = |error| format!("refused: {error}");
    let site = Site::new(&target, source.as_ref(), &base).map_err(failed)?;
    let made: Vec<Decomposed> = layers
        .iter()
        .map(|layer| site.layer(&layer.weight, &base).map_err(failed))
        .collect::<Result<_, _>>()?;
    let made: Vec<&Decomposed> = made.iter().collect();
    let allocate = |policy, max| {
        let limits = Limits { min: 0, max, multiple: 1 };
        subject::ranks(&made, &Options { ranks: policy, limits, ..base.clone() }).map_err(failed)
    };

    for share in [0.3, 0.9, 0.999] {
        for (layer, rank) in layers.iter().zip(allocate(Policy::Energy(share), 64)?) {
            let (enough, without_last) =
                (kept(layer, rank), if rank > 0 { kept(layer, rank - 1) } else { 0.0 });
            let is_zero = layer.shares.iter().all(|share| *share == 0.0);
            let holds = if is_zero {
                rank == 0
            } else {
                enough >= share - layer.tolerance && without_last < share + layer.tolerance
            };
            require(holds, || format!("rank {rank} for {share}: keeps {enough}, one less {without_last}"))?;
        }
    }

    let all: u64 = layers.iter().map(|layer| layer.cost).sum();
    let fixed =
        |rank: usize| layers.iter().map(|layer| rank.min(layer.shares.len()) as u64 * layer.cost).sum();
    for (policy, budget, max) in [
        (Policy::Budget(all), all, 64),
        (Policy::Budget(4 * all), 4 * all, 3),
        (Policy::BudgetOfRank(2), fixed(2), 64),
    ] {
        let (found, wanted) = (allocate(policy, max)?, greedy(&layers, budget, max));
        let spent: u64 = found.iter().zip(&layers).map(|(rank, layer)| *rank as u64 * layer.cost).sum();
        require(spent <= budget, || format!("{spent} of {budget} parameters spent"))?;
        // Units of nearly the same value may swap: the chosen and the other units differ by no more than the errors of their shares.
        let worth = |layer: &Layer, unit: usize| layer.shares[unit] / layer.cost as f64;
        let slack = layers.iter().map(|layer| layer.tolerance / layer.cost as f64).fold(0.0, f64::max);
        let differ = (0..layers.len()).filter(|i| found[*i] != wanted[*i]);
        let disputed: Vec<f64> = differ
            .flat_map(|i| {
                let (low, high) = (found[i].min(wanted[i]), found[i].max(wanted[i]));
                let layer = &layers[i];
                (low..high).map(move |unit| worth(layer, unit))
            })
            .collect();
        let (low, high) =
            disputed.iter().fold((f64::MAX, 0.0f64), |(low, high), w| (low.min(*w), high.max(*w)));
        require(disputed.is_empty() || high - low <= 2.0 * slack, || {
            format!(
                "{policy:?}: ranks {found:?} and not {wanted:?}; worth from {low:e} to {high:e}, slack {slack:e}"
            )
        })?;
    }
    Ok(())
}

fn verdict(case: &Case) -> bool {
    check(case).inspect_err(|complaint| println!("{complaint}")).is_ok()
}

battery! {
    fn ranks_of_ordinary_layers(case: Ordinary) -> bool { verdict(&case.0) }
    fn ranks_of_structured_layers(case: Weights) -> bool { verdict(&case.0) }
}
