//! Column statistics: sums, absolute maxima, and a check that all numbers are finite.

use super::kernel::VECTORS;
use pulp::Simd;

/// Bits of an f32 without its sign.
const MAGNITUDE: u32 = 0x7fff_ffff;

/// The statistics of the columns of one panel.
#[derive(Clone, Copy)]
pub(super) struct Columns<S: Simd> {
    sum: [S::f32s; VECTORS],
    /// Bits of the largest absolute value. The bits of non-negative floats sort, as integers, like the
    /// floats; infinity sorts above every number, and NaN above infinity. So this maximum, unlike a maximum of floats, also shows numbers
    /// that are not finite.
    magnitude: [S::u32s; VECTORS],
}

impl<S: Simd> Columns<S> {
    /// Continues from stored statistics. The slices are as long as a panel is wide.
    #[inline(always)]
    pub(super) fn load(sum: &[f32], magnitude: &[u32]) -> Self {
        let (sum, magnitude) = (S::as_simd_f32s(sum).0, S::as_simd_u32s(magnitude).0);
        Self { sum: std::array::from_fn(|v| sum[v]), magnitude: std::array::from_fn(|v| magnitude[v]) }
    }

    #[inline(always)]
    pub(super) fn store(self, sum: &mut [f32], magnitude: &mut [u32]) {
        S::as_mut_simd_f32s(sum).0.copy_from_slice(&self.sum);
        S::as_mut_simd_u32s(magnitude).0.copy_from_slice(&self.magnitude);
    }

    /// Adds a row.
    #[inline(always)]
    pub(super) fn add(&mut self, simd: S, row: [S::f32s; VECTORS]) {
        for (v, numbers) in row.into_iter().enumerate() {
            self.sum[v] = simd.add_f32s(self.sum[v], numbers);
            let magnitude = simd.and_u32s(simd.transmute_u32s_f32s(numbers), simd.splat_u32s(MAGNITUDE));
            self.magnitude[v] = simd.max_u32s(self.magnitude[v], magnitude);
        }
    }
}

/// Returns whether all numbers with these magnitudes are finite.
pub(super) fn all_finite(magnitudes: &[u32]) -> bool {
    magnitudes.iter().all(|&magnitude| magnitude < f32::INFINITY.to_bits())
}
