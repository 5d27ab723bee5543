//! Quality of updates from few rows, for each `--shrinkage` and `--channel-scale`.
//!
//! Updates of MiniLM's layers are made from the first rows of one recording and evaluated on another one. The goal of uncorrelated
//! coupling is outputs that stay at their mean, `(W + Δ) x = W μ`. The table has the share of the variance of the fresh outputs that a
//! product of rank 8 removes: `1 − E|(W + Δ) x − W μ|² / E|W x − W μ|²`, as the mean over the layers that read 384 channels. The other
//! columns are for the same layers with some channels a thousand times as large and their weights a thousand times as small, so that the
//! outputs are the same.
//!
//! `CNTLORA_MINILM=FOLDER cargo bench --bench few_rows`

use cntlora::constraint::{ChannelScale, Shrinkage};
use cntlora::factors::Start;
use cntlora::initializer::{Initializer, Statistics};
use faer::{Mat, MatRef};
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

const RANK: usize = 8;
/// Channels of the evaluated sites: all but the feed-forward outputs, which have 1536.
const WIDTH: usize = 384;
const ROWS: [usize; 4] = [WIDTH / 4, WIDTH / 2, WIDTH, 2 * WIDTH];
const OUTLIERS: [usize; 3] = [0, 1, 4];

/// A layer, its rows, and fresh rows.
struct Layer {
    name: String,
    weight: Mat<f32>,
    rows: Mat<f32>,
    fresh: Mat<f32>,
}

fn main() {
    // As a test, this only has to compile and start.
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
                let initializer = initializer(ridge, shrinkage, channel_scale);
                let shares = OUTLIERS.map(|outliers| {
                    let sum: f64 =
                        layers.iter().map(|layer| share(layer, count, outliers, &initializer)).sum();
                    format!("{:.3}", sum / layers.len() as f64)
                });
                let shares = shares.join(" | ");
                println!("| {count} | {ridge} | {shrinkage:?} | {channel_scale:?} | {shares} |");
            }
        }
    }
}

fn initializer(ridge: f64, shrinkage: Shrinkage, channel_scale: ChannelScale) -> Initializer {
    let builder =
        Initializer::builder().rank(RANK).ridge(ridge).shrinkage(shrinkage).channel_scale(channel_scale);
    // The whole product.
    builder.start(Start::Residual).build().expect("legal options")
}

/// Share of the variance of the fresh outputs that the product removes.
fn share(layer: &Layer, count: usize, outliers: usize, initializer: &Initializer) -> f64 {
    let width = layer.weight.ncols();
    // Outliers are not neighbours.
    let factor = |j: usize| if j % (width / 4) == 7 && j / (width / 4) < outliers { 1000f32 } else { 1.0 };
    let scaled = |rows: MatRef<'_, f32>| Mat::from_fn(rows.nrows(), width, |i, j| rows[(i, j)] * factor(j));
    let weight = Mat::from_fn(layer.weight.nrows(), width, |i, j| layer.weight[(i, j)] / factor(j));
    let mut statistics = Statistics::new(width);
    statistics.add(&scaled(layer.rows.subrows(0, count))).expect("finite rows");
    let site = initializer.site(&statistics).expect("usable rows");
    let factors = site
        .layer(layer.name.as_str(), weight.as_ref())
        .and_then(|layer| layer.factors())
        .expect("usable rows");

    let fresh = scaled(layer.fresh.as_ref());
    let output = &fresh * weight.transpose();
    let moved = &output + (&fresh * factors.a.transpose()) * factors.b.transpose();
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
        // Query, key and value read the same input.
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
