//! A table that a script lets the reader sort and filter, and that a narrow screen shows as cards.

use super::escape;
use std::fmt::Write as _;

/// A cell: what is shown, which is markup, and what it is sorted by.
pub(super) struct Cell {
    markup: String,
    key: String,
    numeric: bool,
}

/// A name from outside.
pub(super) fn name(name: &str) -> Cell {
    Cell { markup: escape::name(name), key: escape::visible(name), numeric: false }
}

/// A word of ours.
pub(super) fn word(word: &str) -> Cell {
    Cell { markup: escape::text(word), key: escape::text(word), numeric: false }
}

/// Words, sorted by a number.
pub(super) fn number(words: &str, key: f64) -> Cell {
    Cell { markup: escape::text(words), key: format!("{key:e}"), numeric: true }
}

/// A share of 1 as a small bar, and in words.
pub(super) fn share(words: &str, share: f64) -> Cell {
    let words = escape::text(words);
    let filled = (share * 100.0).clamp(0.0, 100.0);
    let markup = format!("<span class=\"share\"><span style=\"width:{filled:.1}%\"></span></span>{words}");
    Cell { markup, key: format!("{share:e}"), numeric: true }
}

/// Nothing to tell.
pub(super) fn none() -> Cell {
    number("–", -1.0)
}

/// The table. `what` says of what the rows are, for the caption and the filter.
pub(super) fn render<const N: usize>(what: &str, headings: [&str; N], rows: &[[Cell; N]]) -> String {
    let what = escape::text(what);
    let mut text = format!(
        "<div class=\"filter\" hidden><label>Filter {what} <input type=\"search\"></label> <output></output></div>\n\
         <table data-what=\"{what}\"><caption>All {what}</caption><thead><tr>"
    );
    let headings = headings.map(escape::text);
    for (column, heading) in headings.iter().enumerate() {
        let numeric = rows.first().is_some_and(|row| row[column].numeric);
        let class = if numeric { " class=\"number\"" } else { "" };
        let _ = write!(text, "<th scope=\"col\"{class}>{heading}</th>");
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        text.push_str("<tr>");
        for (cell, heading) in row.iter().zip(&headings) {
            let class = if cell.numeric { " class=\"number\"" } else { "" };
            let Cell { markup, key, .. } = cell;
            let _ = write!(
                text,
                "<td{class} data-label=\"{heading}\" data-key=\"{key}\"><span>{markup}</span></td>"
            );
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody></table>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names end neither an element nor an attribute, and cells carry what they are sorted by.
    #[test]
    fn cells_carry_their_keys() {
        let rows = [[name("\"><b>"), share("81.2 %", 0.8125)]];
        let table = render("layers", ["module", "kept"], &rows);
        assert!(table.contains("data-key=\"8.125e-1\"") && table.contains("width:81.2%"), "{table}");
        assert!(table.contains("data-key=\"\\&quot;&gt;&lt;b&gt;\""), "{table}");
        assert!(!table.contains("<b>"), "{table}");
    }
}
