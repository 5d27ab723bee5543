//! The cost of reading: moments from a file, by `pread` and by a mapping, against the kernel on rows in memory.
//!
//! Each round does the same operations in each way, one right after the other, and the first round, which also brings the file into
//! the cache, is not counted. Prints the rate of each way in GFLOP/s, the median of the rounds and in brackets the best, and the
//! median of its shares of the kernel's rate in the same round.
//!
//! `cargo bench --bench streaming -- 12` for a file of 12 GB, in the folder for temporary files.

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod common;

use cntlora::activations::ActivationSet;
use cntlora::moments::Moments;
use cntlora::simd::{BLOCK_ROWS, Precision, Tier, Workspace};
use cntlora::storage::Access;
use common::{Problem, Site, Way, median_and_best, number, rate};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Hidden size of Llama 7B.
const WIDTH: usize = 4096;
const ROUNDS: usize = 3;

fn main() -> io::Result<()> {
    // As a test, this only has to compile and start.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let gigabytes: usize = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("layer.safetensors");
    let blocks = (gigabytes * 1_000_000_000 / (4 * WIDTH * BLOCK_ROWS)).max(1);
    write(&path, blocks)?;
    let site = Site { width: WIDTH, rows: blocks * BLOCK_ROWS };
    let mut problem = Problem::new(Site { width: WIDTH, rows: BLOCK_ROWS });
    let threads = rayon::current_num_threads();
    let in_memory = &mut || (0..blocks).for_each(|_| problem.run(Way::F32, threads));
    let by_pread = &mut || stream(&path, Access::Read, threads);
    let by_mapping = &mut || stream(&path, Access::Mmap, threads);
    let mut ways: [(&str, &mut dyn FnMut()); 3] =
        [("kernel", in_memory), ("pread", by_pread), ("mmap", by_mapping)];

    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        let rates: Vec<f64> = ways.iter_mut().map(|(_, way)| rate(site.operations(), way)).collect();
        if round > 0 {
            rounds.push(rates);
        }
    }
    println!("| {:.2} GB, {threads} threads | GFLOP/s | of the kernel |\n| --- | --- | --- |", {
        (4 * WIDTH * site.rows) as f64 / 1e9
    });
    for (way, (name, _)) in ways.iter().enumerate() {
        let (median, best) = median_and_best(rounds.iter().map(|rates| rates[way]).collect());
        let (share, _) = median_and_best(rounds.iter().map(|rates| rates[way] / rates[0]).collect());
        println!("| {name} | {:.0} ({:.0}) | {:.1} % |", median / 1e9, best / 1e9, 100.0 * share);
    }
    Ok(())
}

/// From a file to moments, as a run does it.
fn stream(path: &Path, access: Access, threads: usize) {
    let set = ActivationSet::open(&[path.into()], access).expect("it was written");
    let site = set.site("layer").expect("it was written");
    let mut moments = Moments::new(WIDTH);
    let mut workspace = Workspace::new(Tier::best(), Precision::F32).expect("every processor has it");
    rayon::scope(|_| {
        let mut blocks = set.blocks(site, site.spans(0..site.rows(), BLOCK_ROWS, Vec::new()));
        while let Some(block) = blocks.next().expect("it is there") {
            moments.add(block.rows, &mut workspace, threads).expect("the rows are finite");
        }
    });
    assert_eq!(moments.count(), site.rows());
}

/// The same block of rows many times.
fn write(path: &Path, blocks: usize) -> io::Result<()> {
    let (rows, length) = (blocks * BLOCK_ROWS, 4 * WIDTH * BLOCK_ROWS * blocks);
    let header =
        format!(r#"{{"layer":{{"dtype":"F32","shape":[{rows},{WIDTH}],"data_offsets":[0,{length}]}}}}"#);
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let block: Vec<u8> = (0..WIDTH * BLOCK_ROWS).flat_map(|index| number(index).to_le_bytes()).collect();
    (0..blocks).try_for_each(|_| file.write_all(&block))?;
    file.flush()
}
