//! Orthogonal initialization: Datta, *Rethinking LoRA initialization*, 2024 (datta0.github.io/posts/rethink-lora-init), as PEFT's
//! `orthogonal`. Both factors are random and not zero, and their product is zero all the same: the rows of an orthogonal
//! matrix `Q (r × r)` are shared out between them.
//!
//! `A = (G₁ Q_odd)ᵀ / 10`, `B = G₂ᵀ Q_even / 10` with standard normal `G₁ (d × r/2)` and `G₂ (r/2 × m)`; `r` must be even.
//!
//! Differs from PEFT in the generator: each layer has a stream of its own, which follows from the seed and its name. PEFT has it
//! for linear layers and Conv1D only; here also for convolutions and fused experts, whose groups and experts each have a `Q` of
//! their own.

use super::{Nested, Options};
use crate::dense;
use crate::error::{Error, Result};
use crate::factors::Factors;
use crate::random;
use faer::{Mat, Par};

/// Factors of one layer, `W (m × d)`.
///
/// # Errors
/// [`Error::Combination`] for a rank below 2; what the decomposition returns.
pub(super) fn decompose(outputs: usize, inputs: usize, name: &str, options: &Options) -> Result<Nested> {
    const SIZE: f32 = 0.1;
    // A pair for each half of the rank: an odd full rank leaves one out.
    let half = options.fixed_rank(outputs.min(inputs)) / 2;
    if half == 0 {
        let (method, what) = (options.method.name(), "rank below 2".to_owned());
        return Err(Error::Combination { method, what, instead: "its factors come in pairs".into() });
    }
    let draw = |rows, columns, what: &str| {
        random::gaussian::<f32>(rows, columns, options.seed, &format!("{name} {what}"))
    };
    let rotation = dense::to_f64(draw(2 * half, 2 * half, "rotation").as_ref());
    let (q, _) = dense::thin_qr("the orthogonal matrix", rotation, Par::Seq)?;
    let q = dense::to_f32(q.as_ref());
    let every_second = |first: usize| Mat::from_fn(half, 2 * half, |i, j| SIZE * q[(2 * i + first, j)]);
    let a = (draw(inputs, half, "down") * every_second(0)).transpose().to_owned();
    let b = draw(half, outputs, "up").transpose() * every_second(1);
    Ok(Nested::of_no_energy(Factors { a, b }))
}
