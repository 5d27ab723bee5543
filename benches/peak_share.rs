//! Each way to the Gram matrix as a share of the processor's peak, measured in the same rounds.
//!
//! On a shared machine the clock and the neighbours change from second to second. So each round measures the
//! peak, then every way, one right after the other. The peak is that of the best round, because noise can only lower it.
//!
//! Prints the table of `benches/README.md`: per cent of the peak, the median of the rounds and in brackets
//! the best. `cargo bench --bench peak_share -- 20` for 20 rounds. `benches/peers.py` reads the table.

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod common;

use cntlora::simd::peak;
use common::{Problem, SITES, Way, median_and_best, rate, thread_counts};

fn main() {
    // As a test, this only has to compile and start.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let rounds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(10);
    let ways = Way::all();

    print!("| width | rows | threads | peak, GFLOP/s |");
    ways.iter().for_each(|way| print!(" {} |", way.name()));
    println!("\n|{}", " --- |".repeat(4 + ways.len()));
    for site in SITES {
        let mut problem = Problem::new(site);
        for threads in thread_counts() {
            let mut peaks = Vec::new();
            let mut rates = vec![Vec::new(); ways.len()];
            for _ in 0..rounds {
                peaks.push(rate(peak::operations(threads), || peak::run(threads)));
                for (&way, rates) in ways.iter().zip(&mut rates) {
                    rates.push(rate(site.operations(), || problem.run(way, threads)));
                }
            }
            let peak = median_and_best(peaks).1;
            print!("| {} | {} | {threads} | {:.0} |", site.width, site.rows, peak / 1e9);
            for (median, best) in rates.into_iter().map(median_and_best) {
                print!(" {:.1} ({:.1}) |", 100.0 * median / peak, 100.0 * best / peak);
            }
            println!();
        }
    }
}
