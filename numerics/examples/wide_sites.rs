//! The time from moments to factors, for sites and layers of real sizes with random content.
//!
//! ```text
//! cargo run --release -p cntlora-numerics --example wide_sites                # a table of widths and methods
//! cargo run --release -p cntlora-numerics --example wide_sites -- 4096 eva   # only these widths and methods
//! cargo run --release -p cntlora-numerics --example wide_sites -- llama       # every weight of a block of Llama 7B
//! cargo run --release -p cntlora-numerics --example wide_sites -- llama transport
//! ```
//!
//! Activations have one and a half rows per channel, so that covariances have full rank, variances that decay, a few loud channels and a
//! mean. Each time is the median of three, or a single one above five seconds. Nothing is read from files.

use cntlora_numerics::constraint::Coupling;
use cntlora_numerics::initializer::Initializer;
use cntlora_numerics::method::Method;
use cntlora_numerics::moments::Moments;
use cntlora_numerics::random::gaussian;
use faer::Mat;
use std::time::Instant;

/// From BERT small to the intermediate size of Llama 7B.
const WIDTHS: [usize; 6] = [384, 768, 1024, 2048, 4096, 11008];
const RANK: usize = 16;
/// Blocks of Llama 7B.
const BLOCKS: f64 = 32.0;

fn moments(width: usize) -> Moments {
    const ROWS: usize = 1024;
    let mut moments = Moments::new(width);
    let count = (3 * width / 2).div_ceil(ROWS);
    for part in 0..count {
        let plain = gaussian::<f32>(width, ROWS, part as u64, "rows");
        let rows = Mat::from_fn(ROWS, width, |i, j| {
            let loud = if j % 1000 == 7 { 100.0 } else { 1.0 };
            loud * (plain[(j, i)] / (1.0 + j as f32 / 64.0).sqrt() + 0.1)
        });
        moments.merge(&Moments::of(rows.as_ref()).expect("finite rows")).expect("the same width");
    }
    moments
}

/// Seconds.
fn time<T>(mut task: impl FnMut() -> T) -> (f64, T) {
    let mut one = || {
        let start = Instant::now();
        let result = task();
        (start.elapsed().as_secs_f64(), result)
    };
    let (first, mut result) = one();
    if first > 5.0 {
        return (first, result);
    }
    let mut times = vec![first];
    for _ in 0..2 {
        let (time, other) = one();
        times.push(time);
        result = other;
    }
    times.sort_unstable_by(f64::total_cmp);
    (times[1], result)
}

/// Seconds of a site, and of each of its weights.
fn measure(method: Method, coupling: Coupling, moments: &Moments, outputs: &[usize]) -> (f64, Vec<f64>) {
    let mut builder = Initializer::builder().method(method).rank(RANK);
    if method == Method::Cntlora {
        builder = builder.coupling(coupling);
    }
    let initializer = builder.build().expect("legal options");
    let (site_time, site) = if method.reads_activations() {
        time(|| initializer.site(moments).expect("a site"))
    } else {
        (0.0, initializer.site_without_activations().expect("a site"))
    };
    let layer = |&outputs: &usize| {
        // Row after row, as in a checkpoint.
        let weight = gaussian::<f32>(moments.width(), outputs, 2, "weight");
        time(|| {
            site.layer("layer", weight.transpose())
                .and_then(|layer| layer.factors_of_rank(RANK))
                .expect("factors")
        })
        .0
    };
    (site_time, outputs.iter().map(layer).collect())
}

const WAYS: [(&str, Method, Coupling); 6] = [
    ("cntlora", Method::Cntlora, Coupling::Uncorrelated),
    ("transport", Method::Cntlora, Coupling::Transport),
    ("pissa", Method::Pissa, Coupling::Uncorrelated),
    ("olora", Method::Olora, Coupling::Uncorrelated),
    ("eva", Method::Eva, Coupling::Uncorrelated),
    ("corda-ipm", Method::CordaIpm, Coupling::Uncorrelated),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--").collect();
    let threads = rayon::current_num_threads();
    if arguments.iter().any(|argument| argument == "llama") {
        let transport = arguments.iter().any(|argument| argument == "transport");
        let coupling = if transport { Coupling::Transport } else { Coupling::Uncorrelated };
        llama(coupling, threads);
        return;
    }
    let mut widths: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if widths.is_empty() {
        widths = WIDTHS.to_vec();
    }
    let ways = WAYS.iter().filter(|(name, ..)| {
        let named = |way: &str| arguments.iter().any(|argument| argument == way);
        named(name) || !WAYS.iter().any(|(other, ..)| named(other))
    });
    println!("seconds of a site + of a square layer at rank {RANK}, {threads} threads");
    print!("| width |");
    ways.clone().for_each(|(name, ..)| print!(" {name} |"));
    println!("\n| --- |{}", " --- |".repeat(ways.clone().count()));
    for width in widths {
        print!("| {width} |");
        let moments = moments(width);
        for (_, method, coupling) in ways.clone() {
            let (site, layers) = measure(*method, *coupling, &moments, &[width]);
            print!(" {site:.3} + {:.3} |", layers[0]);
        }
        println!();
    }
}

fn llama(coupling: Coupling, threads: usize) {
    const HIDDEN: usize = 4096;
    const INTERMEDIATE: usize = 11008;
    let sites: [(&str, usize, &[usize]); 4] = [
        ("q, k, v", HIDDEN, &[HIDDEN; 3]),
        ("o", HIDDEN, &[HIDDEN]),
        ("gate, up", HIDDEN, &[INTERMEDIATE; 2]),
        ("down", INTERMEDIATE, &[HIDDEN]),
    ];
    println!("a block of Llama 7B at rank {RANK}, {}, {threads} threads", coupling.name());
    println!("| weights | site, s | layers, s |\n| --- | --- | --- |");
    let mut total = 0.0;
    for (weights, width, outputs) in sites {
        let (site, layers) = measure(Method::Cntlora, coupling, &moments(width), outputs);
        let each: Vec<String> = layers.iter().map(|time| format!("{time:.2}")).collect();
        println!("| {weights} | {site:.2} | {} |", each.join(" + "));
        total += site + layers.iter().sum::<f64>();
    }
    println!("together {total:.1} s; all {BLOCKS} blocks {:.0} s", BLOCKS * total);
}
