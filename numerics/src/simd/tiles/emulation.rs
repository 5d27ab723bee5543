//! The products of tiles in portable code, by their definition.

use super::super::kernel::{Ahead, Kernel};
use super::super::packed::{Packed, Panels};
use super::super::pairs::{earlier, later};
use super::super::shape::PANELS;
use super::{SIDE, STEP, VECTORS, WIDTH, copy_transposed};
use std::ops::Range;

#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Emulated;

impl Kernel for Emulated {
    type Word = u32;
    const LANES: usize = SIDE;
    const HEIGHT: usize = WIDTH;
    // Another number than that of the processor's tiles: the bits do not depend on it.
    const LINES: usize = 48;

    fn copy_left(packed: &Packed<u32>, columns: Range<usize>, into: &mut Panels<u32>) {
        copy_transposed(packed, columns, into, |lines, to| {
            for (column, to) in to.iter_mut().enumerate() {
                *to = lines.map(|line| line[column]);
            }
        });
    }

    fn multiply<const V: usize>(
        self,
        left: &[u32],
        right: &[u32],
        skip: usize,
        sums: &mut [f32],
        _: Ahead<'_, u32>,
    ) {
        let steps = left.as_chunks::<STEP>().0.iter().zip(right.as_chunks::<STEP>().0);
        for (left, right) in steps {
            for row in 0..WIDTH {
                for column in 0..V * SIDE {
                    let words =
                        |line: usize| (left[row * SIDE + line], right[line * WIDTH + skip * SIDE + column]);
                    let chain = |half: fn(u32) -> f32| {
                        (0..SIDE).map(words).fold(0f32, |chain, (left, right)| {
                            flush(flush(half(left)).mul_add(flush(half(right)), chain))
                        })
                    };
                    let sum = &mut sums[row * PANELS * VECTORS * SIDE + column];
                    *sum = flush(flush(*sum) + flush(chain(earlier) + chain(later)));
                }
            }
        }
    }
}

/// Takes subnormal numbers as zero.
fn flush(number: f32) -> f32 {
    if number.is_subnormal() { 0f32.copysign(number) } else { number }
}
