//! The micro-kernel: one tile of the Gram matrix of a block, kept in registers from the first row to the last.

use pulp::Simd;

/// Width of a panel, in vectors.
pub(super) const VECTORS: usize = 3;

/// Numbers in the largest tile of any kernel: 8 rows of 3 vectors of 16.
pub(super) const LARGEST_TILE: usize = 8 * VECTORS * 16;

/// Multiplies packed panels.
pub(super) trait Kernel: Copy {
    /// The word of a panel: an f32, or the bf16 of two rows.
    type Word: Copy;
    /// Numbers in a vector of f32.
    const LANES: usize;
    /// Rows of a tile; divides the width of a panel.
    const HEIGHT: usize;
    /// True if the panels hold centred rows.
    const CENTRED: bool;

    /// One tile: the products of the columns `first .. first + HEIGHT` of the panel `left` with the vectors of
    /// columns `skip .. skip + V` of the panel `right`, summed over all lines.
    ///
    /// `tile` takes `HEIGHT` rows of `V` vectors. `meanwhile` is called up to `HEIGHT` times, evenly spread over the
    /// lines.
    fn multiply<const V: usize>(
        self,
        left: &[Self::Word],
        first: usize,
        right: &[Self::Word],
        skip: usize,
        tile: &mut [f32],
        meanwhile: impl FnMut(),
    );
}

/// The number of lines between two calls of `meanwhile`.
#[inline(always)]
pub(super) fn lines_between_calls<K: Kernel>(panel_len: usize) -> usize {
    (panel_len / (VECTORS * K::LANES)).div_ceil(K::HEIGHT)
}

/// Fused multiply-adds of f32.
#[derive(Clone, Copy)]
pub(super) struct Fused<S, const HEIGHT: usize>(pub S);

impl<S: Simd, const HEIGHT: usize> Kernel for Fused<S, HEIGHT> {
    type Word = f32;
    const LANES: usize = S::F32_LANES;
    const HEIGHT: usize = HEIGHT;
    const CENTRED: bool = true;

    #[inline(always)]
    fn multiply<const V: usize>(
        self,
        left: &[f32],
        first: usize,
        right: &[f32],
        skip: usize,
        tile: &mut [f32],
        mut meanwhile: impl FnMut(),
    ) {
        let simd = self.0;
        let lines = lines_between_calls::<Self>(left.len());
        let right = S::as_simd_f32s(right).0;
        let mut sums = [[simd.splat_f32s(0.0); V]; HEIGHT];
        for (left, right) in left.chunks(lines * VECTORS * S::F32_LANES).zip(right.chunks(lines * VECTORS)) {
            meanwhile();
            for (left, right) in left.chunks_exact(VECTORS * S::F32_LANES).zip(right.chunks_exact(VECTORS)) {
                let (left, right) = (&left[first..first + HEIGHT], &right[skip..skip + V]);
                for (sums, &factor) in sums.iter_mut().zip(left) {
                    let factor = simd.splat_f32s(factor);
                    for (sum, &numbers) in sums.iter_mut().zip(right) {
                        *sum = simd.mul_add_f32s(factor, numbers, *sum);
                    }
                }
            }
        }
        let tile = &mut S::as_mut_simd_f32s(tile).0[..HEIGHT * V];
        for (vectors, sums) in tile.chunks_exact_mut(V).zip(sums) {
            for (vector, sum) in vectors.iter_mut().zip(sums) {
                *vector = sum;
            }
        }
    }
}
