//! The numerics inside another program: from rows in memory to the factors of layers. No file is read or written.
//!
//! ```text
//! cargo run --release --no-default-features --example embed
//! ```

use cntlora::faer::{Mat, MatRef};
use cntlora::half::bf16;
use cntlora::{Error, Initializer, Policy, Rows, Statistics, Values};

const WIDTH: usize = 256;

fn main() -> Result<(), Error> {
    // A program has rows of activations that two weights read, in any pieces.
    let rows = Mat::from_fn(3000, WIDTH, |i, j| number(i, j) + 0.5 * number(i, j / 2));
    let query = Mat::from_fn(WIDTH, WIDTH, |i, j| 0.05 * number(i + 7, j));
    let value = Mat::from_fn(64, WIDTH, |i, j| 0.05 * number(i + 11, j));
    let mut statistics = Statistics::new(WIDTH);
    statistics.add(rows.subrows(0, 2000))?;
    statistics.add(rows.subrows(2000, 1000))?;

    // One rank for all layers.
    let initializer = Initializer::builder().rank(16).build()?;
    let layer = initializer.site(&statistics)?.layer("query", query.as_ref())?;
    let factors = layer.factors()?;
    println!("query: A {:?}, B {:?}", factors.a.shape(), factors.b.shape());

    // 16 000 parameters, spent where they keep most of the updates.
    let initializer = Initializer::builder().ranks(Policy::Budget(16_000)).max_rank(32).build()?;
    let site = initializer.site(&statistics)?;
    let layers = [site.layer("query", query.as_ref())?, site.layer("value", value.as_ref())?];
    for (layer, rank) in layers.iter().zip(initializer.ranks(&layers)?) {
        let kept = 100.0 * layer.energy_kept(rank);
        println!("{}: rank {rank} keeps {kept:.0} % of the update's energy", layer.name());
        let factors = layer.factors_of_rank(rank)?;
        println!("{}: A {:?}, B {:?}", layer.name(), factors.a.shape(), factors.b.shape());
    }

    // The fast path: rows of bf16 in a buffer, row after row, are added without a copy, and on all threads.
    let buffer: Vec<bf16> =
        (0..3000 * WIDTH).map(|at| bf16::from_f32(rows[(at / WIDTH, at % WIDTH)])).collect();
    let mut statistics = Statistics::new(WIDTH);
    statistics.add(Rows { values: Values::Bf16(&buffer), rows: 3000, width: WIDTH, stride: WIDTH })?;
    // Weights as they are stored in a checkpoint, row after row.
    let stored: Vec<f32> = (0..64 * WIDTH).map(|at| value[(at / WIDTH, at % WIDTH)]).collect();
    let layer =
        initializer.site(&statistics)?.layer("value", MatRef::from_row_major_slice(&stored, 64, WIDTH))?;
    println!("value: largest rank {}", layer.largest_rank());
    Ok(())
}

/// A number from −1 to 1 that looks random.
fn number(i: usize, j: usize) -> f32 {
    let mixed = (i as u64 * 0x9e37_79b9 + j as u64 * 0x85eb_ca6b).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}
