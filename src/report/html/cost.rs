//! What the adapter costs and keeps, against adapters of one rank everywhere.

use super::super::{LayerReport, Report};
use super::chart::{Bar, bars, figure};
use super::number::grouped;
use crate::factors::Start;
use crate::report::table::{bytes, percent};
use std::collections::BTreeSet;

/// The same rank in every layer, as far as the layer has so many.
struct Uniform {
    rank: usize,
    parameters: u64,
    /// Mean over the layers of the share of the update that is kept, where enough singular values are known.
    kept: Option<f64>,
}

impl Uniform {
    fn of(layers: &[LayerReport], start: Start, rank: usize) -> Self {
        let parameters = layers
            .iter()
            .map(|layer| {
                rank_in(layer, rank) as u64 * (layer.inputs as u64).saturating_add(layer.outputs as u64)
            })
            .fold(0, u64::saturating_add);
        let components = |layer: &LayerReport| rank_in(layer, rank) / start.rank_per_component();
        let known = layers.iter().all(|layer| layer.singular_values.len() >= components(layer));
        let kept = known.then(|| mean(layers, |layer| energy_kept(layer, components(layer))));
        Self { rank, parameters, kept }
    }
}

fn rank_in(layer: &LayerReport, rank: usize) -> usize {
    rank.min(layer.inputs.min(layer.outputs))
}

fn energy_kept(layer: &LayerReport, components: usize) -> f64 {
    let kept: f64 = layer.singular_values.iter().take(components).map(|value| value * value).sum();
    if layer.energy > 0.0 { (kept / layer.energy).min(1.0) } else { 1.0 }
}

fn mean(layers: &[LayerReport], value: impl Fn(&LayerReport) -> f64) -> f64 {
    layers.iter().map(value).sum::<f64>() / layers.len().max(1) as f64
}

/// Mean over all layers, those without an adapter included, of the share of the update that the adapter keeps.
pub(super) fn mean_kept(layers: &[LayerReport]) -> f64 {
    mean(layers, |layer| layer.energy_kept)
}

/// The chart: this adapter first, then adapters of one rank, among them the one that costs as much and the one of the
/// largest rank, which a server reserves memory for.
pub(super) fn comparison(report: &Report) -> String {
    let (layers, start) = (&report.layers, report.method.start);
    let largest = layers.iter().map(|layer| layer.rank).max().unwrap_or(0);
    let per_rank = Uniform::of(layers, start, 1).parameters.max(1);
    let as_much = usize::try_from(report.parameters / per_rank).unwrap_or(usize::MAX);
    let ranks = BTreeSet::from([8, 16, 32, as_much, largest]);
    let text = |parameters: u64, kept: Option<f64>| {
        let size = bytes(parameters.saturating_mul(report.element.size() as u64));
        match kept {
            Some(kept) => format!("{size}, {}", percent(kept)),
            None => size,
        }
    };
    let mut rows = vec![Bar {
        label: "this adapter".into(),
        value: report.parameters as f64,
        mark: None,
        text: text(report.parameters, Some(mean_kept(layers))),
        strong: true,
    }];
    for uniform in ranks.into_iter().filter(|rank| *rank > 0).map(|rank| Uniform::of(layers, start, rank)) {
        rows.push(Bar {
            label: format!("rank {} everywhere", uniform.rank),
            value: uniform.parameters as f64,
            mark: None,
            text: text(uniform.parameters, uniform.kept),
            strong: false,
        });
    }
    let caption = format!(
        "At the end of a bar: bytes as {}, and the mean over the layers of the share of the update that is kept, where \
         enough singular values were computed to know it. This adapter has {} parameters.",
        report.element.name(),
        grouped(report.parameters)
    );
    let title = "Size against one rank everywhere";
    figure(title, &caption, &bars(title, "parameters", &rows))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{layer, report};
    use super::*;

    /// A rank counts as far as a layer has it, and a share is told only where it is known.
    #[test]
    fn one_rank_costs_and_keeps_this() {
        let mut narrow = layer("b", 2);
        (narrow.inputs, narrow.outputs) = (1, 5);
        (narrow.singular_values, narrow.energy) = (vec![2.0], 4.0);
        let mut wide = layer("a", 2);
        (wide.inputs, wide.outputs) = (4, 6);
        (wide.singular_values, wide.energy) = (vec![2.0, 1.0], 8.0);
        let layers = [narrow, wide];
        let two = Uniform::of(&layers, Start::Residual, 2);
        assert_eq!((two.parameters, two.kept), (6 + 20, Some((1.0 + 0.625) / 2.0)));
        assert_eq!(Uniform::of(&layers, Start::Residual, 3).kept, None);
        assert_eq!(
            Uniform::of(&layers[1..], Start::Mirrored, 2).kept,
            Some(0.5),
            "one component in two units of rank"
        );
    }

    #[test]
    fn the_chart_compares_with_the_adapter() {
        let mut report = report(vec![layer("a", 4), layer("b", 8)]);
        report.parameters = 12 * 1920;
        let chart = comparison(&report);
        assert!(chart.contains("this adapter") && chart.contains("rank 6 everywhere"), "{chart}");
        assert!(chart.contains("92.2 kB"), "{chart}");
    }
}
