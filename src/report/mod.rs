//! What happened, as one serialisable value, and its renderings. Knows nothing of running.

pub mod html;
pub mod table;
#[cfg(test)]
mod testing;
pub mod text;

pub use crate::adapter::REPORT_FILE;

use crate::element::Element;
use crate::method::Options;
use crate::plan::Skipped;
use crate::simd::Precision;
use crate::spread::Spread;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Version of [`Report`].
pub const SCHEMA_VERSION: u32 = 1;

/// What a run did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Version of this structure.
    pub schema_version: u32,
    /// Version of the tool.
    pub tool_version: String,
    /// Instruction set of the kernels.
    pub instruction_set: String,
    /// What Gram matrices were computed with.
    pub precision: Precision,
    /// The command line, where there was one.
    pub command: Option<String>,
    /// The model as it was named.
    pub model: PathBuf,
    /// The files that were read.
    pub inputs: InputFiles,
    /// How the factors came about.
    pub method: Options,
    /// Per site, in order of name.
    pub sites: Vec<SiteReport>,
    /// Per layer, in order of module name. Layers of rank 0 are listed too.
    pub layers: Vec<LayerReport>,
    /// What was left out, and why.
    pub skipped: Vec<Skipped>,
    /// Sites whose activations cannot be used, in order of name. Their modules have no adapter, and are not among the layers.
    #[serde(default)]
    pub unusable: Vec<UnusableSite>,
    /// How far the update may move the model and each layer, where that bounds the update.
    #[serde(default)]
    pub trust_region: Option<TrustRegion>,
    /// Number format in which the factors are stored.
    pub element: Element,
    /// Parameters of the adapter.
    pub parameters: u64,
    /// Seconds from the first row to the last factor.
    pub seconds: f64,
}

/// The files that a run read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFiles {
    /// The weights.
    pub checkpoint: Vec<InputFile>,
    /// Fine-tuning activations.
    pub activations: Vec<InputFile>,
    /// Pre-training activations.
    pub source: Vec<InputFile>,
}

/// Which version of which file was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// Path as it was opened.
    pub path: PathBuf,
    /// Length in bytes.
    pub bytes: u64,
    /// Time of last modification, in seconds since 1970; none for what is not a file.
    pub modified: Option<i64>,
    /// SHA-256 in hexadecimal digits, where the files of its kind are small enough together to be read once more.
    pub sha256: Option<String>,
}

/// What was measured at a site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteReport {
    /// Its name.
    pub name: String,
    /// Numbers per row.
    pub width: usize,
    /// Fine-tuning rows used.
    pub rows: u64,
    /// Pre-training rows used, if there were any.
    pub source_rows: Option<u64>,
    /// Rows that were left out because they held NaN or infinity.
    pub skipped_rows: u64,
    /// Largest damping used, relative to the mean square of a channel.
    pub damping: f64,
    /// Spread of the fine-tuning activations, if the method looks at them.
    pub spread: Option<Spread>,
    /// Spread of the pre-training activations, if there were any.
    pub source_spread: Option<Spread>,
    /// Distance between both, in units of the activations, where the coupling gives it: see
    /// [`Constraint::frechet_distance`](crate::constraint::Constraint::frechet_distance).
    pub frechet_distance: Option<f64>,
    /// Seconds for reading and Gram updates.
    pub moments_seconds: f64,
    /// Seconds for the factorizations of the site.
    pub constraint_seconds: f64,
}

/// A site whose activations cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnusableSite {
    /// Its name.
    pub name: String,
    /// The modules that have no adapter for that, in order of name.
    pub modules: Vec<String>,
    /// Why it cannot be used, in words.
    pub reason: String,
    /// The step that helps, in words.
    pub remedy: String,
}

/// How far the update may move the model: with start `update`, and without a strength of the user's own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustRegion {
    /// The share of its hidden states by which the model may move about, as it was asked for.
    pub model: f64,
    /// How many adapted layers follow one another; those that read the same input count once.
    pub depth: u64,
    /// The share of its own output by which each layer may move: `model / √depth`.
    pub layer: f64,
}

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerReport {
    /// Runtime module name.
    pub module: String,
    /// Name of its weight in the checkpoint.
    pub tensor: String,
    /// Its site.
    pub site: String,
    /// Output features.
    pub outputs: usize,
    /// Input features.
    pub inputs: usize,
    /// Rank that it got.
    pub rank: usize,
    /// Share of `|Δ F|²` that this rank keeps.
    pub energy_kept: f64,
    /// `|Δ F|²`.
    pub energy: f64,
    /// Whether the energy is exact or estimated from the residual check.
    pub energy_exact: bool,
    /// Strength `η`.
    pub strength: f64,
    /// Share of the layer's output, in root mean square, by which the update moves it.
    pub shift: f64,
    /// Units of rank whose singular value is zero but for rounding: they start with a zero column in `B` and an orthonormal
    /// row in `A`.
    #[serde(default)]
    pub empty_units: usize,
    /// Leading singular values of `Δ F`.
    pub singular_values: Vec<f64>,
    /// Largest residual of a singular triplet, relative to the first singular value; 0 for a dense decomposition.
    pub residual: f64,
    /// Seconds.
    pub seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Reports that were written before sites could be left out, before the trust region was one of the model, and before empty units
    /// were counted, are read as reports without any of these.
    #[test]
    fn older_reports_are_read() {
        let now = testing::report(vec![testing::layer("a", 8), testing::layer("b", 4)]);
        let mut value = serde_json::to_value(&now).unwrap();
        let take = |value: &mut Value, field: &str| {
            assert!(value.as_object_mut().unwrap().remove(field).is_some(), "{field}");
        };
        take(&mut value, "unusable");
        take(&mut value, "trust_region");
        for layer in value["layers"].as_array_mut().unwrap() {
            take(layer, "empty_units");
        }
        assert_eq!(serde_json::from_value::<Report>(value).unwrap(), now);
    }
}
