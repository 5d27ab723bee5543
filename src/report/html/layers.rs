//! The table of the layers: a row per module, with the blocks of a module folded below it.

use super::table::{self, Cell};
use crate::report::figures::{self, Figures, rows_in_words};
use crate::report::format::{count, duration, grouped, number, percent};
use crate::report::groups::Group;
use crate::report::{LayerReport, Report, TrustRegion, kept, text};

const LEGEND: &str = "<p><b>kept</b>: share of the squared norm of the layer’s update that its rank keeps. <b>at 2×</b>, <b>at 4×</b>: \
                      the share that two and four times the rank would keep. <b>strength</b>: share of the update that was taken. \
                      <b>shift</b>: how far the layer’s output moves, as a share of its own size in root mean square. \
                      <b>σ₁</b>: the largest singular value of the update. <b>rows</b>: rows of the site that the layer reads. Columns \
                      without values are left out.";

/// The legend, notes on all layers, and the table.
pub(super) fn section(report: &Report, groups: &[Group<'_, LayerReport>]) -> String {
    let headings = [
        "module", "blocks", "shape", "rows", "rank", "kept", "at 2×", "at 4×", "strength", "shift", "σ₁",
        "time",
    ];
    let medians = match groups.iter().any(|group| group.blocks().is_some()) {
        true => " A module with several blocks shows the median of its blocks, and their range below it.",
        false => "",
    };
    let notes = kept::unknown_multiples(report).into_iter().chain(text::empty_units(report));
    let notes: String = notes.map(|line| format!("<p>{}.</p>\n", capitalized(&line))).collect();
    let sites = figures::sites(report);
    let table = table::grouped(
        "layers",
        headings,
        groups,
        |layer| layer.name().to_string(),
        |group| row(group, &Figures::of(group, &report.method, &sites)),
    );
    format!("{LEGEND}{medians}</p>\n{}{notes}{table}", trust_region(report))
}

fn capitalized(line: &str) -> String {
    let mut characters = line.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

fn row(group: &Group<'_, LayerReport>, figures: &Figures) -> [Cell; 12] {
    let layer = group.members[0];
    let [own, twice, four_times] = figures.kept;
    [
        table::name(&group.name),
        table::blocks(group),
        table::number(
            &format!("{}×{}", layer.outputs, layer.inputs),
            layer.outputs as f64 * layer.inputs as f64,
        ),
        table::figure(figures.rows, |rows| rows_in_words(rows, figures.embedding, grouped)),
        table::figure(figures.rank, |rank| rank.to_string()),
        table::share(own, percent),
        table::share(twice, percent),
        table::share(four_times, percent),
        table::figure(figures.strength, number),
        table::figure(figures.shift, percent),
        table::figure(figures.largest, number),
        table::figure(group.figure(|layer| Some(layer.seconds)), duration),
    ]
}

/// How far the update may move the model and each layer.
fn trust_region(report: &Report) -> String {
    let Some(TrustRegion { model, depth, layer }) = report.trust_region else { return String::new() };
    format!(
        "<p>The model was asked to move by about {} at most. It has {} that follow one another, so each of them moves by at most {}: \
         the shift of the model divided by the root of their number. This is the sum of shifts that do not depend on each other, and \
         not a strict bound.</p>\n",
        percent(model),
        count(depth, "adapted layer"),
        percent(layer)
    )
}
