//! The demo's model: transformer blocks whose weights have decaying spectra, and inputs whose statistics differ between pre-training and
//! fine-tuning. The activations are computed by the model from these inputs.

use faer::{Mat, MatRef};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Number of blocks.
pub(crate) const HEIGHT: usize = 2;
/// Number of features between blocks.
const WIDTH: usize = 128;
/// Number of features inside the multilayer perceptrons.
const HIDDEN: usize = 512;
/// Number of rows that attend to each other.
const SEQUENCE: usize = 32;
/// Number of directions in which inputs mainly vary.
const TOPICS: usize = 24;

const SEED_OF_WEIGHTS: u64 = 1;
const SEED_OF_PRE_TRAINING: u64 = 2;
const SEED_OF_TUNING: u64 = 3;
const SEED_OF_LANGUAGE: u64 = 4;

/// Two blocks of attention and a multilayer perceptron.
pub(crate) struct Model {
    /// Weights, output by input features, by module name.
    pub(crate) weights: BTreeMap<String, Mat<f32>>,
}

/// The sites of a block: their names, and the modules that read them.
const SITES: [(&str, &[&str]); 4] = [
    ("attention.input", &["attention.query", "attention.key", "attention.value"]),
    ("attention.mixed", &["attention.output"]),
    ("mlp.input", &["mlp.up"]),
    ("mlp.hidden", &["mlp.down"]),
];

impl Model {
    /// Makes the model, with the same weights every time.
    pub(crate) fn new() -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(SEED_OF_WEIGHTS);
        let mut weights = BTreeMap::new();
        for block in 0..HEIGHT {
            for (_, modules) in SITES {
                for module in modules {
                    let (outputs, inputs) = match *module {
                        "mlp.up" => (HIDDEN, WIDTH),
                        "mlp.down" => (WIDTH, HIDDEN),
                        _ => (WIDTH, WIDTH),
                    };
                    weights.insert(name(block, module), decaying(&mut rng, outputs, inputs));
                }
            }
        }
        Self { weights }
    }

    /// The metadata that assigns modules to sites.
    pub(crate) fn sites_metadata() -> Value {
        let mut sites = BTreeMap::new();
        for block in 0..HEIGHT {
            for (site, modules) in SITES {
                let modules: Vec<String> = modules.iter().map(|module| name(block, module)).collect();
                sites.insert(name(block, site), modules);
            }
        }
        json!({ "format": "activations", "version": 1, "sites": sites })
    }

    /// Runs the model on inputs, one per row, and returns the inputs of each site.
    pub(crate) fn record(&self, inputs: &Mat<f32>) -> BTreeMap<String, Mat<f32>> {
        let mut sites = BTreeMap::new();
        let mut state = inputs.clone();
        for block in 0..HEIGHT {
            let apply = |module: &str, rows: &Mat<f32>| rows * self.weights[&name(block, module)].transpose();
            let input = normalized(&state);
            let mixed = attention(
                &apply("attention.query", &input),
                &apply("attention.key", &input),
                &apply("attention.value", &input),
            );
            state += apply("attention.output", &mixed);
            let mlp_input = normalized(&state);
            let mut hidden = apply("mlp.up", &mlp_input);
            hidden
                .col_iter_mut()
                .for_each(|column| column.iter_mut().for_each(|value| *value = value.max(0.0)));
            state += apply("mlp.down", &hidden);
            for ((site, _), rows) in SITES.into_iter().zip([input, mixed, mlp_input, hidden]) {
                sites.insert(name(block, site), rows);
            }
        }
        sites
    }
}

fn name(block: usize, part: &str) -> String {
    format!("blocks.{block}.{part}")
}

/// Inputs like those of the pre-training.
pub(crate) fn pre_training_inputs(rows: usize) -> Mat<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED_OF_PRE_TRAINING);
    let topics = gaussian(&mut ChaCha8Rng::seed_from_u64(SEED_OF_LANGUAGE), TOPICS, WIDTH);
    correlated(&mut rng, rows, &topics, 0.0)
}

/// Shards of inputs from another domain: some topics are the same, some are new, and the mean differs.
pub(crate) fn tuning_inputs<const SHARDS: usize>(rows: usize) -> [Mat<f32>; SHARDS] {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED_OF_TUNING);
    let mut topics = gaussian(&mut ChaCha8Rng::seed_from_u64(SEED_OF_LANGUAGE), TOPICS, WIDTH);
    let new = gaussian(&mut rng, TOPICS / 3, WIDTH);
    topics.as_mut().subrows_mut(0, TOPICS / 3).copy_from(&new);
    std::array::from_fn(|_| correlated(&mut rng, rows, &topics, 0.5))
}

