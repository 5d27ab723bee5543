//! The numerics inside another program: from rows in memory to the factors of a layer. No file is touched.
//!
//! ```text
//! cargo run --release --no-default-features --example embed
//! ```

use cntlora::constraint::{Constraint, Evidence};
use cntlora::error::Result;
use cntlora::method::{Options, cntlora as method};
use cntlora::moments::Moments;
use cntlora::random;
use cntlora::rank::{self, Limits, Policy};
use faer::{Mat, Par};

fn main() -> Result<()> {
    // What a program has: activations of one input, 3000 rows of 256 numbers, recorded in two pieces; and the two
    // weights that read it.
    let mixing = random::gaussian::<f32>(256, 256, 1, "mixing") * faer::Scale(0.1);
    let rows = random::gaussian::<f32>(3000, 256, 1, "rows") * (mixing + Mat::<f32>::identity(256, 256));
    let query = random::gaussian::<f32>(256, 256, 1, "query") * faer::Scale(0.05);
    let value = random::gaussian::<f32>(64, 256, 1, "value") * faer::Scale(0.05);

    // Moments of pieces merge into moments of the whole.
    let mut moments = Moments::of(rows.subrows(0, 2000))?;
    moments.merge(&Moments::of(rows.subrows(2000, 1000))?)?;

    // 16 000 parameters, spent where they keep most of the updates.
    let options = Options {
        ranks: Policy::Budget(16_000),
        limits: Limits { min: 1, max: 32, multiple: 1 },
        ..Options::default()
    };
    let evidence = Evidence { target: &moments, source: None, change: None };
    let constraint = Constraint::new(evidence, options.terms(), Par::Seq)?;
    let weights = [("query", &query), ("value", &value)];
    let updates = weights
        .iter()
        .map(|(name, weight)| method::decompose(&constraint, weight.as_ref(), name, &options, Par::Seq))
        .collect::<Result<Vec<_>>>()?;
    let layers: Vec<_> = updates.iter().map(|update| update.as_layer(options.start)).collect();
    let ranks = rank::allocate(options.ranks, options.limits, &layers)?;

    for (((name, _), update), rank) in weights.iter().zip(&updates).zip(ranks) {
        let made = update.components.initialize(rank, options.strength, options.start, options.scale)?;
        println!(
            "{name}: A {:?}, B {:?}, {:.0} % of the update's energy, moves the output by {:.1} %",
            made.factors.a.shape(),
            made.factors.b.shape(),
            100.0 * update.as_layer(options.start).energy_kept(rank),
            100.0 * made.shift,
        );
    }
    Ok(())
}
