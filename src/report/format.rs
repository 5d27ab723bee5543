//! The number formats of tables, reports and messages.

use bytesize::ByteSize;

/// A size in bytes with its decimal unit, such as `1.2 MB`.
pub fn bytes(bytes: u64) -> String {
    ByteSize(bytes).display().si().to_string()
}

/// A number with a noun: `1 layer`, `2 layers`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A number with three significant digits, in scientific notation if it is very small or very large.
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

/// A share of 1 as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A time in the unit that leaves at most three digits.
pub fn duration(seconds: f64) -> String {
    match seconds {
        ..0.0995 => format!("{:.0} ms", seconds * 1e3),
        ..99.5 => format!("{seconds:.1} s"),
        ..5970.0 => format!("{:.1} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

/// An integer with its digits in groups of three, separated by narrow spaces that do not break.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn bytes_have_decimal_units() {
        let shown = [0, 999, 1000, 999_949, 1_000_000, 1_180_000, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.2 MB", "18.4 EB"]);
    }

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [0.0, 0.01234, 1.0, 25.0, 812.34, 1.5e-7, 2.0e9, f64::NAN].map(number);
        assert_eq!(shown, ["0", "0.0123", "1.000", "25.00", "812.3", "1.50e-7", "2.00e9", "NaN"]);
    }

    #[test]
    fn durations_have_a_suitable_unit() {
        let shown = [0.0, 0.0123, 0.5, 75.0, 150.0, 7200.0].map(duration);
        assert_eq!(shown, ["0 ms", "12 ms", "0.5 s", "75.0 s", "2.5 min", "2.0 h"]);
    }

    #[test]
    fn other_numbers() {
        let shown = [count(1, "layer"), count(2, "layer"), percent(0.05), grouped(999), grouped(1_234_567)];
        expect!["1 layer, 2 layers, 5.0 %, 999, 1\u{202f}234\u{202f}567"].assert_eq(&shown.join(", "));
    }
}
