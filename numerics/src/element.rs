//! Number formats: their names, their sizes, decoding and encoding.
//!
//! Everything here is one number at a time; the vectorized conversions are in [`simd`](crate::simd).

use crate::names::names;
use half::{bf16, f16};

/// A number format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// Brain float: the upper half of a single.
    Bf16,
}

// The names of safetensors.
names!(Element, "number format": F64 = "F64", F32 = "F32", F16 = "F16", Bf16 = "BF16");

impl Element {
    /// The format of this name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        name.parse().ok()
    }

    /// Bytes per number.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Decodes little-endian bytes, rounding F64 to nearest even.
    ///
    /// F32 is copied bit by bit, the payload of a NaN included.
    ///
    /// # Panics
    /// If `bytes` is not exactly `out.len()` numbers long.
    pub fn decode_f32(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F64 => decode(bytes, out, |number| f64::from_le_bytes(number) as f32),
            Self::F32 => decode(bytes, out, f32::from_le_bytes),
            Self::F16 => decode(bytes, out, |number| f16::from_le_bytes(number).to_f32()),
            Self::Bf16 => decode(bytes, out, |number| bf16::from_le_bytes(number).to_f32()),
        }
    }

    /// Decodes little-endian bytes to f64, without rounding.
    ///
    /// # Panics
    /// If `bytes` is not exactly `out.len()` numbers long.
    pub fn decode_f64(self, bytes: &[u8], out: &mut [f64]) {
        match self {
            Self::F64 => decode(bytes, out, f64::from_le_bytes),
            Self::F32 => decode(bytes, out, |number| f64::from(f32::from_le_bytes(number))),
            Self::F16 => decode(bytes, out, |number| f16::from_le_bytes(number).to_f64()),
            Self::Bf16 => decode(bytes, out, |number| bf16::from_le_bytes(number).to_f64()),
        }
    }

    /// The word for a number that the format cannot hold: rounded to it, the number is zero or infinite, or it is not a number.
    pub fn loses(self, value: f64) -> Option<&'static str> {
        let mut bytes = Vec::new();
        self.encode([value], &mut bytes);
        let mut rounded = [0.0];
        self.decode_f64(&bytes, &mut rounded);
        match rounded[0] {
            0.0 => Some("zero"),
            number if number.is_nan() => Some("not a number"),
            number if number.is_infinite() => Some("infinite"),
            _ => None,
        }
    }

    /// Appends little-endian bytes, each number rounded once, to nearest even. Numbers that are too large become infinite.
    pub fn encode(self, values: impl IntoIterator<Item = f64>, out: &mut Vec<u8>) {
        let values = values.into_iter();
        match self {
            Self::F64 => values.for_each(|value| out.extend(value.to_le_bytes())),
            Self::F32 => values.for_each(|value| out.extend((value as f32).to_le_bytes())),
            Self::F16 => {
                values.for_each(|value| out.extend(f16::from_f32(round_to_odd(value)).to_le_bytes()));
            }
            Self::Bf16 => {
                values.for_each(|value| out.extend(bf16::from_f32(round_to_odd(value)).to_le_bytes()));
            }
        }
    }

    /// Reverses the bytes of each number in place: big-endian to little-endian, and back.
    ///
    /// # Panics
    /// If `bytes` is not a whole number of numbers long.
    pub fn swap_bytes(self, bytes: &mut [u8]) {
        assert!(
            bytes.len().is_multiple_of(self.size()),
            "{} bytes are no whole {} numbers",
            bytes.len(),
            self.name()
        );
        bytes.chunks_exact_mut(self.size()).for_each(<[u8]>::reverse);
    }
}

fn decode<const SIZE: usize, T>(bytes: &[u8], out: &mut [T], number: impl Fn([u8; SIZE]) -> T) {
    let (numbers, rest) = bytes.as_chunks::<SIZE>();
    assert!(
        rest.is_empty() && numbers.len() == out.len(),
        "{} bytes for {} numbers of {SIZE} bytes",
        bytes.len(),
        out.len()
    );
    for (out, bytes) in out.iter_mut().zip(numbers) {
        *out = number(*bytes);
    }
}

