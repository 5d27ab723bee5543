//! The report as a table for a terminal.

use super::table::{Align, Table, bytes, count, number, percent};
use super::{LayerReport, Report, TrustRegion};
use crate::factors::Start;
use crate::method::Method;
use crate::simd::Precision;
use std::fmt::Write as _;

/// A line per layer, a summary, and what was left out, within 80 columns.
pub fn render(report: &Report) -> String {
    let mut text = table(report);
    let _ = writeln!(text, "\n{}", summary(report));
    if let Some(trust_region) = &report.trust_region {
        let _ = writeln!(text, "{}", shift(trust_region));
    }
    for line in all_left_out(report) {
        let _ = writeln!(text, "{line}");
    }
    if let Some(line) = empty_units(report) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// Strength and shift are columns for the start that has them.
fn table(report: &Report) -> String {
    let adapted = |layer: &LayerReport, cell: String| if layer.rank > 0 { cell } else { "–".into() };
    let name = |layer: &LayerReport| layer.module.escape_debug().to_string();
    let shape = |layer: &LayerReport| format!("{}×{}", layer.outputs, layer.inputs);
    let kept = |layer: &LayerReport| adapted(layer, percent(layer.energy_kept));
    let first =
        |layer: &LayerReport| layer.singular_values.first().map_or("–".into(), |value| number(*value));
    let left = |name| (name, Align::Left);
    let right = |name| (name, Align::Right);
    if report.method.start != Start::Update {
        let mut table =
            Table::new([left("module"), right("shape"), right("rank"), right("kept"), right("σ₁")]);
        for layer in &report.layers {
            table.row([name(layer), shape(layer), layer.rank.to_string(), kept(layer), first(layer)]);
        }
        return table.render();
    }
    let mut table = Table::new([
        left("module"),
        right("shape"),
        right("rank"),
        right("kept"),
        right("strength"),
        right("shift"),
        right("σ₁"),
    ]);
    for layer in &report.layers {
        table.row([
            name(layer),
            shape(layer),
            layer.rank.to_string(),
            kept(layer),
            adapted(layer, number(layer.strength)),
            adapted(layer, percent(layer.shift)),
            first(layer),
        ]);
    }
    table.render()
}

/// The units of rank that start without a singular value, if there are any.
pub(super) fn empty_units(report: &Report) -> Option<String> {
    let empty: usize = report.layers.iter().map(|layer| layer.empty_units).sum();
    let layers = report.layers.iter().filter(|layer| layer.empty_units > 0).count();
    let units = count(empty as u64, "unit");
    (empty > 0).then(|| {
        format!(
            "{units} of rank in {} without a singular value: zero in B, an orthonormal row in A",
            count(layers as u64, "layer")
        )
    })
}

/// How far the update may move the model and each layer.
fn shift(TrustRegion { model, depth, layer }: &TrustRegion) -> String {
    let depth = count(*depth, "layer");
    format!(
        "shift of the model about {} at most: {} for each of {depth} in depth",
        percent(*model),
        percent(*layer)
    )
}

fn summary(report: &Report) -> String {
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
    let method = match report.method.method {
        Method::Cntlora => String::new(),
        method => format!(", {}", method.name()),
    };
    format!(
        "{}, {}, {}, {ranks}, {} start, {:.1} s{precision}{method}",
        count(report.layers.iter().filter(|layer| layer.rank > 0).count() as u64, "layer"),
        count(report.parameters, "parameter"),
        bytes(report.parameters.saturating_mul(report.element.size() as u64)),
        report.method.start.name(),
        report.seconds,
    )
}

/// A site that is left out, the modules that have no adapter for that, and the reason.
pub fn left_out(site: &str, modules: &[String], reason: &str) -> String {
    let modules: Vec<String> = modules.iter().map(|module| module.escape_debug().to_string()).collect();
    format!("{}: site {}: {}", modules.join(", "), site.escape_debug(), reason.escape_debug())
}

fn all_left_out(report: &Report) -> impl Iterator<Item = String> {
    let without_rank =
        report.layers.iter().filter(|layer| layer.rank == 0).map(|layer| (&layer.module, "rank 0"));
    let skipped = report.skipped.iter().map(|skipped| (&skipped.name, skipped.reason.as_str()));
    let names = without_rank
        .chain(skipped)
        .map(|(name, reason)| format!("left out: {}: {}", name.escape_debug(), reason.escape_debug()));
    let unusable = report
        .unusable
        .iter()
        .map(|site| format!("left out: {}", left_out(&site.name, &site.modules, &site.reason)));
    let rows = report.sites.iter().filter(|site| site.skipped_rows > 0).map(|site| {
        let rows = count(site.skipped_rows, "row");
        format!("left out: {} of {} with NaN or infinity", rows, site.name.escape_debug())
    });
    names.chain(unusable).chain(rows)
}

#[cfg(test)]
mod tests {
    use super::super::UnusableSite;
    use super::super::testing::{layer, report};
    use super::*;
    use crate::element::Element;

    /// The whole text, byte for byte: what a user sees, and what is left out is said.
    #[test]
    fn the_text_is_this() {
        let mut report = report(vec![
            layer("encoder.layer.0.attention.self.query", 8),
            layer("encoder.layer.11.intermediate.dense", 4),
            layer("x", 0),
        ]);
        report.trust_region = Some(TrustRegion { model: 0.1, depth: 4, layer: 0.05 });
        report.unusable = vec![UnusableSite {
            name: "0.in".into(),
            modules: vec!["0.q".into(), "0.k\n".into()],
            reason: "all activations are zero".into(),
            remedy: "record more".into(),
        }];
        let expected = "\
module                               shape  rank    kept  strength  shift     σ₁
encoder.layer.0…ntion.self.query  1536×384     8  81.2 %    0.0625  5.0 %  12.50
encoder.layer.1…termediate.dense  1536×384     4  81.2 %    0.0625  5.0 %  12.50
x                                 1536×384     0       –         –      –  12.50

2 layers, 23040 parameters, 92.2 kB, ranks 4 to 8, update start, 1.2 s
shift of the model about 10.0 % at most: 5.0 % for each of 4 layers in depth
left out: x: rank 0
left out: conv\\u{1b}[31m: its weight is not a matrix
left out: 0.q, 0.k\\n: site 0.in: all activations are zero
left out: 3 rows of in with NaN or infinity
";
        assert_eq!(render(&report), expected);
    }

    /// Only the start that moves the output has a strength and a shift. Units without a singular value are counted.
    #[test]
    fn other_starts_have_fewer_columns() {
        let mut report = report(vec![LayerReport { empty_units: 6, ..layer("q", 8) }, layer("v", 4)]);
        report.method.start = Start::Mirrored;
        let expected = "\
module     shape  rank    kept     σ₁
q       1536×384     8  81.2 %  12.50
v       1536×384     4  81.2 %  12.50

2 layers, 23040 parameters, 92.2 kB, ranks 4 to 8, mirrored start, 1.2 s
left out: conv\\u{1b}[31m: its weight is not a matrix
left out: 3 rows of in with NaN or infinity
6 units of rank in 1 layer without a singular value: zero in B, an orthonormal row in A
";
        assert_eq!(render(&report), expected);
    }

    /// Another method than the usual one is named.
    #[test]
    fn the_summary_names_other_methods() {
        let mut report = report(vec![layer("q", 8)]);
        report.method.method = Method::Pissa;
        assert!(render(&report).contains(", 1.2 s, pissa\n"));
    }

    /// Half the bytes in half precision, and one rank is not a range.
    #[test]
    fn the_summary_follows_format_and_ranks() {
        let text = render(&Report { element: Element::F16, ..report(vec![layer("q", 8)]) });
        assert!(
            text.contains("\n1 layer, 23040 parameters, 46.1 kB, rank 8, update start, 1.2 s\n"),
            "{text}"
        );
    }
}
