//! The command, the options and the input files.

use super::escape;
use super::table::{self, Cell};
use crate::report::format::bytes;
use crate::report::{InputFile, Report, kind_of_rows};
use std::fmt::Write as _;

/// The section of the page.
pub(super) fn section(report: &Report) -> String {
    let mut body = String::new();
    if let Some(command) = &report.command {
        let _ = writeln!(body, "<pre><code>{}</code></pre>", escape::visible(command));
    }
    // Options are numbers and words of this program, which always become JSON.
    let options = serde_json::to_string_pretty(&report.method).unwrap_or_default();
    let _ = writeln!(
        body,
        "<p>Activation statistics: {} in {}.</p>\n\
         <details><summary>All options of the method</summary><pre><code>{}</code></pre></details>",
        escape::visible(&report.instruction_set),
        escape::visible(report.arithmetic()),
        escape::text(&options)
    );
    let kinds = [
        ("checkpoint", &report.inputs.checkpoint),
        (kind_of_rows(report.method.method), &report.inputs.activations),
        ("pre-training", &report.inputs.source),
    ];
    let rows: Vec<[Cell; 4]> =
        kinds.into_iter().flat_map(|(kind, files)| files.iter().map(move |file| input(kind, file))).collect();
    body.push_str(&table::render("input files", ["file", "kind", "size", "SHA-256"], &rows));
    body.push_str(
        "<p>Files have a hash if all files of their kind together have at most 268 MB. For larger ones, report.json has the length \
         and the time of the last change.</p>\n",
    );
    body
}

fn input(kind: &str, file: &InputFile) -> [Cell; 4] {
    [
        table::name(&file.path.display().to_string()),
        table::word(kind),
        table::number(&bytes(file.bytes), file.bytes as f64),
        file.sha256.as_deref().map_or_else(table::none, table::name),
    ]
}
