//! Sizes as people write them.

use std::str::FromStr;

/// A number of bytes, written such as `2GiB`, `1.5GB`, `500M` or `1000000`.
///
/// `K`, `M`, `G` and `T` are powers of 1000, `Ki`, `Mi`, `Gi` and `Ti` of 1024; a `B` may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a number of bytes such as 2GiB, 500MB or 1000000".to_owned();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.strip_suffix('B').unwrap_or(unit);
        let factor = match unit {
            "" => 1.0,
            "K" | "k" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            "T" => 1e12,
            "Ki" => 1024.0,
            "Mi" => 1024.0 * 1024.0,
            "Gi" => 1024.0 * 1024.0 * 1024.0,
            "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
            _ => return Err(expected()),
        };
        let bytes = number.parse::<f64>().map_err(|_| expected())? * factor;
        if bytes < 1.0 || bytes >= u64::MAX as f64 { Err(expected()) } else { Ok(Self(bytes as u64)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("1000000", 1_000_000),
            ("2GiB", 2 << 30),
            ("2Gi", 2 << 30),
            ("1.5GB", 1_500_000_000),
            ("500M", 500_000_000),
            ("3k", 3000),
            ("64KiB", 65536),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1", "1e9", "2 GiB", "0", "0.1", "2Gib", "1.2.3G", "99999999T", "∞"] {
            assert!(text.parse::<ByteSize>().unwrap_err().contains("2GiB"), "{text}");
        }
    }
}