/// Rounds to the neighbour whose last bit is 1, if the value is not an f32 already.
///
/// Rounding the result to a shorter format gives the same as rounding the value directly. Rounding through the nearest f32 does not: a
/// value just above the middle of two half floats would first fall on the middle, then below it. The direct conversions of `half` from
/// f64 have this error or another one, depending on the processor. (Boldo and Melquiond, "Emulation of a FMA and correctly rounded
/// sums: proved algorithms using rounding to odd", IEEE Transactions on Computers 57(4), 2008.)
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let bits = nearest.to_bits();
    if value.is_nan() || nearest.is_infinite() || f64::from(nearest) == value || bits & 1 == 1 {
        nearest
    } else if f64::from(nearest).abs() < value.abs() {
        f32::from_bits(bits + 1)
    } else {
        f32::from_bits(bits - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    const ALL: [Element; 4] = [Element::F64, Element::F32, Element::F16, Element::Bf16];

    fn encoded(element: Element, value: f64) -> Vec<u8> {
        let mut bytes = Vec::new();
        element.encode([value], &mut bytes);
        bytes
    }

    fn decoded(element: Element, bytes: &[u8]) -> f64 {
        let mut out = [0.0];
        element.decode_f64(bytes, &mut out);
        out[0]
    }

    /// The ends of the formats, from their definitions: the smallest numbers above zero and the largest ones.
    #[test]
    fn formats_hold_numbers_within_their_ranges() {
        for (element, least, largest) in [
            (Element::F64, 5e-324, 1.7e308),
            (Element::F32, 1.4e-45, 3.4e38),
            (Element::F16, 6e-8, 65504.0),
            (Element::Bf16, 9.2e-41, 3.38e38),
        ] {
            for value in [least, 1.0, largest, -largest] {
                assert_eq!(element.loses(value), None, "{element:?} {value}");
            }
            let lost =
                [0.0, least / 3.0, largest * 2.0, f64::INFINITY, f64::NAN].map(|value| element.loses(value));
            assert_eq!(
                lost,
                ["zero", "zero", "infinite", "infinite", "not a number"].map(Some),
                "{element:?}"
            );
        }
    }

    #[test]
    fn names_are_those_of_safetensors_and_of_serde() {
        for element in ALL {
            assert_eq!(Element::from_name(element.name()), Some(element));
            assert_eq!(serde_json::to_string(&element).unwrap(), format!("\"{}\"", element.name()));
            assert_eq!(encoded(element, 1.0).len(), element.size());
        }
        assert_eq!(Element::from_name("f32"), None);
        assert_eq!(Element::from_name("I64"), None);
    }

    quickcheck! {
        fn every_pattern_of_16_bits_survives_decoding_and_encoding(bits: u16) -> bool {
            let bytes = bits.to_le_bytes();
            [Element::F16, Element::Bf16].into_iter().all(|element| {
                let value = decoded(element, &bytes);
                value.is_nan() || encoded(element, value) == bytes
            })
        }

        fn singles_are_copied_bit_by_bit(bits: Vec<u32>) -> bool {
            let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
            let mut out = vec![0.0; bits.len()];
            Element::F32.decode_f32(&bytes, &mut out);
            out.iter().map(|value| value.to_bits()).eq(bits)
        }

        fn doubles_survive(value: f64) -> bool {
            decoded(Element::F64, &encoded(Element::F64, value)).to_bits() == value.to_bits()
        }

        fn decoding_to_single_is_decoding_to_double_and_rounding(bytes: Vec<u8>) -> bool {
            ALL.into_iter().all(|element| {
                let count = bytes.len() / element.size();
                let bytes = &bytes[..count * element.size()];
                let (mut singles, mut doubles) = (vec![0.0; count], vec![0.0; count]);
                element.decode_f32(bytes, &mut singles);
                element.decode_f64(bytes, &mut doubles);
                singles.iter().zip(&doubles).all(|(&single, &double)| {
                    single.is_nan() && double.is_nan() || single == double as f32
                })
            })
        }

        fn swapping_twice_changes_nothing_and_once_reads_big_endian(values: Vec<f32>) -> bool {
            let little: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let big: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
            let mut swapped = big.clone();
            Element::F32.swap_bytes(&mut swapped);
            let once = swapped == little;
            Element::F32.swap_bytes(&mut swapped);
            once && swapped == big
        }

        /// Checks the definition: no neighbour is nearer, and ties go to the even one.
        fn encoding_rounds_once_to_nearest_even(sign: bool, exponent: i8, bits: u16, beyond: i8) -> bool {
            // Near the middle of two neighbours, where rounding twice differs from rounding once; also subnormal half floats.
            let scale = 2f64.powi(i32::from(exponent).rem_euclid(31) - 16) * if sign { -1.0 } else { 1.0 };
            [(Element::F16, 10), (Element::Bf16, 7)].into_iter().all(|(element, digits)| {
                let unit = 2f64.powi(-digits);
                let below = f64::from(bits % (1 << digits)) * unit;
                let value = scale * (1.0 + below + unit / 2.0 + f64::from(beyond) * 2f64.powi(-40));
                let bytes = encoded(element, value);
                let found = u16::from_le_bytes([bytes[0], bytes[1]]);
                let distance = |bits: u16| (decoded(element, &bits.to_le_bytes()) - value).abs();
                [found - 1, found + 1].into_iter().all(|other| {
                    let (found_away, other_away) = (distance(found), distance(other));
                    found_away < other_away || found_away == other_away && found.is_multiple_of(2)
                })
            })
        }
    }

    /// Rounding to f32 first would give 1.
    #[test]
    fn just_above_a_middle_rounds_up() {
        let value = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(decoded(Element::F16, &encoded(Element::F16, value)), 1.0 + 2f64.powi(-10));
    }

    #[test]
    fn largest_and_smallest_numbers() {
        assert_eq!(decoded(Element::F16, &encoded(Element::F16, 65519.0)), 65504.0);
        assert_eq!(decoded(Element::F16, &encoded(Element::F16, 65520.0)), f64::INFINITY);
        assert_eq!(decoded(Element::F16, &encoded(Element::F16, -1e300)), f64::NEG_INFINITY);
        assert_eq!(decoded(Element::Bf16, &encoded(Element::Bf16, 1e39)), f64::INFINITY);
        assert_eq!(decoded(Element::F32, &encoded(Element::F32, 1e39)), f64::INFINITY);
        assert_eq!(encoded(Element::F16, -1e-300), [0x00, 0x80]);
        // Just above half of the smallest subnormal.
        assert_eq!(encoded(Element::F16, 2f64.powi(-25) * (1.0 + 2f64.powi(-50))), [0x01, 0x00]);
        assert_eq!(encoded(Element::F16, 2f64.powi(-25)), [0x00, 0x00]);
        assert!(ALL.into_iter().all(|element| decoded(element, &encoded(element, f64::NAN)).is_nan()));
    }

    #[test]
    #[should_panic(expected = "7 bytes for 2 numbers of 4 bytes")]
    fn lengths_that_disagree_panic() {
        Element::F32.decode_f32(&[0; 7], &mut [0.0; 2]);
    }
}
