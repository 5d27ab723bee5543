//! The vector instructions of the processor, and the only place that runs kernels with them.

use pulp::{Scalar, Simd, WithSimd};
use std::fmt;
use std::sync::OnceLock;

/// A family of vector instructions. Every kernel exists for each of them.
///
/// All tiers give the same bits; they differ in speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// One number at a time, on any processor.
    Scalar,
    /// Arm: vectors of 128 bits.
    Neon,
    /// x86-64 with AVX2 and FMA: vectors of 256 bits.
    Avx2,
    /// x86-64 with AVX-512 F, BW, CD, DQ and VL: vectors of 512 bits.
    Avx512,
}

impl Tier {
    /// The fastest tier of this processor. The choice is logged once.
    pub fn best() -> Self {
        static BEST: OnceLock<Tier> = OnceLock::new();
        *BEST.get_or_init(|| {
            let best = Self::available().last().unwrap_or(Tier::Scalar);
            tracing::info!(instructions = best.name(), "chose kernels");
            best
        })
    }

    /// Every tier of this processor, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        let all = [Tier::Scalar, Tier::Neon, Tier::Avx2, Tier::Avx512];
        all.into_iter().filter(|tier| tier.instructions().is_some())
    }

    /// The name to print: `scalar`, `NEON`, `AVX2` or `AVX-512`.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Scalar => "scalar",
            Tier::Neon => "NEON",
            Tier::Avx2 => "AVX2",
            Tier::Avx512 => "AVX-512",
        }
    }

    /// The tier's instructions, if this processor has them.
    pub(super) fn instructions(self) -> Option<Instructions> {
        match self {
            Tier::Scalar => Some(Instructions::Scalar(Scalar)),
            #[cfg(target_arch = "aarch64")]
            Tier::Neon => pulp::aarch64::Neon::try_new().map(Instructions::Neon),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => pulp::x86::V3::try_new().map(Instructions::Avx2),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => pulp::x86::V4::try_new().map(Instructions::Avx512),
            #[allow(unreachable_patterns, reason = "some processors have all tiers of their family")]
            _ => None,
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A tier's instructions, with pulp's proof that this processor has them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Instructions {
    Scalar(Scalar),
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
}

impl Instructions {
    /// Runs a kernel as compiled for these instructions.
    #[inline]
    pub(super) fn run<Op: WithSimd>(self, op: Op) -> Op::Output {
        match self {
            Self::Scalar(simd) => Simd::vectorize(simd, op),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => Simd::vectorize(simd, op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => Simd::vectorize(simd, op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => Simd::vectorize(simd, op),
        }
    }

    /// How many f32 numbers one vector holds.
    pub(super) fn lanes(self) -> usize {
        struct Lanes;
        impl WithSimd for Lanes {
            type Output = usize;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _simd: S) -> usize {
                S::F32_LANES
            }
        }
        self.run(Lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The best tier has the widest vectors, and every processor has a tier.
    #[test]
    fn the_best_tier_is_the_widest_available() {
        let lanes = |tier: Tier| tier.instructions().map(Instructions::lanes);
        assert_eq!(Tier::available().next(), Some(Tier::Scalar));
        assert_eq!(lanes(Tier::best()), Tier::available().map(lanes).max().flatten());
    }
}
