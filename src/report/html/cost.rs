//! The size of the adapter and the share of the updates that it keeps, compared with adapters of one rank for all layers.

use super::chart::{Bar, bars, figure};
use crate::method::Options;
use crate::report::format::{bytes, grouped, percent};
use crate::report::kept::{self, rank_in};
use crate::report::{LayerReport, Report};
use std::collections::BTreeSet;

/// An adapter of one rank for all layers, or of the full rank of a layer if that is smaller.
struct Uniform {
    rank: usize,
    parameters: u64,
    /// Mean over the layers of the share of the update that is kept, if it is known.
    kept: Option<f64>,
}

impl Uniform {
    fn of(layers: &[LayerReport], method: &Options, rank: usize) -> Self {
        let cost = |layer: &LayerReport| {
            (rank_in(layer, rank) as u64).saturating_mul(kept::as_layer(layer, method.start).cost)
        };
        let parameters = layers.iter().map(cost).fold(0, u64::saturating_add);
        Self { rank, parameters, kept: kept::mean(layers, |layer| kept::at(layer, method, rank)) }
    }
}

/// The chart: this adapter first, then adapters of one rank for all layers. Among them are the one of the same size, two and four
/// times its rank, and the largest rank of a layer, for which a server reserves memory.
pub(super) fn comparison(report: &Report) -> String {
    let (layers, method) = (&report.layers, &report.method);
    let largest = layers.iter().map(|layer| layer.rank).max().unwrap_or(0);
    let per_rank = Uniform::of(layers, method, 1).parameters.max(1);
    let step = method.rank_step(1);
    let as_much = usize::try_from(report.parameters / per_rank).unwrap_or(usize::MAX);
    let as_much = (as_much / step * step).max(step);
    let multiples = kept::MULTIPLES.map(|factor| as_much.saturating_mul(factor));
    let ranks: BTreeSet<usize> = [8, 16, 32, as_much, largest].into_iter().chain(multiples).collect();
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
        text: text(report.parameters, kept::mean_own(report)),
        strong: true,
    }];
    for uniform in ranks.into_iter().filter(|rank| *rank > 0).map(|rank| Uniform::of(layers, method, rank)) {
        rows.push(Bar {
            label: format!("rank {} everywhere", uniform.rank),
            value: uniform.parameters as f64,
            mark: None,
            text: text(uniform.parameters, uniform.kept),
            strong: false,
        });
    }
    let caption = format!(
        "Beside each bar: the size in {}, and the share of an update that is kept on average, if enough singular values were \
         computed. This adapter has {} parameters.",
        report.element.name(),
        grouped(report.parameters)
    );
    let title = "Size, compared with one rank everywhere";
    figure(title, &caption, &bars(title, "parameters", &rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factors::Start;
    use crate::report::testing::{layer, report, spectrum};

    #[test]
    fn ranks_end_at_the_full_rank_and_shares_where_singular_values_end() {
        let narrow = LayerReport { inputs: 1, outputs: 5, ..spectrum("b", 2, &[2.0], 4.0) };
        let wide = LayerReport { inputs: 4, outputs: 6, ..spectrum("a", 2, &[2.0, 1.0], 8.0) };
        let layers = [narrow, wide];
        let residual = Options { start: Start::Residual, ..Options::default() };
        let two = Uniform::of(&layers, &residual, 2);
        assert_eq!((two.parameters, two.kept), (6 + 20, Some((1.0 + 0.625) / 2.0)));
        assert_eq!(Uniform::of(&layers, &residual, 3).kept, None);
        let mirrored = Options { start: Start::Mirrored, ..Options::default() };
        let mirrored = Uniform::of(&layers[1..], &mirrored, 2).kept;
        assert_eq!(mirrored, Some(0.5), "a component takes two units of rank");
    }

    #[test]
    fn the_chart_compares_with_the_adapter() {
        let mut report = report(vec![layer("a", 4), layer("b", 8)]);
        report.parameters = 12 * 1920;
        let chart = comparison(&report);
        for label in
            ["this adapter", "rank 6 everywhere", "rank 12 everywhere", "rank 24 everywhere", "92.2 kB"]
        {
            assert!(chart.contains(label), "{label} is not in {chart}");
        }
    }

    #[test]
    fn the_chart_shows_only_ranks_that_the_method_has() {
        let mut report = report(vec![layer("a", 4), layer("b", 10)]);
        report.method.start = Start::Mirrored;
        report.parameters = 14 * 1920;
        let chart = comparison(&report);
        assert!(chart.contains("rank 6 everywhere") && !chart.contains("rank 7 everywhere"), "{chart}");
    }
}
