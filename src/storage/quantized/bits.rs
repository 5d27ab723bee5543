//! Fields of a few bits in packed words.

/// The field with this index in a dense sequence of fields of 1 to 8 bits, lowest bits first. Words are little-endian, so a sequence of
/// words is a sequence of bytes. Bits after the end are zero.
pub(super) fn field(bytes: &[u8], index: usize, bits: u32) -> u8 {
    let at = index * bits as usize;
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    let pair = u16::from_le_bytes([byte(at / 8), byte(at / 8 + 1)]);
    (pair >> (at % 8)) as u8 & mask(bits)
}

/// The field from bit `at` on in a column of a matrix of words with `width` columns, where fields follow one another down the words of the
/// column, lowest bits first. Words after the end are zero.
pub(super) fn field_down(words: &[u8], width: usize, column: usize, at: usize, bits: u32) -> u8 {
    let word = |row: usize| {
        let start = (row * width + column) * 4;
        words
            .get(start..start + 4)
            .and_then(|bytes| bytes.first_chunk())
            .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    let pair = u64::from(word(at / 32)) | u64::from(word(at / 32 + 1)) << 32;
    (pair >> (at % 32)) as u8 & mask(bits)
}

/// The ones of a field.
pub(super) fn mask(bits: u32) -> u8 {
    u8::MAX >> (8 - bits)
}

/// The words of 32 bits that a number of fields fill.
pub(super) fn words(fields: u64, bits: u32) -> u64 {
    fields.saturating_mul(u64::from(bits)).div_ceil(32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    quickcheck! {
        /// The oracle writes each field bit by bit.
        fn fields_are_those_that_were_written(fields: Vec<u8>, bits: u8) -> bool {
            let bits = u32::from(bits % 8) + 1;
            let mut bytes = vec![0u8; words(fields.len() as u64, bits) as usize * 4];
            for (index, value) in fields.iter().enumerate() {
                for bit in 0..bits as usize {
                    let at = index * bits as usize + bit;
                    bytes[at / 8] |= (value >> bit & 1) << (at % 8);
                }
            }
            let kept = |value: u8| (u16::from(value) % (1 << bits)) as u8;
            fields.iter().enumerate().all(|(index, value)| field(&bytes, index, bits) == kept(*value))
        }
    }

    /// Fields of 3 bits lie across the ends of words.
    #[test]
    fn fields_go_down_the_columns() {
        let fields: Vec<u8> = (0..64).map(|index| (index * 5 % 8) as u8).collect();
        let mut columns = [[0u32; 6]; 2];
        for (index, value) in fields.iter().enumerate() {
            for bit in 0..3 {
                let at = index * 3 + bit;
                columns[1][at / 32] |= u32::from(value >> bit & 1) << (at % 32);
            }
        }
        let bytes: Vec<u8> =
            (0..6).flat_map(|row| [columns[0][row], columns[1][row]]).flat_map(u32::to_le_bytes).collect();
        let found: Vec<u8> = (0..64).map(|index| field_down(&bytes, 2, 1, 3 * index, 3)).collect();
        assert_eq!(found, fields);
        assert!((0..64).all(|index| field_down(&bytes, 2, 0, 3 * index, 3) == 0));
    }

    #[test]
    fn words_are_counted() {
        assert_eq!([words(32, 3), words(33, 3), words(8, 4), words(9, 4), words(0, 8)], [3, 4, 1, 2, 0]);
        assert_eq!([mask(1), mask(3), mask(8)], [1, 7, 255]);
    }
}
