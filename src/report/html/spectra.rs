//! The singular values of all updates as small charts on one scale, with the cut at the rank.

use super::escape;
use super::module::{common_prefix, place};
use crate::factors::Start;
use crate::method::Options;
use crate::report::LayerReport;
use crate::report::format::{count, number, percent};
use crate::report::groups::Group;
use crate::report::kept;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// With more charts than this, only those of the first type of module are unfolded.
const OPEN: usize = 60;

/// The spectrum of a module.
struct Spectrum<'a> {
    module: &'a str,
    /// The number of blocks, if there are several.
    blocks: Option<usize>,
    rank: usize,
    /// Singular values; of several blocks, the root mean squares.
    values: Vec<f64>,
    /// The share that the rank keeps; the median of several blocks.
    kept: Option<f64>,
}

impl<'a> Spectrum<'a> {
    fn of(group: &'a Group<'_, LayerReport>, method: &Options) -> Self {
        let members = &group.members;
        let length = members.iter().map(|layer| layer.singular_values.len()).min().unwrap_or(0);
        let mean_square = |i: usize| {
            let squares = members.iter().map(|layer| layer.singular_values[i].powi(2));
            (squares.sum::<f64>() / members.len() as f64).sqrt()
        };
        let values = match members[..] {
            [only] => only.singular_values.clone(),
            _ => (0..length).map(mean_square).collect(),
        };
        Self {
            module: &group.name,
            blocks: group.blocks(),
            rank: members.iter().map(|layer| layer.rank).max().unwrap_or(0),
            values,
            kept: group.figure(|layer| kept::own(layer, method)).map(|kept| kept.median),
        }
    }

    /// A value relative to the first.
    fn share(&self, value: f64) -> f64 {
        match self.values.first() {
            Some(first) if *first > 0.0 => value / first,
            _ => 0.0,
        }
    }
}

