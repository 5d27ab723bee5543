//! The share of the energy of the updates that ranks keep, from the singular values in the report.

use super::format::count;
use super::{LayerReport, Report};
use crate::factors::Start;
use crate::method::{Options, RankRule};
use crate::rank::Layer;

/// The multiples of the ranks for which a report gives the share.
pub(super) const MULTIPLES: [usize; 2] = [2, 4];

/// The layer as the choice of ranks sees it.
pub(super) fn as_layer(layer: &LayerReport, start: Start) -> Layer<'_> {
    Layer {
        spectrum: &layer.singular_values,
        rank_per_component: start.rank_per_component(),
        energy: layer.energy,
        cost: (layer.outputs as u64).saturating_add(layer.inputs as u64),
        parts: 1,
        effective_rank: None,
    }
}

/// `rank`, or the full rank of the layer if that is smaller.
pub(super) fn rank_in(layer: &LayerReport, rank: usize) -> usize {
    rank.min(layer.inputs.min(layer.outputs))
}

/// The share that the layer's own rank keeps; none if the layer has no update, or if the method does not cut one at the rank.
pub(super) fn own(layer: &LayerReport, method: &Options) -> Option<f64> {
    (layer.energy > 0.0 && method.method.rank_rule() != RankRule::Fixed).then_some(layer.energy_kept)
}

/// The share that this rank keeps; none as for [`own`], and if the report has too few singular values of the layer.
pub(super) fn at(layer: &LayerReport, method: &Options, rank: usize) -> Option<f64> {
    own(layer, method)?;
    let rank = rank_in(layer, rank);
    let enough = rank / method.start.rank_per_component() <= layer.singular_values.len();
    enough.then(|| as_layer(layer, method.start).energy_kept(rank))
}

/// The share that `factor` times the layer's own rank keeps; none as for [`at`].
pub(super) fn at_multiple(layer: &LayerReport, method: &Options, factor: usize) -> Option<f64> {
    at(layer, method, layer.rank.saturating_mul(factor))
}

/// Mean of the shares that the layers' own ranks keep.
pub(super) fn mean_own(report: &Report) -> Option<f64> {
    mean(&report.layers, |layer| own(layer, &report.method))
}

/// Mean over the layers that have an update; none if there is no such layer, or if `share` does not know one of them.
pub(super) fn mean(layers: &[LayerReport], share: impl Fn(&LayerReport) -> Option<f64>) -> Option<f64> {
    let shares: Option<Vec<f64>> = layers.iter().filter(|layer| layer.energy > 0.0).map(share).collect();
    let shares = shares.filter(|shares| !shares.is_empty())?;
    Some(shares.iter().sum::<f64>() / shares.len() as f64)
}

/// The mean share that `factor` times the ranks would keep, if it is known for all layers with an update.
pub(super) fn mean_at_multiple(report: &Report, factor: usize) -> Option<f64> {
    mean(&report.layers, |layer| at_multiple(layer, &report.method, factor))
}

/// The multiples of the ranks for which the share is not known, in words.
pub(super) fn unknown_multiples(report: &Report) -> Option<String> {
    mean_own(report)?;
    let unknown = MULTIPLES.into_iter().filter(|factor| mean_at_multiple(report, *factor).is_none());
    let unknown: Vec<String> = unknown.map(|factor| format!("{factor}×")).collect();
    let most = report.layers.iter().map(|layer| layer.singular_values.len()).max()?;
    let values = count(most as u64, "singular value");
    (!unknown.is_empty()).then(|| {
        format!("update kept at {} the rank: unknown beyond {values} per layer", unknown.join(" and "))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{layer, spectrum};
    use super::*;
    use crate::method::Method;

    fn residual() -> Options {
        Options { start: Start::Residual, ..Options::default() }
    }

    /// A layer whose first singular value holds half of the energy.
    fn three_values(rank: usize) -> LayerReport {
        spectrum("a", rank, &[2.0, 1.0, 1.0], 8.0)
    }

    #[test]
    fn higher_ranks_keep_more_as_far_as_singular_values_are_known() {
        let layer = three_values(1);
        let of = |factor| at_multiple(&layer, &residual(), factor);
        assert_eq!([of(1), of(2), of(3), of(4)], [Some(0.5), Some(0.625), Some(0.75), None]);
        let mirrored = Options { start: Start::Mirrored, ..Options::default() };
        assert_eq!(at(&layer, &mirrored, 6), Some(0.75), "a component takes two units of rank");
        assert_eq!(at_multiple(&three_values(0), &residual(), 2), Some(0.0));
    }

    #[test]
    fn the_rank_ends_at_the_full_rank() {
        let narrow = LayerReport { inputs: 2, ..three_values(1) };
        assert_eq!(at(&narrow, &residual(), 100), Some(0.625));
    }

    #[test]
    fn the_mean_leaves_out_layers_without_update() {
        let none = LayerReport { energy: 0.0, energy_kept: 1.0, ..layer("b", 1) };
        let own = |layer: &LayerReport| own(layer, &residual());
        assert_eq!(mean(&[three_values(1), none.clone()], own), Some(0.5));
        assert_eq!(mean(&[none], own), None);
        assert_eq!(mean(&[three_values(1)], |_| None), None);
    }

    /// MiLoRA takes the last singular values, so the share that they hold says nothing about its rank.
    #[test]
    fn methods_that_cut_no_update_at_the_rank_have_no_share() {
        let milora = Options { method: Method::Milora, ..residual() };
        assert_eq!((own(&three_values(1), &milora), at(&three_values(1), &milora, 1)), (None, None));
    }
}
