//! Parts of all charts: an inline SVG with a title and a description for screen readers, and bars.
//!
//! Lengths along x are percentages, so that a chart fills the width of the screen and its letters keep their size.

use super::escape;
use crate::storage::visible::shortened;
use std::fmt::Write as _;

/// An SVG of this height in pixels that fills the width. `title` and `description` are plain text.
pub(super) fn svg(title: &str, description: &str, height: f64, body: &str) -> String {
    format!(
        "<svg role=\"img\" width=\"100%\" height=\"{height:.0}\"><title>{}</title><desc>{}</desc>{body}</svg>\n",
        escape::visible(title),
        escape::visible(description),
    )
}

/// A figure with a title above and a caption below. `caption` is markup.
pub(super) fn figure(title: &str, caption: &str, body: &str) -> String {
    format!("<figure><h3>{}</h3>\n{body}<figcaption>{caption}</figcaption></figure>\n", escape::text(title))
}

/// A name from outside in a chart, shortened to the width of a phone.
pub(super) fn label(name: &str) -> String {
    const LETTERS: usize = 48;
    escape::text(&shortened(&name.escape_debug().to_string(), LETTERS))
}

/// A horizontal bar.
pub(super) struct Bar {
    /// Its name, which comes from outside.
    pub label: String,
    /// Its length.
    pub value: f64,
    /// A second value for comparison, shown as a mark.
    pub mark: Option<f64>,
    /// The text at its end.
    pub text: String,
    /// True if it is in the strong colour.
    pub strong: bool,
}

/// Bars one below the other, with an axis from 0 to the largest value. `axis` is the label of the axis.
pub(super) fn bars(title: &str, axis: &str, bars: &[Bar]) -> String {
    const ROW: f64 = 38.0;
    /// Percentage of the width that the longest bar takes. The rest is for its text.
    const LONGEST: f64 = 70.0;
    let largest = bars.iter().flat_map(|bar| [bar.value, bar.mark.unwrap_or(0.0)]).fold(0.0, f64::max);
    let scale = if largest > 0.0 { LONGEST / largest } else { 0.0 };
    let mut body = String::new();
    let bottom = ROW * bars.len() as f64;
    for (bar, row) in bars.iter().zip(0..) {
        let y = ROW * f64::from(row);
        let class = if bar.strong { "bar strong" } else { "bar" };
        let length = bar.value * scale;
        let _ = write!(
            body,
            "<text x=\"0\" y=\"{:.0}\">{}</text><rect class=\"{class}\" x=\"0\" y=\"{:.0}\" width=\"{length:.2}%\" height=\"14\"/>",
            y + 14.0,
            label(&bar.label),
            y + 19.0,
        );
        if let Some(mark) = bar.mark {
            let (x, top, end) = (mark * scale, y + 16.0, y + 36.0);
            let _ = write!(
                body,
                "<line class=\"mark\" x1=\"{x:.2}%\" x2=\"{x:.2}%\" y1=\"{top:.0}\" y2=\"{end:.0}\"/>"
            );
        }
        let end = length.max(bar.mark.unwrap_or(0.0) * scale) + 1.0;
        let _ = write!(
            body,
            "<text class=\"value\" x=\"{end:.2}%\" y=\"{:.0}\">{}</text>",
            y + 30.0,
            escape::text(&bar.text)
        );
    }
    let _ = write!(
        body,
        "<line class=\"axis\" x1=\"0\" x2=\"{LONGEST}%\" y1=\"{0:.0}\" y2=\"{0:.0}\"/>",
        bottom + 4.0
    );
    let middle = LONGEST / 2.0;
    for (x, anchor, value) in
        [(0.0, "start", 0.0), (middle, "middle", largest / 2.0), (LONGEST, "end", largest)]
    {
        let _ = write!(
            body,
            "<text class=\"tick\" x=\"{x}%\" y=\"{:.0}\" text-anchor=\"{anchor}\">{}</text>",
            bottom + 18.0,
            tick(value)
        );
    }
    let _ =
        write!(body, "<text class=\"tick\" x=\"0\" y=\"{:.0}\">{}</text>", bottom + 34.0, escape::text(axis));
    let description: Vec<String> = bars.iter().map(|bar| format!("{}: {}", bar.label, bar.text)).collect();
    svg(title, &format!("{axis}. {}", description.join("; ")), bottom + 40.0, &body)
}

/// A number at an axis, without trailing zeros.
pub(super) fn tick(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if value == 0.0 => "0".into(),
        _ if size >= 1e6 => format!("{:.1} M", value / 1e6),
        _ if size >= 1e4 => format!("{:.0} k", value / 1e3),
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 0.01 => format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        _ => format!("{value:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_relative_to_the_largest_value() {
        let bar = |value, mark| Bar { label: "a<b".into(), value, mark, text: "t".into(), strong: false };
        let chart = bars("title", "axis", &[bar(2.0, Some(4.0)), bar(1.0, None)]);
        assert!(chart.contains("width=\"35.00%\"") && chart.contains("x1=\"70.00%\""), "{chart}");
        assert!(chart.contains("a&lt;b") && !chart.contains("a<b"), "{chart}");
        assert!(chart.contains("<title>title</title><desc>axis. a&lt;b: t; a&lt;b: t</desc>"), "{chart}");
        assert!(bars("title", "axis", &[bar(0.0, None)]).contains("width=\"0.00%\""));
    }

    #[test]
    fn ticks_are_short() {
        let shown = [0.0, 0.5, 1.25, 2.0, 96.0, 1536.0, 23040.0, 2_500_000.0, 0.001].map(tick);
        assert_eq!(shown, ["0", "0.5", "1.25", "2", "96", "1536", "23 k", "2.5 M", "1e-3"]);
    }
}
