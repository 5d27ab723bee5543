//! Numbers that count something: whole ones, in whatever format they are stored.

use crate::element::Element;

/// A number format that a count may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Floating point.
    Float(Element),
    /// Whole numbers of this many bytes: 1, 2, 4 or 8.
    Integer {
        /// Bytes per number.
        bytes: usize,
        /// Whether there are negative ones.
        signed: bool,
    },
}

impl Number {
    /// The format of that safetensors name, such as `I64` or `F32`.
    pub fn from_name(name: &str) -> Option<Self> {
        if let Some(element) = Element::from_name(name) {
            return Some(Self::Float(element));
        }
        let (signed, bits) = match name.split_at_checked(1)? {
            ("I", bits) => (true, bits),
            ("U", bits) => (false, bits),
            _ => return None,
        };
        let bytes = match bits {
            "8" => 1,
            "16" => 2,
            "32" => 4,
            "64" => 8,
            _ => return None,
        };
        Some(Self::Integer { bytes, signed })
    }

    /// The name that safetensors uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float(element) => element.name(),
            Self::Integer { bytes: 1, signed: true } => "I8",
            Self::Integer { bytes: 2, signed: true } => "I16",
            Self::Integer { bytes: 4, signed: true } => "I32",
            Self::Integer { signed: true, .. } => "I64",
            Self::Integer { bytes: 1, signed: false } => "U8",
            Self::Integer { bytes: 2, signed: false } => "U16",
            Self::Integer { bytes: 4, signed: false } => "U32",
            Self::Integer { signed: false, .. } => "U64",
        }
    }

    /// Bytes per number.
    pub fn size(self) -> usize {
        match self {
            Self::Float(element) => element.size(),
            Self::Integer { bytes, .. } => bytes,
        }
    }

    /// Reads one number from its little-endian bytes.
    ///
    /// # Errors
    /// What was found, in words, if it is no whole number from 0 to 2⁶⁴ − 1.
    ///
    /// # Panics
    /// If there are not [`size`](Self::size) bytes.
    pub fn whole(self, bytes: &[u8]) -> Result<u64, String> {
        assert_eq!(bytes.len(), self.size(), "the bytes of one number");
        match self {
            Self::Float(element) => {
                /// The least number that no u64 holds.
                const LIMIT: f64 = 18_446_744_073_709_551_616.0;
                let mut value = [0.0];
                element.decode_f64(bytes, &mut value);
                let [value] = value;
                let is_count = (0.0..LIMIT).contains(&value) && value.fract() == 0.0;
                // It was compared with the limits of the type.
                if is_count { Ok(value as u64) } else { Err(value.to_string()) }
            }
            Self::Integer { signed, .. } => {
                let is_negative = signed && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
                let mut wide = [if is_negative { 0xff } else { 0 }; 8];
                wide[..bytes.len()].copy_from_slice(bytes);
                if is_negative {
                    return Err(i64::from_le_bytes(wide).to_string());
                }
                Ok(u64::from_le_bytes(wide))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    fn format(name: &str) -> Number {
        Number::from_name(name).unwrap()
    }

    quickcheck! {
        /// Every integer of every width is read as what it is, or refused as what it is.
        fn integers_are_what_they_are(value: i64) -> bool {
            let read = |name: &str, bytes: &[u8]| format(name).whole(bytes);
            let signed = |wide: i64| u64::try_from(wide).map_err(|_| wide.to_string());
            let (narrow, short, byte) = (value as i32, value as i16, value as i8);
            read("I64", &value.to_le_bytes()) == signed(value)
                && read("I32", &narrow.to_le_bytes()) == signed(narrow.into())
                && read("I16", &short.to_le_bytes()) == signed(short.into())
                && read("I8", &byte.to_le_bytes()) == signed(byte.into())
                && read("U64", &value.to_le_bytes()) == Ok(value as u64)
                && read("U32", &narrow.to_le_bytes()) == Ok(u64::from(narrow as u32))
                && read("U16", &short.to_le_bytes()) == Ok(u64::from(short as u16))
                && read("U8", &byte.to_le_bytes()) == Ok(u64::from(byte as u8))
                && read("F64", &f64::from(narrow).to_le_bytes()) == signed(narrow.into())
        }
    }

    #[test]
    fn floats_must_be_whole() {
        let read = |value: f32| format("F32").whole(&value.to_le_bytes());
        assert_eq!(
            (read(3.0), read(-0.0), read(1.8446743e19)),
            (Ok(3), Ok(0), Ok(18_446_742_974_197_923_840))
        );
        for (value, found) in [
            (0.5, "0.5"),
            (-1.0, "-1"),
            (f32::NAN, "NaN"),
            (f32::INFINITY, "inf"),
            (1.8446744e19, "18446744073709552000"),
        ] {
            assert_eq!(read(value), Err(found.into()));
        }
    }

    #[test]
    fn formats_have_names() {
        for name in ["BOOL", "C64", "F8_E4M3", "I", "U7", "I128", "", "É8"] {
            assert_eq!(Number::from_name(name), None, "{name}");
        }
        let names = ["I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BF16"];
        assert_eq!(names.map(|name| format(name).name()), names);
        assert_eq!(names.map(|name| format(name).size()), [8, 4, 2, 1, 8, 4, 2, 1, 2]);
    }
}
