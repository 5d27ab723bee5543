//! A table that the script lets the reader sort and filter. A narrow screen shows its rows as cards.

use super::escape;
use crate::report::groups::{Figure, Group};
use std::fmt::Write as _;

/// A cell of a table.
pub(super) struct Cell {
    /// The content.
    markup: String,
    /// The value by which the script sorts.
    key: String,
    numeric: bool,
    is_none: bool,
}

/// A name from outside.
pub(super) fn name(name: &str) -> Cell {
    Cell { markup: escape::name(name), key: escape::visible(name), numeric: false, is_none: false }
}

/// A word of this program.
pub(super) fn word(word: &str) -> Cell {
    Cell { markup: escape::text(word), key: escape::text(word), numeric: false, is_none: false }
}

/// Words that are sorted by a number.
pub(super) fn number(words: &str, key: f64) -> Cell {
    Cell { markup: escape::text(words), key: format!("{key:e}"), numeric: true, is_none: false }
}

/// No value.
pub(super) fn none() -> Cell {
    Cell { is_none: true, ..number("–", -1.0) }
}

/// A value, if there is one.
pub(super) fn optional(value: Option<f64>, words: impl Fn(f64) -> String) -> Cell {
    value.map_or_else(none, |value| number(&words(value), value))
}

/// The number of blocks, if there are several.
pub(super) fn blocks<T>(group: &Group<'_, T>) -> Cell {
    optional(group.blocks().map(|blocks| blocks as f64), |blocks| blocks.to_string())
}

/// The median of a group, and its range if the values differ.
pub(super) fn figure(figure: Option<Figure>, words: impl Fn(f64) -> String) -> Cell {
    let Some(figure) = figure else { return none() };
    let range = match figure.range(&words) {
        range if range == words(figure.median) => String::new(),
        range => format!(" <small>{}</small>", escape::text(&range)),
    };
    let cell = number(&words(figure.median), figure.median);
    Cell { markup: cell.markup + &range, ..cell }
}

/// A share of 1, with a small bar.
pub(super) fn share(share: Option<Figure>, words: impl Fn(f64) -> String) -> Cell {
    let Some(median) = share.map(|share| share.median) else { return none() };
    let filled = (median * 100.0).clamp(0.0, 100.0);
    let bar = format!("<span class=\"share\"><span style=\"width:{filled:.1}%\"></span></span>");
    let cell = figure(share, words);
    Cell { markup: bar + &cell.markup, ..cell }
}

