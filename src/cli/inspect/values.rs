//! Figures of the numbers of a tensor. The whole tensor is read, in blocks.

use crate::element::Element;
use crate::storage::{Problem, Source};
use serde::Serialize;

/// Figures of the numbers of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Values {
    /// Square root of the sum of the squares of the finite numbers.
    pub(crate) norm: f64,
    /// The largest absolute value of the finite numbers.
    pub(crate) abs_max: f64,
    /// Number of zeros.
    pub(crate) zeros: u64,
    /// Number of values that are NaN or infinite.
    pub(crate) nonfinite: u64,
}

/// The place and format of the numbers of a tensor.
pub(crate) struct Place {
    pub(crate) element: Element,
    pub(crate) big_endian: bool,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Values {
    /// Reads a tensor.
    pub(crate) fn of(source: &Source, place: &Place) -> Result<Self, Problem> {
        let mut values = Self::default();
        let mut squares = 0.0;
        source.for_each_block(place.offset..place.offset + place.length, |mut bytes| {
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
            Ok(())
        })?;
        values.norm = squares.sqrt();
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In both byte orders; numbers that are not finite are counted and left out.
    #[test]
    fn figures_follow_their_definitions() {
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
