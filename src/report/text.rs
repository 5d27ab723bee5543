//! The report as a table for a terminal.

use super::table::{Align, Table, bytes, count, number, percent};
use super::{LayerReport, Report};
use crate::element::Element;
use crate::simd::Precision;
use std::fmt::Write as _;

/// A line per layer, a summary, and what was left out, within 80 columns. `element` is the format in which the
/// factors are stored.
pub fn render(report: &Report, element: Element) -> String {
    let mut table = Table::new([
        ("module", Align::Left),
        ("shape", Align::Right),
        ("rank", Align::Right),
        ("kept", Align::Right),
        ("strength", Align::Right),
        ("shift", Align::Right),
        ("σ₁", Align::Right),
    ]);
    for layer in &report.layers {
        table.row(cells(layer));
    }
    let mut text = table.render();
    let _ = writeln!(text, "\n{}", summary(report, element));
    for line in left_out(report) {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn cells(layer: &LayerReport) -> [String; 7] {
    let adapted = |cell: String| if layer.rank > 0 { cell } else { "–".into() };
    [
        layer.module.escape_debug().to_string(),
        format!("{}×{}", layer.outputs, layer.inputs),
        layer.rank.to_string(),
        adapted(percent(layer.energy_kept)),
        adapted(number(layer.strength)),
        adapted(percent(layer.shift)),
        layer.singular_values.first().map_or("–".into(), |value| number(*value)),
    ]
}

fn summary(report: &Report, element: Element) -> String {
    let ranks = || report.layers.iter().map(|layer| layer.rank).filter(|rank| *rank > 0);
    let ranks = match (ranks().min(), ranks().max()) {
        (Some(least), Some(largest)) if least < largest => format!("ranks {least} to {largest}"),
        (Some(rank), _) => format!("rank {rank}"),
        (None, _) => "no ranks".into(),
    };
    let precision = match report.precision {
        Precision::F32 => "",
        Precision::Bf16 => ", bf16 dot products",
    };
    format!(
        "{}, {}, {}, {ranks}, {:.1} s{precision}",
        count(report.layers.iter().filter(|layer| layer.rank > 0).count() as u64, "layer"),
        count(report.parameters, "parameter"),
        bytes(report.parameters.saturating_mul(element.size() as u64)),
        report.seconds,
    )
}

fn left_out(report: &Report) -> impl Iterator<Item = String> {
    let without_rank =
        report.layers.iter().filter(|layer| layer.rank == 0).map(|layer| (&layer.module, "rank 0"));
    let skipped = report.skipped.iter().map(|skipped| (&skipped.name, skipped.reason.as_str()));
    let names = without_rank
        .chain(skipped)
        .map(|(name, reason)| format!("left out: {}: {}", name.escape_debug(), reason.escape_debug()));
    let rows = report.sites.iter().filter(|site| site.skipped_rows > 0).map(|site| {
        let rows = count(site.skipped_rows, "row");
        format!("left out: {} of {} with NaN or infinity", rows, site.name.escape_debug())
    });
    names.chain(rows)
}

#[cfg(test)]
mod tests {
    use super::super::SiteReport;
    use super::*;
    use crate::constraint::Coupling;
    use crate::constraint::Norm;
    use crate::factors::{Start, Strength};
    use crate::method::Options;
    use crate::plan::Skipped;
    use crate::rank::{Limits, Policy};

    fn layer(module: &str, rank: usize) -> LayerReport {
        LayerReport {
            module: module.into(),
            tensor: format!("{module}.weight"),
            site: "in".into(),
            outputs: 1536,
            inputs: 384,
            rank,
            energy_kept: 0.8125,
            energy: 2.0,
            energy_exact: true,
            strength: 0.0625,
            shift: 0.05,
            singular_values: vec![12.5, 3.0],
            residual: 0.0,
            seconds: 0.5,
        }
    }

    fn report(layers: Vec<LayerReport>) -> Report {
        Report {
            schema_version: 1,
            tool_version: "0.1.0".into(),
            instruction_set: "scalar".into(),
            precision: Precision::F32,
            model: "model".into(),
            method: Options {
                coupling: Coupling::Transport,
                preserve: 0.0,
                ridge: 0.01,
                norm: Norm::Activations,
                strength: Strength::MaxShift(0.05),
                start: Start::Update,
                ranks: Policy::Fixed(8),
                limits: Limits { min: 0, max: 8, multiple: 1 },
                scale: 1.0,
                seed: 0,
            },
            sites: vec![SiteReport {
                name: "in".into(),
                width: 384,
                rows: 97,
                source_rows: None,
                skipped_rows: 3,
                damping: 0.01,
                moments_seconds: 0.25,
                constraint_seconds: 0.25,
            }],
            layers,
            skipped: vec![Skipped {
                name: "conv\u{1b}[31m".into(),
                reason: "its weight is not a matrix".into(),
            }],
            parameters: 23040,
            seconds: 1.25,
        }
    }

    /// The whole text, byte for byte: what a user sees, and what is left out is said.
    #[test]
    fn the_text_is_this() {
        let report = report(vec![
            layer("encoder.layer.0.attention.self.query", 8),
            layer("encoder.layer.11.intermediate.dense", 4),
            layer("x", 0),
        ]);
        let expected = "\
module                               shape  rank    kept  strength  shift     σ₁
encoder.layer.0…ntion.self.query  1536×384     8  81.2 %    0.0625  5.0 %  12.50
encoder.layer.1…termediate.dense  1536×384     4  81.2 %    0.0625  5.0 %  12.50
x                                 1536×384     0       –         –      –  12.50

2 layers, 23040 parameters, 92.2 kB, ranks 4 to 8, 1.2 s
left out: x: rank 0
left out: conv\\u{1b}[31m: its weight is not a matrix
left out: 3 rows of in with NaN or infinity
";
        assert_eq!(render(&report, Element::F32), expected);
    }

    /// Half the bytes in half precision, and one rank is not a range.
    #[test]
    fn the_summary_follows_format_and_ranks() {
        let text = render(&report(vec![layer("q", 8)]), Element::F16);
        assert!(text.contains("\n1 layer, 23040 parameters, 46.1 kB, rank 8, 1.2 s\n"), "{text}");
    }
}
