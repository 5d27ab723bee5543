//! Sizes of the number formats of safetensors. This crate can decode only some of them.

use super::super::{product, quoted};

/// Bits per number; `None` for an unknown name.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// Bytes per number, to which tensors are aligned; 1 for unknown formats and formats of less than a byte.
pub(super) fn alignment(dtype: &str) -> u64 {
    (bits(dtype).unwrap_or(8) / 8).max(1)
}

/// Bytes of a tensor.
///
/// # Errors
/// A message, if no tensor can have this format and shape.
pub fn byte_length(dtype: &str, shape: &[u64]) -> Result<u64, String> {
    let bits = bits(dtype).ok_or_else(|| {
        format!("unknown number format {}: expected one of safetensors, such as F32 or BF16", quoted(dtype))
    })?;
    let total = product(shape)
        .and_then(|count| count.checked_mul(bits))
        .ok_or_else(|| format!("shape {shape:?} is too large for a file"))?;
    if !total.is_multiple_of(8) {
        return Err(format!("{total} bits of {dtype} are not a whole number of bytes"));
    }
    Ok(total / 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    /// The oracle is the `safetensors` crate.
    #[test]
    fn sizes_are_those_of_the_safetensors_crate() {
        use safetensors::Dtype::*;
        let all = [
            BOOL,
            F4,
            F6_E2M3,
            F6_E3M2,
            U8,
            I8,
            F8_E5M2,
            F8_E4M3,
            F8_E8M0,
            F8_E4M3FNUZ,
            F8_E5M2FNUZ,
            I16,
            U16,
            F16,
            BF16,
            I32,
            U32,
            F32,
            C64,
            F64,
            I64,
            U64,
        ];
        for dtype in all {
            let name = serde_json::to_value(dtype).unwrap();
            assert_eq!(bits(name.as_str().unwrap()), Some(dtype.bitsize() as u64), "{name}");
        }
        assert_eq!(bits("f32"), None);
    }

    #[test]
    fn lengths_are_checked() {
        assert_eq!(byte_length("F32", &[2, 3]), Ok(24));
        assert_eq!(byte_length("F64", &[]), Ok(8));
        assert_eq!(byte_length("F64", &[7, 0]), Ok(0));
        assert_eq!(byte_length("F4", &[2, 3]), Ok(3));
        let refused: [(&str, &[u64]); 4] =
            [("F4", &[3]), ("F33", &[3]), ("U8", &[u64::MAX, 2]), ("F64", &[1 << 61])];
        let texts = refused.map(|(dtype, shape)| byte_length(dtype, shape).unwrap_err());
        expect![[r#"
            12 bits of F4 are not a whole number of bytes
            unknown number format "F33": expected one of safetensors, such as F32 or BF16
            shape [18446744073709551615, 2] is too large for a file
            shape [2305843009213693952] is too large for a file"#]]
        .assert_eq(&texts.join("\n"));
    }
}
