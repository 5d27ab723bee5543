//! Text tables within 80 columns, and the few number formats that they share.

/// Width that a table keeps within, as long as its columns but the first leave room.
const WIDTH: usize = 80;

/// Columns between two cells.
const GAP: usize = 2;

/// The first column is not shortened below this.
const LEAST_FIRST: usize = 12;

/// Where a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// At the left: words.
    Left,
    /// At the right: numbers.
    Right,
}

/// A table of `N` columns with a header. Cells of the first column are shortened in the middle to keep the width.
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

    /// One line for the header and each row, without spaces at their ends.
    pub fn render(&self) -> String {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        if let Some((first, others)) = widths.split_first_mut() {
            let taken: usize = others.iter().map(|width| width + GAP).sum();
            *first = (*first).min(WIDTH.saturating_sub(taken).max(LEAST_FIRST));
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column > 0 {
                    line.push_str(&" ".repeat(GAP));
                }
                let (cell, width) = (shortened(cell, widths[column]), widths[column]);
                match self.alignment[column] {
                    Align::Left => line.push_str(&format!("{cell:<width$}")),
                    Align::Right => line.push_str(&format!("{cell:>width$}")),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `text` in at most `width` characters, its middle replaced by an ellipsis.
pub(super) fn shortened(text: &str, width: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= width {
        return text.into();
    }
    let kept = width.saturating_sub(1);
    let tail = kept.div_ceil(2);
    let head = &characters[..kept - tail];
    head.iter().chain(['…'].iter()).chain(&characters[characters.len() - tail..]).collect()
}

/// A number of bytes with its decimal unit, such as `1.2 MB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    // A value that would be rounded to 1000.0 belongs to the next unit.
    while value >= 999.95 && units.len() > 0 {
        value /= 1000.0;
        unit = units.next();
    }
    format!("{value:.1} {}", unit.unwrap_or(&"PB"))
}

/// `1 layer`, `2 layers`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Three significant digits, in scientific notation where zeros would hide them.
pub fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if value == 0.0 => "0".into(),
        0.001..1.0 => format!("{value:.4}"),
        1.0..10.0 => format!("{value:.3}"),
        10.0..100.0 => format!("{value:.2}"),
        100.0..10_000.0 => format!("{value:.1}"),
        _ => format!("{value:.2e}"),
    }
}

/// A share as per cent.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    quickcheck! {
        /// Whatever the names, lines keep the width.
        fn lines_keep_the_width(names: Vec<String>) -> bool {
            let mut table = Table::new([("module", Align::Left), ("rank", Align::Right)]);
            for name in &names {
                table.row([name.escape_debug().to_string(), "16".into()]);
            }
            let text = table.render();
            text.lines().count() == names.len() + 1 && text.lines().all(|line| line.chars().count() <= WIDTH)
        }

        /// Shortening keeps short texts, and both ends of long ones.
        fn both_ends_stay(text: String, width: u8) -> bool {
            let (long, width) = (text.chars().count(), usize::from(width).max(3));
            let short = shortened(&text, width);
            if long <= width {
                short == text
            } else {
                short.chars().count() == width
                    && short.chars().next() == text.chars().next()
                    && short.chars().last() == text.chars().last()
            }
        }
    }

    /// Words stand at the left, numbers at the right, long names lose their middle.
    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new([("module", Align::Left), ("rank", Align::Right)]);
        table.row(["q".into(), "8".into()]);
        table.row(["a".repeat(80) + "z", "16".into()]);
        let head = "a".repeat(36);
        let tail = "a".repeat(36) + "z";
        let expected =
            format!("module{}  rank\nq{}     8\n{head}…{tail}    16\n", " ".repeat(68), " ".repeat(73));
        assert_eq!(table.render(), expected);
    }

    /// Units are decimal, and rounding never shows 1000.0.
    #[test]
    fn bytes_have_units() {
        let shown = [0, 999, 1000, 999_949, 999_950, 1_180_000, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.2 MB", "18446.7 PB"]);
    }

    /// Numbers keep three digits that say something.
    #[test]
    fn numbers_keep_their_digits() {
        let shown = [0.0, 0.01234, 1.0, 25.0, 812.34, 1.5e-7, 2.0e9, f64::NAN].map(number);
        assert_eq!(shown, ["0", "0.0123", "1.000", "25.00", "812.3", "1.50e-7", "2.00e9", "NaN"]);
    }
}
