//! Text tables, within 80 columns if the names in the first column have enough room.

use crate::storage::visible::shortened;

/// Largest width of a table, unless the first column would be too narrow.
const WIDTH: usize = 80;

/// Spaces between two cells.
const GAP: usize = 2;

/// Least width to which the first column is shortened. Most names of modules fit.
const LEAST_FIRST: usize = 40;

/// A cell without a value.
pub const NONE: &str = "–";

/// The alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Left, for words.
    Left,
    /// Right, for numbers.
    Right,
}

/// A table of `N` columns with a header. Long cells of the first column are shortened in the middle. A column in which no row
/// has a value ([`NONE`]) is left out.
#[derive(Clone, Debug)]
pub struct Table<const N: usize> {
    alignment: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// An empty table with these headings.
    pub fn new(columns: [(&str, Align); N]) -> Self {
        Self { alignment: columns.map(|(_, align)| align), rows: vec![columns.map(|(name, _)| name.into())] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// One line for the header and one for each row, without trailing spaces.
    pub fn render(&self) -> String {
        let has_value = |column| {
            column == 0 || self.rows.len() == 1 || self.rows[1..].iter().any(|row| row[column] != NONE)
        };
        let columns: Vec<usize> = (0..N).filter(|column| has_value(*column)).collect();
        let mut widths = [0; N];
        for row in &self.rows {
            for &column in &columns {
                widths[column] = widths[column].max(row[column].chars().count());
            }
        }
        if let Some((first, others)) = columns.split_first() {
            let taken: usize = others.iter().map(|column| widths[*column] + GAP).sum();
            widths[*first] = widths[*first].min(WIDTH.saturating_sub(taken).max(LEAST_FIRST));
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for &column in &columns {
                if column > 0 {
                    line.push_str(&" ".repeat(GAP));
                }
                // Widths in formats have a limit, and cells have none.
                let cell = shortened(&row[column], widths[column]);
                let room = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
                let (before, after) = match self.alignment[column] {
                    Align::Left => ("", room.as_str()),
                    Align::Right => (room.as_str(), ""),
                };
                line.extend([before, &cell, after]);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    quickcheck! {
        fn lines_fit_the_width_for_any_names(names: Vec<String>) -> bool {
            let mut table = Table::new([("module", Align::Left), ("rank", Align::Right)]);
            for name in &names {
                table.row([name.escape_debug().to_string(), "16".into()]);
            }
            let text = table.render();
            text.lines().count() == names.len() + 1 && text.lines().all(|line| line.chars().count() <= WIDTH)
        }
    }

    #[test]
    fn columns_are_aligned_and_long_names_shortened() {
        let mut table = Table::new([("module", Align::Left), ("rank", Align::Right)]);
        table.row(["q".into(), "8".into()]);
        table.row(["a".repeat(80) + "z", "16".into()]);
        let head = "a".repeat(36);
        let tail = "a".repeat(36) + "z";
        let expected =
            format!("module{}  rank\nq{}     8\n{head}…{tail}    16\n", " ".repeat(68), " ".repeat(73));
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn columns_without_values_are_left_out() {
        let mut table =
            Table::new([("module", Align::Left), ("shift", Align::Right), ("rank", Align::Right)]);
        assert_eq!(table.render(), "module  shift  rank\n");
        table.row(["q".into(), NONE.into(), "8".into()]);
        assert_eq!(table.render(), "module  rank\nq          8\n");
        table.row(["k".into(), "5.0 %".into(), NONE.into()]);
        assert_eq!(table.render(), "module  shift  rank\nq           –     8\nk       5.0 %     –\n");
    }
}
