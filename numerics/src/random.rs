//! Reproducible random numbers: one seed, and one stream for each name.

use faer::Mat;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Open01, StandardNormal};

/// The generator of a name under a seed. The streams of two names are independent, so adding a layer to a model does not change other
/// layers.
pub fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    // FNV-1a: spreads names over the streams of the generator; it does not need to be hard to invert.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(hash);
    generator
}

/// A matrix of independent standard normal numbers, filled column after column.
pub fn gaussian<T: faer::traits::RealField>(rows: usize, columns: usize, seed: u64, name: &str) -> Mat<T> {
    let mut generator = stream(seed, name);
    let mut out = Mat::zeros(rows, columns);
    for j in 0..columns {
        for i in 0..rows {
            let value: f64 = StandardNormal.sample(&mut generator);
            out[(i, j)] = faer::traits::math_utils::from_f64(value);
        }
    }
    out
}

/// A matrix of independent numbers that are uniform in (−1, 1), filled column after column.
pub fn uniform(rows: usize, columns: usize, seed: u64, name: &str) -> Mat<f32> {
    let mut generator = stream(seed, name);
    let mut out = Mat::zeros(rows, columns);
    for j in 0..columns {
        for i in 0..rows {
            let value: f32 = Open01.sample(&mut generator);
            out[(i, j)] = 2.0 * value - 1.0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The start of a layer depends only on the seed and on its name.
    #[test]
    fn streams_belong_to_seed_and_name() {
        let matrix = |seed, name| gaussian::<f64>(3, 2, seed, name);
        assert_eq!(matrix(0, "a"), matrix(0, "a"));
        assert_ne!(matrix(0, "a"), matrix(0, "b"));
        assert_ne!(matrix(0, "a"), matrix(1, "a"));
    }

    #[test]
    fn numbers_are_uniform() {
        let sample = uniform(100, 100, 7, "moments");
        let mean = sample.as_ref().sum() / 1e4;
        let square = sample.as_ref().squared_norm_l2() / 1e4;
        assert!(sample.norm_max() < 1.0 && mean.abs() < 0.02, "{mean}");
        assert!((square - 1.0 / 3.0).abs() < 0.02, "{square}");
    }

    #[test]
    fn numbers_are_standard_normal() {
        let sample = gaussian::<f64>(100, 100, 7, "moments");
        let mean = sample.as_ref().sum() / 1e4;
        let square = sample.as_ref().squared_norm_l2() / 1e4;
        assert!(mean.abs() < 0.05, "{mean}");
        assert!((square - 1.0).abs() < 0.05, "{square}");
    }
}
