//! Conversion from each number format to f32, a run of numbers at a time.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A number format that rows come in.
pub(super) trait Number: Copy + Into<f64> {
    /// True if every number of the format is an f32.
    const FITS_F32: bool;

    /// Rounds (f64) or widens (the others) to f32. The slices are equally long.
    fn convert(from: &[Self], to: &mut [f32]);
}

impl Number for f64 {
    const FITS_F32: bool = false;

    #[inline(always)]
    fn convert(from: &[Self], to: &mut [f32]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = from as f32;
        }
    }
}

impl Number for f32 {
    const FITS_F32: bool = true;

    #[inline(always)]
    fn convert(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Number for f16 {
    const FITS_F32: bool = true;

    #[inline(always)]
    fn convert(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

impl Number for bf16 {
    const FITS_F32: bool = true;

    /// The conversion of `half` branches at every NaN. Here a NaN may stay signalling, since it is refused.
    #[inline(always)]
    fn convert(from: &[Self], to: &mut [f32]) {
        // In runs of a vector, because the compiler unrolls a short loop of known length before it vectorizes it.
        let (from, from_rest) = from.as_chunks::<16>();
        let (to, to_rest) = to.as_chunks_mut::<16>();
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.map(widen);
        }
        for (to, &from) in to_rest.iter_mut().zip(from_rest) {
            *to = widen(from);
        }
    }
}

/// A bf16 is the upper half of the f32 of the same value.
#[inline(always)]
fn widen(number: bf16) -> f32 {
    f32::from_bits(u32::from(number.to_bits()) << 16)
}
