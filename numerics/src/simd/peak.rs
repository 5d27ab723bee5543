//! The peak speed of the processor: fused multiply-adds of f32 between registers, with the best tier of vectors. The speed of the kernels
//! is stated as a share of it.

use super::Tier;
use pulp::{Simd, WithSimd};
use std::hint::black_box;
use std::time::Instant;

/// Independent chains, enough to hide the latency of an instruction.
const CHAINS: usize = 24;
const LINKS: usize = 1_000_000;

struct Chains;

impl WithSimd for Chains {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (factor, term) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.001)));
        let mut chains = [simd.splat_f32s(0.5); CHAINS];
        for _ in 0..LINKS {
            for chain in &mut chains {
                *chain = simd.mul_add_f32s(*chain, factor, term);
            }
        }
        black_box(chains.into_iter().map(|chain| simd.reduce_sum_f32s(chain)).sum::<f32>());
    }
}

/// Runs the chains on each of several threads: some milliseconds.
pub fn run(threads: usize) {
    let chains = || {
        if let Some(instructions) = Tier::best().instructions() {
            instructions.run(Chains);
        }
    };
    // The caller is one of the threads: where it only waits, another one may be started on its processor beside a second one.
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(chains);
        }
        chains();
    });
}

/// Floating-point operations of one [`run`].
pub fn operations(threads: usize) -> u64 {
    let lanes = Tier::best().instructions().map_or(1, super::tier::Instructions::lanes);
    (2 * CHAINS * LINKS * lanes * threads) as u64
}

/// Operations per second on this many threads, the best of a few runs, because other work on the machine can only lower it.
pub fn rate(threads: usize) -> f64 {
    const RUNS: usize = 3;
    let once = || {
        let start = Instant::now();
        run(threads);
        operations(threads) as f64 / start.elapsed().as_secs_f64()
    };
    (0..RUNS).map(|_| once()).fold(0.0, f64::max)
}
