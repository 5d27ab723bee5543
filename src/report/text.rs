//! The report as text for a terminal.

use super::advice::advice;
use super::figures::{self, Figures, rows_in_words};
use super::format::{bytes, count, duration, number, percent};
use super::groups::{self, Figure};
use super::table::{Align, NONE, Table};
use super::{Report, TrustRegion, kept, tokens, zero_rows};
use crate::method::Method;
use crate::simd::Precision;
use crate::storage::visible;
use std::fmt::Write as _;

/// A line per module, a summary, the layers and rows that were left out, and one sentence of advice.
pub fn render(report: &Report) -> String {
    let mut text = table(report);
    let _ = writeln!(text, "\n{}", summary(report));
    let lines = tokens_and_rows(report).into_iter().chain(kept_on_average(report));
    let lines = lines.chain(report.trust_region.as_ref().map(shift));
    let lines = lines.chain(all_left_out(report)).chain(empty_units(report));
    for line in lines.chain(zero_rows::of_report(report).map(|line| wrap(&line))) {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "\n{}", wrap(&format!("Advice: {}", advice(report))));
    text
}

/// A row per module. Modules with blocks show ranges of ranks and rows, and the medians of the other figures.
fn table(report: &Report) -> String {
    let right = |name| (name, Align::Right);
    let mut table = Table::new([
        ("module", Align::Left),
        right("blocks"),
        right("shape"),
        right("rows"),
        right("rank"),
        right("kept"),
        right("at 2×"),
        right("at 4×"),
        right("strength"),
        right("shift"),
    ]);
    let sites = figures::sites(report);
    let rows_differ = rows_differ(report);
    let groups = groups::of_layers(&report.layers);
    for group in &groups {
        let layer = group.members[0];
        let figures = Figures::of(group, &report.method, &sites);
        let median = |figure: Option<Figure>, words: fn(f64) -> String| {
            figure.map_or(NONE.into(), |figure| words(figure.median))
        };
        let rows = figures.rows.filter(|_| rows_differ);
        let in_words = |rows| rows_in_words(rows, figures.embedding, |rows| rows.to_string());
        let [own, twice, four_times] = figures.kept;
        table.row([
            visible(&group.name),
            group.blocks().map_or(NONE.into(), |blocks| blocks.to_string()),
            format!("{}×{}", layer.outputs, layer.inputs),
            rows.map_or(NONE.into(), |rows| rows.range(in_words)),
            figures.rank.map_or(NONE.into(), |ranks| ranks.range(|rank| rank.to_string())),
            median(own, percent),
            median(twice, percent),
            median(four_times, percent),
            median(figures.strength, number),
            median(figures.shift, percent),
        ]);
    }
    let mut text = table.render();
    if groups.iter().any(|group| group.blocks().is_some()) {
        text.push_str("Modules with blocks: ranges of rows and ranks, medians of the other figures.\n");
    }
    text
}

/// Breaks a sentence at spaces into lines of at most 80 characters, where its words allow it.
fn wrap(sentence: &str) -> String {
    let mut text = String::new();
    let mut length = 0;
    for word in sentence.split(' ') {
        let characters = word.chars().count();
        let fits = length + 1 + characters <= 80;
        if length > 0 {
            text.push(if fits { ' ' } else { '\n' });
        }
        length = if length > 0 && fits { length + 1 + characters } else { characters };
        text.push_str(word);
    }
    text
}

fn rows_differ(report: &Report) -> bool {
    report
        .sites
        .iter()
        .any(|site| site.rows != report.sites[0].rows || site.embedding != report.sites[0].embedding)
}

fn summary(report: &Report) -> String {
    let ranks = match rank_range(report) {
        None => "no ranks".into(),
        Some((least, largest)) if least < largest => format!("ranks {least} to {largest}"),
        Some((rank, _)) => format!("rank {rank}"),
    };
    let precision = match report.precision {
        Precision::F32 => String::new(),
        Precision::Bf16 => format!(", precision bf16 ({})", visible(report.arithmetic())),
    };
    let method = match report.method.method {
        method if method == Method::default() => String::new(),
        method => format!(", {method}"),
    };
    format!(
        "{}, {}, {}, {ranks}, {} start, {}{precision}{method}",
        count(report.layers.iter().filter(|layer| layer.rank > 0).count() as u64, "layer"),
        count(report.parameters, "parameter"),
        bytes(report.parameters.saturating_mul(report.element.size() as u64)),
        report.method.start.name(),
        duration(report.seconds),
    )
}

