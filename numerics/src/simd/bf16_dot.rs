//! The micro-kernel of bf16 rows: the dot product of AVX-512 BF16, `vdpbf16ps`, which pulp does not provide.
//!
//! A word holds the bf16 of two rows, so that one instruction multiplies and adds twice.

use super::Tier;
use super::kernel::{Ahead, Kernel};

/// The bf16 dot product. A value of this type proves that the processor has the instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct DotProduct(Proof);

#[cfg(target_arch = "x86_64")]
type Proof = ();
#[cfg(not(target_arch = "x86_64"))]
type Proof = std::convert::Infallible;

impl DotProduct {
    /// The dot product that goes with a tier, if the processor has it.
    pub(super) fn of(tier: Tier) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if tier == Tier::Avx512 && tier.instructions().is_some() && is_x86_feature_detected!("avx512bf16") {
            return Some(Self(()));
        }
        let _ = tier;
        None
    }
}

impl Kernel for DotProduct {
    type Word = u32;
    const LANES: usize = 16;
    const HEIGHT: usize = 12;

    #[inline(always)]
    fn multiply<const V: usize>(
        self,
        left: &[u32],
        right: &[u32],
        skip: usize,
        sums: &mut [f32],
        ahead: Ahead<'_, u32>,
    ) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `self` exists, so `of` has found AVX-512 and its bf16 extension.
        unsafe {
            x86::multiply::<V>(left, right, skip, sums, ahead);
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (left, right, skip, sums, ahead);
            match self.0 {}
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::kernel::{Ahead, Kernel};
    use super::super::shape::{PANELS, VECTORS};
    use super::DotProduct;
    use core::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps, _mm512_set1_epi32};
    use std::mem::transmute;

    const LANES: usize = DotProduct::LANES;
    const HEIGHT: usize = DotProduct::HEIGHT;

    /// [`Kernel::multiply`], in the same loops as for f32.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn multiply<const V: usize>(
        left: &[u32],
        right: &[u32],
        skip: usize,
        sums: &mut [f32],
        ahead: Ahead<'_, u32>,
    ) {
        let ahead = ahead.steps(left.len() / HEIGHT);
        let right = right.as_chunks::<LANES>().0;
        let sums = &mut sums.as_chunks_mut::<LANES>().0[..(HEIGHT - 1) * PANELS * VECTORS + V];
        let mut tile: [[__m512; V]; HEIGHT] = std::array::from_fn(|i| {
            std::array::from_fn(|j| {
                // SAFETY: both types are 64 bytes, and all bit patterns are valid.
                unsafe { transmute::<[f32; LANES], __m512>(sums[i * PANELS * VECTORS + j]) }
            })
        });
        let lines = left.as_chunks::<HEIGHT>().0.iter().zip(right.chunks_exact(VECTORS));
        for (line, (left, right)) in lines.enumerate() {
            ahead.iter().for_each(|ahead| ahead.prefetch(line));
            let right = &right[skip..skip + V];
            for (sums, &factor) in tile.iter_mut().zip(left) {
                // SAFETY: both types are 64 bytes, and all bit patterns are valid.
                let factor: __m512bh = unsafe { transmute(_mm512_set1_epi32(factor.cast_signed())) };
                for (sum, &numbers) in sums.iter_mut().zip(right) {
                    // SAFETY: both types are 64 bytes, and all bit patterns are valid.
                    let numbers: __m512bh = unsafe { transmute::<[u32; LANES], _>(numbers) };
                    *sum = _mm512_dpbf16_ps(*sum, factor, numbers);
                }
            }
        }
        for (i, tile) in tile.into_iter().enumerate() {
            for (j, tile) in tile.into_iter().enumerate() {
                // SAFETY: both types are 64 bytes, and all bit patterns are valid.
                sums[i * PANELS * VECTORS + j] = unsafe { transmute::<__m512, [f32; LANES]>(tile) };
            }
        }
    }
}
