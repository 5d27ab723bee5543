//! Number formats of stored counts, and the numbers in a shape.

use crate::element::Element;

/// A number format in which counts can be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Floating point.
    Float(Element),
    /// Integers.
    Integer {
        /// Bytes per number: 1, 2, 4 or 8.
        bytes: usize,
        /// True if negative numbers can be stored.
        signed: bool,
    },
}

/// The integer formats by their safetensors names.
const INTEGERS: [(&str, Number); 8] = [
    ("I8", Number::Integer { bytes: 1, signed: true }),
    ("I16", Number::Integer { bytes: 2, signed: true }),
    ("I32", Number::Integer { bytes: 4, signed: true }),
    ("I64", Number::Integer { bytes: 8, signed: true }),
    ("U8", Number::Integer { bytes: 1, signed: false }),
    ("U16", Number::Integer { bytes: 2, signed: false }),
    ("U32", Number::Integer { bytes: 4, signed: false }),
    ("U64", Number::Integer { bytes: 8, signed: false }),
];

/// How many numbers an array of this shape has. `None` if there are more than a u64 can count.
pub(crate) fn product(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |product, &length| product.checked_mul(length))
}

impl Number {
    /// The format with this safetensors name, such as `I64` or `F32`.
    pub fn from_name(name: &str) -> Option<Self> {
        if let Some(element) = Element::from_name(name) {
            return Some(Self::Float(element));
        }
        INTEGERS.into_iter().find(|(known, _)| *known == name).map(|(_, number)| number)
    }

    /// The name in safetensors files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float(element) => element.name(),
            Self::Integer { .. } => {
                INTEGERS.iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
            }
        }
    }

    /// Bytes per number.
    pub fn size(self) -> usize {
        match self {
            Self::Float(element) => element.size(),
            Self::Integer { bytes, .. } => bytes,
        }
    }

    /// Reads one count from its little-endian bytes.
    ///
    /// # Errors
    /// The number as text, if it is not a whole number from 0 to 2⁶⁴ − 1.
    ///
    /// # Panics
    /// If the number of bytes is not [`size`](Self::size).
    pub fn whole(self, bytes: &[u8]) -> Result<u64, String> {
        assert_eq!(bytes.len(), self.size(), "exactly one number");
        match self {
            Self::Float(element) => {
                /// The smallest number that is too large for u64.
                const LIMIT: f64 = 18_446_744_073_709_551_616.0;
                let mut value = [0.0];
                element.decode_f64(bytes, &mut value);
                let [value] = value;
                let is_count = (0.0..LIMIT).contains(&value) && value.fract() == 0.0;
                // In the range of u64, as was just checked.
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
        /// Integers of every width are read exactly, and negative ones are refused.
        fn integers_are_exact(value: i64) -> bool {
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