/// The least and the largest rank of the layers with an adapter.
pub(super) fn rank_range(report: &Report) -> Option<(usize, usize)> {
    let ranks = || report.layers.iter().map(|layer| layer.rank).filter(|rank| *rank > 0);
    ranks().min().zip(ranks().max())
}

/// The number of tokens. If all sites have as many rows, the table has no column of rows, and this line says so.
pub(super) fn tokens_and_rows(report: &Report) -> Option<String> {
    let tokens = tokens::words(report, |tokens| tokens.to_string())?;
    let sites = if rows_differ(report) { "" } else { ", a row per token at every site" };
    Some(format!("{tokens}{sites}"))
}

/// The mean share that the ranks keep, and that higher ranks would keep.
pub(super) fn kept_on_average(report: &Report) -> Option<String> {
    let own = percent(kept::mean_own(report)?);
    let known = kept::MULTIPLES.into_iter().filter_map(|factor| {
        Some(format!(", {} at {factor}× the rank", percent(kept::mean_at_multiple(report, factor)?)))
    });
    let unknown = kept::unknown_multiples(report).map(|words| format!("\n{words}")).unwrap_or_default();
    Some(format!("update kept on average: {own}{}{unknown}", known.collect::<String>()))
}

/// How far the update may move the model and each layer.
fn shift(TrustRegion { model, depth, layer }: &TrustRegion) -> String {
    let depth = count(*depth, "layer");
    format!(
        "shift of the model: about {} at most, {} for each of {depth} that follow one another",
        percent(*model),
        percent(*layer)
    )
}

/// The units of rank without a singular value, if there are any.
pub(super) fn empty_units(report: &Report) -> Option<String> {
    let empty = report.layers.iter().map(|layer| layer.empty_units).fold(0, usize::saturating_add);
    let layers = report.layers.iter().filter(|layer| layer.empty_units > 0).count();
    (empty > 0).then(|| {
        format!(
            "{} of rank in {} without a singular value: a zero column in B, an orthonormal row in A",
            count(empty as u64, "unit"),
            count(layers as u64, "layer")
        )
    })
}

/// A site that is left out, its modules, which have no adapter, and the reason.
pub fn left_out(site: &str, modules: &[String], reason: &str) -> String {
    let modules: Vec<String> = modules.iter().map(|module| visible(module)).collect();
    format!("{}: site {}: {}", modules.join(", "), visible(site), visible(reason))
}

fn all_left_out(report: &Report) -> impl Iterator<Item = String> {
    let without_rank = without_rank(report).map(|(name, reason)| format!("{}: {reason}", visible(&name)));
    let skipped = report.skipped.iter();
    let skipped = skipped.map(|skipped| format!("{}: {}", visible(&skipped.name), visible(&skipped.reason)));
    let unusable = report.unusable.iter().map(|site| left_out(&site.name, &site.modules, &site.reason));
    let rows = report.sites.iter().filter(|site| site.skipped_rows > 0).map(|site| {
        format!("{} of site {}: NaN or infinity", count(site.skipped_rows, "row"), visible(&site.name))
    });
    without_rank.chain(skipped).chain(unusable).chain(rows).map(|line| format!("left out: {line}"))
}

/// The modules with layers of rank 0, with the reason.
pub(super) fn without_rank(report: &Report) -> impl Iterator<Item = (String, String)> {
    groups::of_layers(&report.layers).into_iter().filter_map(|group| {
        let without = group.members.iter().filter(|layer| layer.rank == 0).count();
        let reason = match group.blocks() {
            Some(blocks) => format!("rank 0 in {without} of {blocks} blocks"),
            None => "rank 0".into(),
        };
        (without > 0).then_some((group.name, reason))
    })
}

#[cfg(test)]
mod tests;