/// The charts by type of module.
pub(super) fn section(groups: &[Group<'_, LayerReport>], method: &Options) -> String {
    let spectra: Vec<Spectrum<'_>> = groups.iter().map(|group| Spectrum::of(group, method)).collect();
    let grouped = match spectra.iter().any(|spectrum| spectrum.blocks.is_some()) {
        true => " Modules with several blocks show the root mean square over the blocks.",
        false => "",
    };
    let intro = format!(
        "<p>Singular values of the update of each layer, relative to the largest, all on one logarithmic scale. Those before the \
         line are in the adapter.{grouped}</p>\n"
    );
    intro + &small_multiples(&spectra, method.start)
}

fn small_multiples(spectra: &[Spectrum<'_>], start: Start) -> String {
    let decades = decades(spectra);
    let mut kinds: BTreeMap<String, Vec<&Spectrum<'_>>> = BTreeMap::new();
    for spectrum in spectra {
        kinds.entry(place(spectrum.module).kind).or_default().push(spectrum);
    }
    let prefix = common_prefix(kinds.keys().map(String::as_str)).to_owned();
    let mut body = String::new();
    for (index, (kind, mut of_kind)) in kinds.into_iter().enumerate() {
        of_kind.sort_by_key(|spectrum| place(spectrum.module).depth);
        let open = if spectra.len() <= OPEN || index == 0 { " open" } else { "" };
        let _ = writeln!(
            body,
            "<details{open}><summary>{}, {}</summary><div class=\"multiples\">",
            escape::name(kind.strip_prefix(&prefix).unwrap_or(&kind)),
            count(of_kind.len() as u64, "module")
        );
        for spectrum in of_kind {
            body.push_str(&chart(spectrum, start, decades));
        }
        body.push_str("</div></details>\n");
    }
    body
}

/// The number of powers of ten on the scale: enough for the last value of every module, and at most 8.
fn decades(spectra: &[Spectrum<'_>]) -> u8 {
    let ratios =
        spectra.iter().flat_map(|spectrum| spectrum.values.iter().map(|value| spectrum.share(*value)));
    let least = ratios.filter(|ratio| *ratio > 0.0).fold(1.0, f64::min);
    (1..8).find(|decades| 10f64.powi(-i32::from(*decades)) <= least).unwrap_or(8)
}

/// A chart of 180 by 130 units.
fn chart(spectrum: &Spectrum<'_>, start: Start, decades: u8) -> String {
    const LEFT: f64 = 34.0;
    const RIGHT: f64 = 176.0;
    const TOP: f64 = 14.0;
    const BOTTOM: f64 = 98.0;
    let values = &spectrum.values;
    let components = spectrum.rank / start.rank_per_component();
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
        let (x, height) = (LEFT + step * index as f64, height(spectrum.share(*value)));
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
        spectrum.rank,
        values.len(),
        (LEFT + RIGHT) / 2.0,
    );
    let kept = match spectrum.kept {
        _ if spectrum.rank == 0 => "no adapter".into(),
        Some(kept) => format!("keeps {}", percent(kept)),
        None => format!("rank {}", spectrum.rank),
    };
    let blocks = spectrum.blocks.map_or_else(String::new, |blocks| format!(", {blocks} blocks"));
    let (first, last) = (values.first().copied().unwrap_or(0.0), values.last().copied().unwrap_or(0.0));
    let description = format!(
        "{} singular values from {} to {}; rank {}, {kept}{blocks}",
        values.len(),
        number(first),
        number(last),
        spectrum.rank,
    );
    format!(
        "<figure><h4>{}</h4><svg role=\"img\" viewBox=\"0 0 180 130\"><title>Spectrum of {}</title><desc>{}</desc>{body}</svg>\
         <figcaption>{kept}, σ₁ = {}{blocks}</figcaption></figure>\n",
        escape::name(spectrum.module),
        escape::visible(spectrum.module),
        escape::text(&description),
        number(first),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::groups;
    use crate::report::testing::{block, layer};

    fn charts(layers: &[LayerReport], start: Start) -> String {
        section(&groups::of_layers(layers), &Options { start, ..Options::default() })
    }

    #[test]
    fn the_cut_is_at_the_rank() {
        let layer = LayerReport { singular_values: vec![8.0, 4.0, 2.0, 0.0], ..layer("m.0.q", 2) };
        let chart = charts(std::slice::from_ref(&layer), Start::Residual);
        assert_eq!(chart.matches("class=\"bar strong\"").count(), 2, "{chart}");
        assert_eq!(chart.matches("class=\"bar\"").count(), 2, "{chart}");
        assert!(chart.contains("class=\"mark\" x1=\"105.0\""), "half of the way from 34 to 176: {chart}");
        assert!(chart.contains("4 singular values from 8.000 to 0; rank 2, keeps 81.2 %"), "{chart}");
        let mirrored = charts(std::slice::from_ref(&layer), Start::Mirrored);
        let strong = mirrored.matches("class=\"bar strong\"").count();
        assert_eq!(strong, 1, "a component takes two units of rank");
    }

    #[test]
    fn layers_without_values_draw_no_infinite_numbers() {
        let zero = LayerReport { singular_values: vec![0.0, 0.0], energy: 0.0, ..layer("zero", 1) };
        let none = LayerReport { singular_values: vec![], ..layer("none", 0) };
        let charts = charts(&[zero, none], Start::Residual);
        assert!(!charts.contains("NaN") && !charts.contains("inf"), "{charts}");
        assert!(charts.contains("<figcaption>rank 1,") && charts.contains("no adapter"), "{charts}");
    }

    #[test]
    fn blocks_have_one_chart_of_their_root_mean_square() {
        let blocks = [(0, 1.0), (1, 7.0)]
            .map(|(number, value)| LayerReport { singular_values: vec![value], ..block("up", number) });
        let charts = charts(&blocks, Start::Residual);
        assert_eq!(charts.matches("<svg").count(), 1, "{charts}");
        assert!(charts.contains("σ₁ = 5.000, 2 blocks"), "{charts}");
    }
}