/// A table with a row per group. A folded table for each group with several members has a row per member.
pub(super) fn grouped<T, const N: usize>(
    what: &str,
    headings: [&str; N],
    groups: &[Group<'_, T>],
    name: impl Fn(&T) -> String,
    row: impl Fn(&Group<'_, T>) -> [Cell; N],
) -> String {
    let mut text = render(what, headings, &groups.iter().map(&row).collect::<Vec<_>>());
    for group in groups.iter().filter(|group| group.blocks().is_some()) {
        let members = group.members.iter().map(|member| Group { name: name(member), members: vec![*member] });
        let _ = writeln!(
            text,
            "<details><summary>{}: {} {what}</summary>\n{}</details>",
            escape::name(&group.name),
            group.members.len(),
            render(
                &format!("{what} of {}", group.name),
                headings,
                &members.map(|member| row(&member)).collect::<Vec<_>>()
            )
        );
    }
    text
}

/// The table, without the columns in which no row has a value. `what` names the rows, for the caption and the filter.
pub(super) fn render<const N: usize>(what: &str, headings: [&str; N], rows: &[[Cell; N]]) -> String {
    let what = escape::visible(what);
    let mut text = format!(
        "<div class=\"filter\" hidden><label>Filter {what} <input type=\"search\"></label> <output></output></div>\n\
         <table data-what=\"{what}\"><caption>All {what}</caption><thead><tr>"
    );
    let class = |numeric: bool| if numeric { " class=\"number\"" } else { "" };
    let has_value = |column: &usize| rows.is_empty() || rows.iter().any(|row| !row[*column].is_none);
    let columns: Vec<usize> = (0..N).filter(has_value).collect();
    for &column in &columns {
        let class = class(rows.first().is_some_and(|row| row[column].numeric));
        let _ = write!(text, "<th scope=\"col\"{class}>{}</th>", escape::text(headings[column]));
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        text.push_str("<tr>");
        for &column in &columns {
            let Cell { markup, key, numeric, .. } = &row[column];
            let (class, heading) = (class(*numeric), escape::text(headings[column]));
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
    use crate::report::format::percent;
    use expect_test::expect;

    #[test]
    fn cells_escape_names_and_carry_their_sort_keys() {
        let kept = Figure { least: 0.5, median: 0.8125, largest: 0.9 };
        let rows = [[name("\"><b>"), none(), share(Some(kept), percent)]];
        expect![[r#"
            <div class="filter" hidden><label>Filter layers <input type="search"></label> <output></output></div>
            <table data-what="layers"><caption>All layers</caption><thead><tr><th scope="col">module</th><th scope="col" class="number">kept</th></tr></thead>
            <tbody>
            <tr><td data-label="module" data-key="\&quot;&gt;&lt;b&gt;"><span><bdi>\&quot;&gt;&lt;b&gt;</bdi></span></td><td class="number" data-label="kept" data-key="8.125e-1"><span><span class="share"><span style="width:81.2%"></span></span>81.2 % <small>50.0 %–90.0 %</small></span></td></tr>
            </tbody></table>
        "#]].assert_eq(&render("layers", ["module", "shift", "kept"], &rows));
    }

    #[test]
    fn members_of_a_group_are_folded() {
        let (values, single) = ([1.0, 2.0, 4.0], [7.0]);
        let groups = [
            Group { name: "experts".into(), members: values.iter().collect() },
            Group { name: "q".into(), members: single.iter().collect() },
        ];
        let table = grouped(
            "layers",
            ["module", "rank"],
            &groups,
            |value| format!("expert of rank {value}"),
            |group| {
                [name(&group.name), figure(group.figure(|value| Some(*value)), |value| value.to_string())]
            },
        );
        expect![[r#"
            <div class="filter" hidden><label>Filter layers <input type="search"></label> <output></output></div>
            <table data-what="layers"><caption>All layers</caption><thead><tr><th scope="col">module</th><th scope="col" class="number">rank</th></tr></thead>
            <tbody>
            <tr><td data-label="module" data-key="experts"><span><bdi>experts</bdi></span></td><td class="number" data-label="rank" data-key="2e0"><span>2 <small>1–4</small></span></td></tr>
            <tr><td data-label="module" data-key="q"><span><bdi>q</bdi></span></td><td class="number" data-label="rank" data-key="7e0"><span>7</span></td></tr>
            </tbody></table>
            <details><summary><bdi>experts</bdi>: 3 layers</summary>
            <div class="filter" hidden><label>Filter layers of experts <input type="search"></label> <output></output></div>
            <table data-what="layers of experts"><caption>All layers of experts</caption><thead><tr><th scope="col">module</th><th scope="col" class="number">rank</th></tr></thead>
            <tbody>
            <tr><td data-label="module" data-key="expert of rank 1"><span><bdi>expert of rank 1</bdi></span></td><td class="number" data-label="rank" data-key="1e0"><span>1</span></td></tr>
            <tr><td data-label="module" data-key="expert of rank 2"><span><bdi>expert of rank 2</bdi></span></td><td class="number" data-label="rank" data-key="2e0"><span>2</span></td></tr>
            <tr><td data-label="module" data-key="expert of rank 4"><span><bdi>expert of rank 4</bdi></span></td><td class="number" data-label="rank" data-key="4e0"><span>4</span></td></tr>
            </tbody></table>
            </details>
        "#]].assert_eq(&table);
    }
}
