//! Column statistics: sums, absolute maxima, and a check that all numbers are finite.

/// Bits of an f32 without its sign.
const MAGNITUDE: u32 = 0x7fff_ffff;

/// The statistics of the columns of one panel. The loops have a fixed length, so that the compiler makes vector instructions of them.
#[derive(Clone, Copy)]
pub(super) struct Columns<const WIDTH: usize> {
    sum: [f32; WIDTH],
    /// Bits of the largest absolute value of each column. The bits of non-negative floats sort, as integers, like the
    /// floats; infinity sorts above every number, and NaN above infinity. So this maximum, unlike a maximum of floats, also shows numbers
    /// that are not finite.
    magnitude: [u32; WIDTH],
}

impl<const WIDTH: usize> Columns<WIDTH> {
    /// Continues from stored statistics.
    #[inline(always)]
    pub(super) fn load(sum: &[f32; WIDTH], magnitude: &[u32; WIDTH]) -> Self {
        Self { sum: *sum, magnitude: *magnitude }
    }

    #[inline(always)]
    pub(super) fn store(self, sum: &mut [f32; WIDTH], magnitude: &mut [u32; WIDTH]) {
        (*sum, *magnitude) = (self.sum, self.magnitude);
    }

    /// Adds a row.
    #[inline(always)]
    pub(super) fn add(&mut self, row: &[f32; WIDTH]) {
        for ((sum, magnitude), number) in self.sum.iter_mut().zip(&mut self.magnitude).zip(row) {
            *sum += number;
            *magnitude = (*magnitude).max(number.to_bits() & MAGNITUDE);
        }
    }
}

/// Returns whether all numbers with these magnitudes are finite.
pub(super) fn all_finite(magnitudes: &[u32]) -> bool {
    magnitudes.iter().all(|&magnitude| magnitude < f32::INFINITY.to_bits())
}
