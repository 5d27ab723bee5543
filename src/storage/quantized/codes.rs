//! Number formats of codes and scales.

use crate::element::Element;

/// A number format that codes or scales have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// Floating point of 16 bits and more.
    Float(Element),
    /// Float8 with 4 bits of exponent and 3 of mantissa, without infinity.
    E4m3,
    /// Float8 with 5 bits of exponent and 2 of mantissa.
    E5m2,
    /// Powers of two: 2^(b − 127).
    E8m0,
    /// Integers of 8 bits.
    I8,
}

impl Code {
    /// The format of the codes of a weight.
    pub(super) fn of_codes(dtype: &str) -> Option<Self> {
        match dtype {
            "F8_E4M3" => Some(Self::E4m3),
            "F8_E5M2" => Some(Self::E5m2),
            "I8" => Some(Self::I8),
            _ => None,
        }
    }

    /// The format of scales. Bytes are powers of two.
    pub(super) fn of_scales(dtype: &str) -> Option<Self> {
        match dtype {
            "F8_E4M3" => Some(Self::E4m3),
            "F8_E8M0" | "U8" => Some(Self::E8m0),
            float => Element::from_name(float).map(Self::Float),
        }
    }

    /// Bytes per number.
    pub(super) fn size(self) -> usize {
        match self {
            Self::Float(element) => element.size(),
            _ => 1,
        }
    }

    /// Decodes numbers. F64 is rounded.
    ///
    /// # Panics
    /// If `bytes` is not exactly `out.len()` numbers long.
    pub(super) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        if let Self::Float(element) = self {
            return element.decode_f32(bytes, out);
        }
        assert_eq!(bytes.len(), out.len(), "one byte for each number");
        let mut table = [0.0; 256];
        for (byte, value) in (0..=u8::MAX).zip(&mut table) {
            *value = self.value(byte);
        }
        for (byte, out) in bytes.iter().zip(out) {
            *out = table[usize::from(*byte)];
        }
    }

    fn value(self, byte: u8) -> f32 {
        match self {
            Self::E4m3 => float8(byte, 3, 7, |_| f32::NAN),
            Self::E5m2 => {
                float8(byte, 2, 15, |mantissa| if mantissa == 0 { f32::INFINITY } else { f32::NAN })
            }
            Self::E8m0 if byte == u8::MAX => f32::NAN,
            // 2^−127 is the smallest one: a subnormal number of f32.
            Self::E8m0 => 2f64.powi(i32::from(byte) - 127) as f32,
            Self::I8 => f32::from(byte.cast_signed()),
            Self::Float(_) => f32::NAN,
        }
    }
}

/// The value of a float8. `last` gives the values with the largest exponent; E4M3 uses all but one of them for numbers.
fn float8(byte: u8, mantissa_bits: u32, bias: i32, last: impl Fn(u8) -> f32) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let magnitude = byte & 0x7f;
    let (exponent, mantissa) = (magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1));
    let largest = 0x7f >> mantissa_bits;
    let is_last = match mantissa_bits {
        3 => magnitude == 0x7f,
        _ => exponent == largest,
    };
    let unit = 2f32.powi(-mantissa_bits.cast_signed());
    let value = match exponent {
        _ if is_last => last(mantissa),
        0 => f32::from(mantissa) * unit * 2f32.powi(1 - bias),
        _ => (1.0 + f32::from(mantissa) * unit) * 2f32.powi(i32::from(exponent) - bias),
    };
    sign * value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(code: Code, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; bytes.len()];
        code.decode(bytes, &mut out);
        out
    }

    /// Known values of the formats, from their definitions.
    #[test]
    fn small_floats_have_their_values() {
        let e4m3 = values(Code::E4m3, &[0x00, 0x01, 0x08, 0x38, 0x39, 0x7e, 0xb8, 0xfe, 0x07]);
        assert_eq!(e4m3, [0.0, 1.0 / 512.0, 1.0 / 64.0, 1.0, 1.125, 448.0, -1.0, -448.0, 7.0 / 512.0]);
        assert!(values(Code::E4m3, &[0x7f, 0xff]).iter().all(|value| value.is_nan()));
        let e5m2 = values(Code::E5m2, &[0x00, 0x01, 0x04, 0x3c, 0x3d, 0x7b, 0xbc, 0x7c]);
        assert_eq!(e5m2, [0.0, 2f32.powi(-16), 2f32.powi(-14), 1.0, 1.25, 57344.0, -1.0, f32::INFINITY]);
        assert!(values(Code::E5m2, &[0x7d, 0xff]).iter().all(|value| value.is_nan()));
        assert_eq!(
            values(Code::E8m0, &[0, 126, 127, 130, 254]),
            [2f32.powi(-127), 0.5, 1.0, 8.0, 2f32.powi(127)]
        );
        assert!(values(Code::E8m0, &[255])[0].is_nan());
        assert_eq!(values(Code::I8, &[0, 127, 128, 255]), [0.0, 127.0, -128.0, -1.0]);
    }

    #[test]
    fn formats_are_known_by_name() {
        assert_eq!(Code::of_scales("BF16"), Some(Code::Float(Element::Bf16)));
        assert_eq!(Code::of_scales("U8"), Some(Code::E8m0));
        assert_eq!(
            (Code::of_scales("I32"), Code::of_codes("F8_E4M3FNUZ"), Code::of_codes("F32")),
            (None, None, None)
        );
        assert_eq!([Code::E4m3.size(), Code::Float(Element::F16).size()], [1, 2]);
    }
}
