//! The report as one page that needs nothing else: no network, no framework, no font. It shows in light and dark, on a
//! phone and on paper, and without its script all is there but sorting and filtering.
//!
//! Names come from files of anyone: every one goes through `escape`, and the page forbids itself to load anything.

mod chart;
mod cost;
mod escape;
mod module;
mod number;
mod ranks;
mod sites;
mod spectra;
mod table;

use super::{InputFile, LayerReport, Report, TrustRegion};
use crate::report::table as text;
use number::{grouped, percent, seconds};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use table::Cell;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page.
pub fn render(report: &Report) -> String {
    let model = report.model.display().to_string();
    let last_part =
        report.model.file_name().map_or(model.clone(), |name| name.to_string_lossy().into_owned());
    let title = format!("Adapter for {}", escape::visible(&last_part));
    let sections = [
        ("Ranks", ranks::heat_map(&report.layers) + &cost::comparison(report)),
        ("Layers", layers(report)),
        ("Spectra", spectra_intro() + &spectra::small_multiples(&report.layers, report.method.start)),
        ("Activations", sites::section(report)),
        ("Left out", left_out(report)),
        ("How it was made", origin(report)),
    ];
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style></head>\n<body><header><h1>{title}</h1>\n\
         <p class=\"lead\">{}</p>\n{}</header><main>\n",
        sentence(report),
        figures(report)
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

fn rank_range(report: &Report) -> String {
    let ranks = || adapted(report).map(|layer| layer.rank);
    match (ranks().min(), ranks().max()) {
        (Some(least), Some(largest)) if least < largest => format!("{least} to {largest}"),
        (Some(rank), _) => rank.to_string(),
        (None, _) => "none".into(),
    }
}

/// The run in a sentence.
fn sentence(report: &Report) -> String {
    let rows: u64 = report.sites.iter().map(|site| site.rows).fold(0, u64::saturating_add);
    let source_rows: u64 =
        report.sites.iter().filter_map(|site| site.source_rows).fold(0, u64::saturating_add);
    let source = match source_rows {
        0 => String::new(),
        rows => format!(" and {} of pre-training activations", grouped(rows)),
    };
    let shift = adapted(report).map(|layer| layer.shift).fold(0.0, f64::max);
    let moved = match shift > 0.0 {
        true => format!("move the output of a layer by at most {}", percent(shift)),
        false => "leave the output of every layer as it was".into(),
    };
    let start = report.method.start.name();
    format!(
        "From {} rows of fine-tuning activations{source} at {}, cntlora {} computed in {} an adapter of {} for {}: \
         {} parameters in ranks {}, which keep {} of the update of a layer on average. Its start is {start}: before the first \
         training step, the factors {moved}.",
        grouped(rows),
        text::count(report.sites.len() as u64, "site"),
        escape::visible(&report.tool_version),
        seconds(report.seconds),
        text::count(adapted(report).count() as u64, "layer"),
        escape::name(&report.model.display().to_string()),
        grouped(report.parameters),
        rank_range(report),
        percent(cost::mean_kept(&report.layers)),
    )
}

/// The same in figures.
fn figures(report: &Report) -> String {
    let size = text::bytes(report.parameters.saturating_mul(report.element.size() as u64));
    let figures = [
        ("layers", adapted(report).count().to_string()),
        ("ranks", rank_range(report)),
        ("parameters", grouped(report.parameters)),
        ("size", size),
        ("update kept", text::percent(cost::mean_kept(&report.layers))),
        ("time", seconds(report.seconds)),
    ];
    let figures = figures.map(|(what, value)| format!("<div><dt>{what}</dt><dd>{value}</dd></div>"));
    format!("<dl class=\"figures\">{}</dl>\n", figures.concat())
}

fn layers(report: &Report) -> String {
    let damping: BTreeMap<&str, f64> = report
        .sites
        .iter()
        .filter(|site| site.damping > 0.0)
        .map(|site| (site.name.as_str(), site.damping))
        .collect();
    let rows: Vec<[Cell; 9]> = report
        .layers
        .iter()
        .map(|layer| {
            let adapted = |cell: Cell| if layer.rank > 0 { cell } else { table::none() };
            let value = |value: f64| table::number(&text::number(value), value);
            [
                table::name(&layer.module),
                table::number(
                    &format!("{}×{}", layer.outputs, layer.inputs),
                    layer.outputs as f64 * layer.inputs as f64,
                ),
                table::number(&layer.rank.to_string(), layer.rank as f64),
                adapted(table::share(&text::percent(layer.energy_kept), layer.energy_kept)),
                adapted(value(layer.strength)),
                adapted(table::number(&text::percent(layer.shift), layer.shift)),
                layer.singular_values.first().map_or_else(table::none, |first| value(*first)),
                damping.get(layer.site.as_str()).map_or_else(table::none, |damping| value(*damping)),
                table::number(&seconds(layer.seconds), layer.seconds),
            ]
        })
        .collect();
    let empty = super::text::empty_units(report).map_or(String::new(), |line| format!("<p>{line}.</p>\n"));
    let headings = ["module", "shape", "rank", "kept", "strength", "shift", "σ₁", "damping", "time"];
    let legend = "<p><b>kept</b>: share of the squared norm of the layer’s update that its rank keeps. <b>strength</b>: how much \
                  of that update was taken. <b>shift</b>: by which share of its own size the layer’s output moves, in root mean \
                  square. <b>damping</b>: relative to the mean square of a channel of the activations.</p>\n";
    legend.to_owned() + &trust_region(report) + &empty + &table::render("layers", headings, &rows)
}

/// How far the update may move the model and each layer.
fn trust_region(report: &Report) -> String {
    let Some(TrustRegion { model, depth, layer }) = report.trust_region else { return String::new() };
    format!(
        "<p>Asked for: a shift of the model by about {} at most. Of {} that follow one another, the shift of each is therefore at most \
         {}: the share of the model divided by the root of their number. That is what shifts add up to that do not depend on each other, \
         and no bound.</p>\n",
        percent(model),
        text::count(depth, "adapted layer"),
        percent(layer)
    )
}

fn spectra_intro() -> String {
    "<p>Singular values of the update of each layer, relative to the largest, all on one logarithmic scale. Those before the \
     line are in the adapter.</p>\n"
        .into()
}

fn left_out(report: &Report) -> String {
    let mut items = Vec::new();
    for layer in report.layers.iter().filter(|layer| layer.rank == 0) {
        items.push(format!("{}: rank 0", escape::name(&layer.module)));
    }
    for skipped in &report.skipped {
        items.push(format!("{}: {}", escape::name(&skipped.name), escape::visible(&skipped.reason)));
    }
    for site in &report.unusable {
        let modules: Vec<String> = site.modules.iter().map(|module| escape::name(module)).collect();
        items.push(format!(
            "{}: site {}: {}; {}",
            modules.join(", "),
            escape::name(&site.name),
            escape::visible(&site.reason),
            escape::visible(&site.remedy)
        ));
    }
    for site in report.sites.iter().filter(|site| site.skipped_rows > 0) {
        let rows = text::count(site.skipped_rows, "row");
        items.push(format!("{rows} of {}: NaN or infinity", escape::name(&site.name)));
    }
    if items.is_empty() {
        return "<p>Nothing: every module that the activations name has an adapter.</p>\n".into();
    }
    format!("<ul><li>{}</li></ul>\n", items.join("</li>\n<li>"))
}

/// Command, options and input files.
fn origin(report: &Report) -> String {
    let mut body = String::new();
    if let Some(command) = &report.command {
        let _ = writeln!(body, "<pre><code>{}</code></pre>", escape::visible(command));
    }
    // A structure of numbers and words of our own always becomes JSON.
    let options = serde_json::to_string_pretty(&report.method).unwrap_or_default();
    let _ = writeln!(
        body,
        "<p>Activation statistics with {} in {}.</p>\n\
         <details><summary>All options of the method</summary><pre><code>{}</code></pre></details>",
        escape::visible(&report.instruction_set),
        match report.precision {
            crate::simd::Precision::F32 => "f32",
            crate::simd::Precision::Bf16 => "bf16 dot products",
        },
        escape::text(&options)
    );
    let kinds = [
        ("checkpoint", &report.inputs.checkpoint),
        ("fine-tuning", &report.inputs.activations),
        ("pre-training", &report.inputs.source),
    ];
    let rows: Vec<[Cell; 4]> =
        kinds.into_iter().flat_map(|(kind, files)| files.iter().map(move |file| input(kind, file))).collect();
    body.push_str(&table::render("input files", ["file", "kind", "size", "SHA-256"], &rows));
    body.push_str(
        "<p>Files are hashed where all of their kind together have at most 268 MB; of larger ones report.json has the length \
         and the time of their last change.</p>\n",
    );
    body
}

fn input(kind: &str, file: &InputFile) -> [Cell; 4] {
    [
        table::name(&file.path.display().to_string()),
        table::word(kind),
        table::number(&text::bytes(file.bytes), file.bytes as f64),
        table::name(file.sha256.as_deref().unwrap_or("–")),
    ]
}

#[cfg(test)]
mod tests;
