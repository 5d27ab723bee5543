//! The layers, sites and rows that were left out, with reasons.

use super::escape;
use crate::report::format::count;
use crate::report::{Report, text};

/// A list of all that was left out.
pub(super) fn section(report: &Report) -> String {
    let without_rank =
        text::without_rank(report).map(|(module, reason)| format!("{}: {reason}", escape::name(&module)));
    let skipped = report.skipped.iter();
    let skipped = skipped
        .map(|skipped| format!("{}: {}", escape::name(&skipped.name), escape::visible(&skipped.reason)));
    let unusable = report.unusable.iter().map(|site| {
        let modules: Vec<String> = site.modules.iter().map(|module| escape::name(module)).collect();
        format!(
            "{}: site {}: {}; {}",
            modules.join(", "),
            escape::name(&site.name),
            escape::visible(&site.reason),
            escape::visible(&site.remedy)
        )
    });
    let rows = report.sites.iter().filter(|site| site.skipped_rows > 0);
    let rows = rows.map(|site| {
        format!("{} of site {}: NaN or infinity", count(site.skipped_rows, "row"), escape::name(&site.name))
    });
    let items: Vec<String> = without_rank.chain(skipped).chain(unusable).chain(rows).collect();
    if items.is_empty() {
        return "<p>Nothing: every module in the activations has an adapter.</p>\n".into();
    }
    format!("<ul><li>{}</li></ul>\n", items.join("</li>\n<li>"))
}
