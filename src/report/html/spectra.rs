//! The singular values of every layer as small charts on one scale, with the cut marked.

use super::super::LayerReport;
use super::escape;
use super::module::{common_prefix, place};
use crate::factors::Start;
use crate::report::table::{count, number, percent};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// With more layers than this, only the first type of module is shown at once.
const OPEN: usize = 60;

/// The charts by type of module.
pub(super) fn small_multiples(layers: &[LayerReport], start: Start) -> String {
    let decades = decades(layers);
    let mut kinds: BTreeMap<String, Vec<&LayerReport>> = BTreeMap::new();
    for layer in layers {
        kinds.entry(place(&layer.module).kind).or_default().push(layer);
    }
    let prefix = common_prefix(kinds.keys().map(String::as_str)).to_owned();
    let mut body = String::new();
    for (index, (kind, mut layers_of_kind)) in kinds.into_iter().enumerate() {
        layers_of_kind.sort_by_key(|layer| place(&layer.module).depth);
        let open = if layers.len() <= OPEN || index == 0 { " open" } else { "" };
        let _ = writeln!(
            body,
            "<details{open}><summary>{}, {}</summary><div class=\"multiples\">",
            escape::name(kind.strip_prefix(&prefix).unwrap_or(&kind)),
            count(layers_of_kind.len() as u64, "layer")
        );
        for layer in layers_of_kind {
            body.push_str(&chart(layer, start, decades));
        }
        body.push_str("</div></details>\n");
    }
    body
}

/// How many powers of ten below the first value the scale reaches: as far as any layer's last value, and at most 8.
fn decades(layers: &[LayerReport]) -> u8 {
    let ratios =
        layers.iter().flat_map(|layer| layer.singular_values.iter().map(|value| share(layer, *value)));
    let least = ratios.filter(|ratio| *ratio > 0.0).fold(1.0, f64::min);
    (1..8).find(|decades| 10f64.powi(-i32::from(*decades)) <= least).unwrap_or(8)
}

fn share(layer: &LayerReport, value: f64) -> f64 {
    match layer.singular_values.first() {
        Some(first) if *first > 0.0 => value / first,
        _ => 0.0,
    }
}

/// One chart in a box of 180 by 130.
fn chart(layer: &LayerReport, start: Start, decades: u8) -> String {
    const LEFT: f64 = 34.0;
    const RIGHT: f64 = 176.0;
    const TOP: f64 = 14.0;
    const BOTTOM: f64 = 98.0;
    let values = &layer.singular_values;
    let components = layer.rank / start.rank_per_component();
    let height = |ratio: f64| (1.0 + ratio.log10() / f64::from(decades)).clamp(0.0, 1.0) * (BOTTOM - TOP);
    let step = (RIGHT - LEFT) / values.len().max(1) as f64;
    let mut body = String::new();
    for decade in 0..=decades {
        let ratio = 10f64.powi(-i32::from(decade));
        let y = BOTTOM - height(ratio);
        let _ =
            write!(body, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        if decade == 0 || decade == decades || decades <= 3 {
            let _ = write!(
                body,
                "<text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 3.0,
                y + 3.5,
                super::chart::tick(ratio)
            );
        }
    }
    for (index, value) in values.iter().enumerate() {
        let (x, height) = (LEFT + step * index as f64, height(share(layer, *value)));
        let class = if index < components { "bar strong" } else { "bar" };
        let _ = write!(
            body,
            "<rect class=\"{class}\" x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{height:.2}\"/>",
            x + step * 0.1,
            BOTTOM - height,
            step * 0.8
        );
    }
    let cut = LEFT + step * components.min(values.len()) as f64;
    let (anchor, at) = if cut > (LEFT + RIGHT) / 2.0 { ("end", cut - 3.0) } else { ("start", cut + 3.0) };
    let _ = write!(
        body,
        "<line class=\"mark\" x1=\"{cut:.1}\" x2=\"{cut:.1}\" y1=\"{}\" y2=\"{BOTTOM}\"/>\
         <text class=\"cut\" x=\"{at:.1}\" y=\"9\" text-anchor=\"{anchor}\">rank {}</text>\
         <line class=\"axis\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{BOTTOM}\" y2=\"{BOTTOM}\"/>\
         <text class=\"tick\" x=\"{LEFT}\" y=\"110\">1</text>\
         <text class=\"tick\" x=\"{RIGHT}\" y=\"110\" text-anchor=\"end\">{}</text>\
         <text class=\"tick\" x=\"{}\" y=\"124\" text-anchor=\"middle\">component</text>\
         <text class=\"tick\" x=\"2\" y=\"9\">σᵢ/σ₁</text>",
        TOP - 3.0,
        layer.rank,
        values.len(),
        (LEFT + RIGHT) / 2.0,
    );
    let kept = match layer.rank {
        0 => "no adapter".into(),
        _ => format!("keeps {}", percent(layer.energy_kept)),
    };
    let (first, last) = (values.first().copied().unwrap_or(0.0), values.last().copied().unwrap_or(0.0));
    let description = format!(
        "{} singular values from {} to {}; rank {}, {kept}",
        values.len(),
        number(first),
        number(last),
        layer.rank
    );
    format!(
        "<figure><h4>{}</h4><svg role=\"img\" viewBox=\"0 0 180 130\"><title>Spectrum of {}</title><desc>{}</desc>{body}</svg>\
         <figcaption>{kept}, σ₁ = {}</figcaption></figure>\n",
        escape::name(&layer.module),
        escape::visible(&layer.module),
        escape::text(&description),
        number(first),
    )
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::layer;
    use super::*;

    /// The cut stands after as many components as the rank says, and those before it are the strong ones.
    #[test]
    fn the_cut_is_at_the_rank() {
        let mut layer = layer("m.0.q", 2);
        layer.singular_values = vec![8.0, 4.0, 2.0, 0.0];
        let chart = small_multiples(std::slice::from_ref(&layer), Start::Residual);
        assert_eq!(chart.matches("class=\"bar strong\"").count(), 2, "{chart}");
        assert_eq!(chart.matches("class=\"bar\"").count(), 2, "{chart}");
        assert!(chart.contains("class=\"mark\" x1=\"105.0\""), "half of the way from 34 to 176: {chart}");
        assert!(chart.contains("4 singular values from 8.000 to 0; rank 2, keeps 81.2 %"), "{chart}");
        let mirrored = small_multiples(std::slice::from_ref(&layer), Start::Mirrored);
        assert_eq!(
            mirrored.matches("class=\"bar strong\"").count(),
            1,
            "a component takes two units of rank"
        );
    }

    /// Zeros, and layers without values, draw no NaN.
    #[test]
    fn zeros_have_a_place() {
        let mut zero = layer("zero", 1);
        zero.singular_values = vec![0.0, 0.0];
        let mut none = layer("none", 0);
        none.singular_values = vec![];
        let charts = small_multiples(&[zero, none], Start::Residual);
        assert!(!charts.contains("NaN") && !charts.contains("inf"), "{charts}");
    }
}
