//! How much of a layer an update learns from few rows, under each `--shrinkage` and `--channel-scale`.
//!
//! An update of MiniLM's layers is made from the first rows of one recording and judged on another one. Uncorrelated coupling asks for
//! outputs that stay at their mean, `(W + Δ) x = W μ`. The table has the share of the fresh outputs' variance that a product of rank 8
//! takes: `1 − E|(W + Δ) x − W μ|² / E|W x − W μ|²`, as the mean over the layers that read 384 channels. The other columns have it for the same
//! layers after some channels were made a thousand times as large, and their weights a thousand times as small: the outputs are the same.
//!
//! `CNTLORA_MINILM=FOLDER cargo bench --bench few_rows`

use cntlora::constraint::{ChannelScale, Evidence, Shrinkage};
use cntlora::factors::{Start, Strength};
use cntlora::method::{Options, cntlora as method};
use cntlora::moments::Moments;
use cntlora::rank::{Limits, Policy};
use faer::{Mat, MatRef, Par};
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

const RANK: usize = 8;
/// Channels of the sites that are looked at: all but the feed-forward outputs, which have 1536.
const WIDTH: usize = 384;
const ROWS: [usize; 4] = [WIDTH / 4, WIDTH / 2, WIDTH, 2 * WIDTH];
const OUTLIERS: [usize; 3] = [0, 1, 4];

/// A layer, the rows that it learns from, and fresh ones.
struct Layer {
    name: String,
    weight: Mat<f32>,
    rows: Mat<f32>,
    fresh: Mat<f32>,
}

fn main() {
    // Run as a test, this is to compile and start, no more.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let folder = std::env::var_os("CNTLORA_MINILM").expect("CNTLORA_MINILM names the folder of MiniLM");
    let layers: Vec<Layer> =
        layers(Path::new(&folder)).into_iter().filter(|layer| layer.weight.ncols() == WIDTH).collect();
    println!("{} layers of {WIDTH} channels\n", layers.len());
    println!("| rows | ridge | shrinkage | channel scale | no outliers | 1 outlier | 4 outliers |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (count, ridge) in ROWS.into_iter().flat_map(|count| [0.01, 0.1].map(|ridge| (count, ridge))) {
        for shrinkage in [Shrinkage::None, Shrinkage::Oas] {
            for channel_scale in [ChannelScale::Mean, ChannelScale::Median] {
                let options = options(ridge, shrinkage, channel_scale);
                let shares = OUTLIERS.map(|outliers| {
                    let sum: f64 = layers.iter().map(|layer| share(layer, count, outliers, &options)).sum();
                    format!("{:.3}", sum / layers.len() as f64)
                });
                let shares = shares.join(" | ");
                println!("| {count} | {ridge} | {shrinkage:?} | {channel_scale:?} | {shares} |");
            }
        }
    }
}

fn options(ridge: f64, shrinkage: Shrinkage, channel_scale: ChannelScale) -> Options {
    Options {
        ridge,
        shrinkage,
        channel_scale,
        // The whole product.
        start: Start::Residual,
        strength: Strength::Fixed(1.0),
        scale: 1.0,
        ranks: Policy::Fixed(RANK),
        limits: Limits { min: 0, max: RANK, multiple: 1 },
        ..Options::default()
    }
}

/// Share of the variance of the fresh outputs that the product takes.
fn share(layer: &Layer, count: usize, outliers: usize, options: &Options) -> f64 {
    let width = layer.weight.ncols();
    // Outliers stand apart from one another.
    let factor = |j: usize| if j % (width / 4) == 7 && j / (width / 4) < outliers { 1000f32 } else { 1.0 };
    let scaled = |rows: MatRef<'_, f32>| Mat::from_fn(rows.nrows(), width, |i, j| rows[(i, j)] * factor(j));
    let weight = Mat::from_fn(layer.weight.nrows(), width, |i, j| layer.weight[(i, j)] / factor(j));
    let target = Moments::of(scaled(layer.rows.subrows(0, count)).as_ref()).expect("finite rows");
    let evidence = Evidence { target: &target, source: None, change: None };
    let par = Par::rayon(0);
    let made = method::initialize(evidence, weight.as_ref(), &layer.name, options, par).expect("usable rows");

    let fresh = scaled(layer.fresh.as_ref());
    let output = &fresh * weight.transpose();
    let moved = &output + (&fresh * made.factors.a.transpose()) * made.factors.b.transpose();
    let mean: Vec<f64> =
        output.col_iter().map(|column| column.iter().map(|y| f64::from(*y)).sum::<f64>()).collect();
    let mean: Vec<f64> = mean.into_iter().map(|sum| sum / fresh.nrows() as f64).collect();
    let about_mean = |outputs: &Mat<f32>| -> f64 {
        let square = |j: usize| outputs.col(j).iter().map(|y| (f64::from(*y) - mean[j]).powi(2)).sum::<f64>();
        (0..mean.len()).map(square).sum()
    };
    1.0 - about_mean(&moved) / about_mean(&output)
}

fn layers(folder: &Path) -> Vec<Layer> {
    let read =
        |path: PathBuf| std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let model = read(folder.join("model/model.safetensors"));
    let shard =
        |number: usize| read(folder.join(format!("activations/target-0000{number}-of-00002.safetensors")));
    let [first, second] = [shard(1), shard(2)];
    let [model, first, second] =
        [&model, &first, &second].map(|file| SafeTensors::deserialize(file).expect("a safetensors file"));
    let sites = first.names().into_iter().map(str::to_owned);
    let layers = sites.flat_map(|site| {
        // One input is read by query, key and value.
        let modules = match site.strip_suffix("query") {
            Some(prefix) => ["query", "key", "value"].map(|name| format!("{prefix}{name}")).to_vec(),
            None => vec![site.clone()],
        };
        let (rows, fresh) = (matrix(&first, &site), matrix(&second, &site));
        modules.into_iter().map(move |name| (name, rows.clone(), fresh.clone())).collect::<Vec<_>>()
    });
    layers
        .map(|(name, rows, fresh)| Layer {
            weight: matrix(&model, &format!("{name}.weight")),
            name,
            rows,
            fresh,
        })
        .collect()
}

fn matrix(file: &SafeTensors<'_>, name: &str) -> Mat<f32> {
    let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    let &[rows, columns] = tensor.shape() else { panic!("{name} is not a matrix") };
    let bytes = tensor.data();
    let number = |index: usize| match tensor.dtype() {
        Dtype::F32 => f32::from_le_bytes(bytes[4 * index..][..4].try_into().expect("four bytes")),
        Dtype::BF16 => bf16::from_le_bytes(bytes[2 * index..][..2].try_into().expect("two bytes")).to_f32(),
        other => panic!("{name} has numbers of format {other:?}"),
    };
    Mat::from_fn(rows, columns, |i, j| number(i * columns + j))
}