/// Rows around a mean that vary along a few topics, and a little in every direction.
fn correlated(rng: &mut ChaCha8Rng, rows: usize, topics: &Mat<f32>, mean: f32) -> Mat<f32> {
    let mut weights = gaussian(rng, rows, topics.nrows());
    for topic in 0..weights.ncols() {
        let strength = decay(topic);
        weights.col_mut(topic).iter_mut().for_each(|weight| *weight *= strength);
    }
    let noise = gaussian(rng, rows, topics.ncols());
    let structure = weights * topics;
    Mat::from_fn(rows, topics.ncols(), |row, column| {
        let direction = if column % 2 == 0 { mean } else { -mean };
        structure[(row, column)] + 0.3 * noise[(row, column)] + direction
    })
}

/// A matrix with rows of about unit length, whose singular values decay as a power of their index.
fn decaying(rng: &mut ChaCha8Rng, outputs: usize, inputs: usize) -> Mat<f32> {
    let rank = outputs.min(inputs);
    let mut left = gaussian(rng, outputs, rank);
    let energy: f32 = (0..rank).map(|index| decay(index).powi(2)).sum();
    let unit = 1.0 / (energy * inputs as f32).sqrt();
    for index in 0..rank {
        left.col_mut(index).iter_mut().for_each(|value| *value *= decay(index) * unit);
    }
    left * gaussian(rng, rank, inputs)
}

fn decay(index: usize) -> f32 {
    (1.0 + index as f32).powf(-0.7)
}

fn gaussian(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Mat<f32> {
    Mat::from_fn(rows, columns, |_, _| StandardNormal.sample(rng))
}

/// Rows scaled to a root mean square of one.
fn normalized(rows: &Mat<f32>) -> Mat<f32> {
    let scale: Vec<f32> = rows
        .row_iter()
        .map(|row| {
            let squares: f32 = row.iter().map(|value| value * value).sum();
            1.0 / (squares / row.ncols() as f32 + 1e-6).sqrt()
        })
        .collect();
    Mat::from_fn(rows.nrows(), rows.ncols(), |row, column| rows[(row, column)] * scale[row])
}

/// One head of softmax attention within each sequence.
fn attention(queries: &Mat<f32>, keys: &Mat<f32>, values: &Mat<f32>) -> Mat<f32> {
    let mut mixed = Mat::zeros(values.nrows(), values.ncols());
    for start in (0..values.nrows()).step_by(SEQUENCE) {
        let length = SEQUENCE.min(values.nrows() - start);
        let part = |rows: &Mat<f32>| rows.subrows(start, length).to_owned();
        let scores = part(queries) * part(keys).transpose();
        mixed.subrows_mut(start, length).copy_from(softmax(scores.as_ref()) * part(values));
    }
    mixed
}

fn softmax(scores: MatRef<'_, f32>) -> Mat<f32> {
    let unit = 1.0 / (WIDTH as f32).sqrt();
    let mut weights = Mat::from_fn(scores.nrows(), scores.ncols(), |row, column| {
        let largest = scores.row(row).iter().copied().fold(f32::NEG_INFINITY, f32::max);
        ((scores[(row, column)] - largest) * unit).exp()
    });
    for row in weights.row_iter_mut() {
        let sum: f32 = row.as_ref().iter().sum();
        row.iter_mut().for_each(|weight| *weight /= sum);
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every module in the metadata has a weight that fits the recorded rows, and all values are moderate.
    #[test]
    fn activations_fit_the_model() {
        let model = Model::new();
        let sites = model.record(&pre_training_inputs(2 * SEQUENCE));
        let metadata = Model::sites_metadata();
        let mut modules = 0;
        for (site, rows) in &sites {
            assert!(rows.col_iter().all(|column| column.iter().all(|value| value.abs() < 1e3)), "{site}");
            for module in metadata["sites"][site].as_array().unwrap() {
                assert_eq!(model.weights[module.as_str().unwrap()].ncols(), rows.ncols());
                modules += 1;
            }
        }
        assert_eq!((sites.len(), modules), (8, 12));
        assert_eq!(model.weights.len(), 12);
    }

    #[test]
    fn attention_keeps_equal_values() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let (queries, keys) = (gaussian(&mut rng, 40, WIDTH), gaussian(&mut rng, 40, WIDTH));
        let mixed = attention(&queries, &keys, &Mat::full(40, WIDTH, 2.0));
        assert!(mixed.col_iter().all(|column| column.iter().all(|value| (value - 2.0).abs() < 1e-4)));
    }
}
