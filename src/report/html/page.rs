//! The page as a whole: its head, the summary at its top, and the order of its sections.

use super::{cost, escape, layers, left_out, origin, ranks, sites, spectra};
use crate::report::advice::advice;
use crate::report::format::{bytes, count, duration, grouped, percent};
use crate::report::text::rank_range;
use crate::report::{LayerReport, Report, groups, kept, tokens};
use std::fmt::Write as _;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page.
pub fn render(report: &Report) -> String {
    let model = report.model.display().to_string();
    let last_part =
        report.model.file_name().map_or(model.clone(), |name| name.to_string_lossy().into_owned());
    let title = format!("Adapter for {}", escape::visible(&last_part));
    let groups = groups::of_layers(&report.layers);
    let sections = [
        ("Ranks", ranks::heat_map(&groups) + &cost::comparison(report)),
        ("Layers", layers::section(report, &groups)),
        ("Spectra", spectra::section(&groups, &report.method)),
        ("Activations", sites::section(report)),
        ("Left out", left_out::section(report)),
        ("Origin", origin::section(report)),
    ];
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style></head>\n<body><header><h1>{title}</h1>\n\
         <p class=\"lead\">{}</p>\n{}<p class=\"advice\"><b>Advice:</b> {}</p>\n</header><main>\n",
        sentence(report),
        figures(report),
        escape::text(&advice(report)),
    );
    for (heading, body) in sections {
        let _ = writeln!(page, "<section><h2>{heading}</h2>\n{body}</section>");
    }
    let _ = write!(
        page,
        "</main><footer>Written by cntlora {}.</footer>\n<script>\n{SCRIPT}</script></body></html>\n",
        escape::visible(&report.tool_version)
    );
    page
}

fn adapted(report: &Report) -> impl Iterator<Item = &LayerReport> {
    report.layers.iter().filter(|layer| layer.rank > 0)
}

fn ranks(report: &Report) -> String {
    match rank_range(report) {
        None => "none".into(),
        Some((least, largest)) if least < largest => format!("{least} to {largest}"),
        Some((rank, _)) => rank.to_string(),
    }
}

/// The run in two sentences.
fn sentence(report: &Report) -> String {
    let input = tokens::words(report, grouped).map_or_else(
        || "From the weights alone".into(),
        |tokens| format!("From {tokens} at {}", count(report.sites.len() as u64, "site")),
    );
    let kept = kept::mean_own(report)
        .map_or_else(String::new, |kept| format!(", which keep {} of an update on average", percent(kept)));
    let shift = adapted(report).map(|layer| layer.shift).fold(0.0, f64::max);
    let moved = match shift > 0.0 {
        true => format!("move the output of a layer by at most {}", percent(shift)),
        false => "do not change the output of any layer".into(),
    };
    format!(
        "{input}, cntlora {} computed in {} an adapter of {} for {}: {} parameters in ranks {}{kept}. It has the start {}: before \
         the first training step, the factors {moved}.",
        escape::visible(&report.tool_version),
        duration(report.seconds),
        count(adapted(report).count() as u64, "layer"),
        escape::name(&report.model.display().to_string()),
        grouped(report.parameters),
        ranks(report),
        report.method.start.name(),
    )
}

/// The most important figures.
fn figures(report: &Report) -> String {
    let size = bytes(report.parameters.saturating_mul(report.element.size() as u64));
    let tokens = Some(tokens::fine_tuning(report)).filter(|tokens| *tokens > 0);
    let figures = [
        ("tokens", tokens.map(grouped)),
        ("layers", Some(adapted(report).count().to_string())),
        ("ranks", Some(ranks(report))),
        ("parameters", Some(grouped(report.parameters))),
        ("size", Some(size)),
        ("update kept", kept::mean_own(report).map(percent)),
        ("at 2× the rank", kept::mean_at_multiple(report, 2).map(percent)),
        ("at 4× the rank", kept::mean_at_multiple(report, 4).map(percent)),
        ("time", Some(duration(report.seconds))),
    ];
    let known = figures.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let items = known.map(|(name, value)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>"));
    format!("<dl class=\"figures\">{}</dl>\n", items.collect::<String>())
}

#[cfg(test)]
mod tests;
