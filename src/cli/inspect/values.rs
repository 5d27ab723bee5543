//! The numbers of a tensor in a few numbers. Reads it whole, in blocks.

use cntlora::element::Element;
use cntlora::storage::{Problem, Source};
use serde::Serialize;

/// What is said of the numbers of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Values {
    /// Root of the sum of the squares of the finite ones.
    pub norm: f64,
    /// The largest absolute value of the finite ones.
    pub abs_max: f64,
    /// How many are zero.
    pub zeros: u64,
    /// How many are NaN or infinite.
    pub nonfinite: u64,
}

/// Where the numbers of a tensor are.
pub struct Place {
    pub element: Element,
    pub big_endian: bool,
    pub offset: u64,
    pub length: u64,
}

impl Values {
    /// Reads a tensor.
    pub fn of(source: &Source, place: &Place) -> Result<Self, Problem> {
        /// Bytes at a time: whole numbers of every format.
        const BLOCK: u64 = 1 << 20;
        let mut values = Self::default();
        let mut squares = 0.0;
        let mut done = 0;
        while done < place.length {
            let length = BLOCK.min(place.length - done);
            let mut bytes = source.read_vec(place.offset + done, length)?;
            if place.big_endian {
                place.element.swap_bytes(&mut bytes);
            }
            let mut numbers = vec![0.0; bytes.len() / place.element.size()];
            place.element.decode_f64(&bytes, &mut numbers);
            for number in numbers {
                match number.is_finite() {
                    true => {
                        squares += number * number;
                        values.abs_max = values.abs_max.max(number.abs());
                        values.zeros += u64::from(number == 0.0);
                    }
                    false => values.nonfinite += 1,
                }
            }
            done += length;
        }
        values.norm = squares.sqrt();
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the definitions, in both orders of bytes, with numbers that are none left out and counted.
    #[test]
    fn numbers_are_summed_up() {
        let numbers = [3.0, -4.0, 0.0, f64::NAN, f64::NEG_INFINITY];
        for element in [Element::F64, Element::F32, Element::F16, Element::Bf16] {
            for big_endian in [false, true] {
                let mut bytes = Vec::new();
                element.encode(numbers, &mut bytes);
                if big_endian {
                    element.swap_bytes(&mut bytes);
                }
                let length = bytes.len() as u64;
                let source = Source::from_bytes("memory", [vec![0; 3], bytes].concat());
                let found = Values::of(&source, &Place { element, big_endian, offset: 3, length }).unwrap();
                assert_eq!(found, Values { norm: 5.0, abs_max: 4.0, zeros: 1, nonfinite: 2 });
            }
        }
    }
}
