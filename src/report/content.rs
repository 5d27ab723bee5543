//! The fields of a report.

use crate::element::Element;
use crate::factors::LayerName;
use crate::method::Options;
use crate::plan::Skipped;
use crate::simd::Precision;
use crate::spread::Spread;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::path::PathBuf;

/// Version of [`Report`].
pub const SCHEMA_VERSION: u32 = 1;

/// The result of a run, without the factors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Version of this structure.
    #[serde(deserialize_with = "known_version")]
    pub schema_version: u32,
    /// Version of the tool.
    pub tool_version: String,
    /// Instruction set of the kernels.
    pub instruction_set: String,
    /// Arithmetic of the activation statistics.
    pub precision: Precision,
    /// The way in which rows of bf16 were multiplied, if not by the rules of [`Precision::F32`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bf16_products: Option<String>,
    /// The command line, if there was one.
    pub command: Option<String>,
    /// The model, as the user named it.
    pub model: PathBuf,
    /// The files that were read.
    pub inputs: InputFiles,
    /// The method and its options.
    pub method: Options,
    /// The sites, in order of name.
    pub sites: Vec<SiteReport>,
    /// The layers, in order of name. Layers of rank 0 are listed too.
    pub layers: Vec<LayerReport>,
    /// The layers and tensors that were left out, with reasons.
    pub skipped: Vec<Skipped>,
    /// Sites whose activations cannot be used, in order of name. Their modules have no adapter and are not among the layers.
    #[serde(default)]
    pub unusable: Vec<UnusableSite>,
    /// Bounds on the shift of the model and of each layer, if the update was bounded.
    #[serde(default)]
    pub trust_region: Option<TrustRegion>,
    /// Number format of the stored factors.
    pub element: Element,
    /// Number of parameters of the adapter.
    pub parameters: u64,
    /// Seconds from the first row to the last factor.
    pub seconds: f64,
}

impl Report {
    /// The arithmetic of the activation statistics, to print: `f32`, `bf16 matrix tiles`, …
    pub(super) fn arithmetic(&self) -> &str {
        match (self.precision, &self.bf16_products) {
            (Precision::F32, _) => "f32",
            (Precision::Bf16, Some(products)) => products,
            (Precision::Bf16, None) => "bf16 dot products",
        }
    }
}

fn known_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        SCHEMA_VERSION => Ok(SCHEMA_VERSION),
        other => Err(D::Error::custom(format!(
            "unsupported schema_version {other}: this version of cntlora reads {SCHEMA_VERSION}"
        ))),
    }
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

/// One input file, with enough detail to recognize its version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// Path as it was opened.
    pub path: PathBuf,
    /// Length in bytes.
    pub bytes: u64,
    /// Time of the last modification, in seconds since 1970; none if the input is not a file.
    pub modified: Option<i64>,
    /// SHA-256 in hexadecimal digits, if all files of this kind together are small enough to be read a second time.
    pub sha256: Option<String>,
}

/// Measurements at one site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteReport {
    /// Its name.
    pub name: String,
    /// True if embeddings read the site. Its `width` is then the size of the vocabulary, and `rows` and `source_rows` count tokens.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub embedding: bool,
    /// Numbers per row.
    pub width: usize,
    /// Fine-tuning rows used.
    pub rows: u64,
    /// Pre-training rows used, if there were any.
    pub source_rows: Option<u64>,
    /// Rows that were left out because they held NaN or infinity.
    pub skipped_rows: u64,
    /// Fine-tuning rows that are all zero, such as the padding of batches, among those used.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub zero_rows: u64,
    /// Pre-training rows that are all zero, among those used.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub source_zero_rows: u64,
    /// Largest damping used, relative to the mean square of a channel.
    pub damping: f64,
    /// Spread of the fine-tuning activations, if the method reads activations.
    pub spread: Option<Spread>,
    /// Spread of the pre-training activations, if there were any.
    pub source_spread: Option<Spread>,
    /// Distance between the two kinds of activations, in units of the activations, if the coupling gives one: see
    /// [`Constraint::frechet_distance`](crate::constraint::Constraint::frechet_distance).
    pub frechet_distance: Option<f64>,
    /// Seconds for reading and Gram updates.
    pub moments_seconds: f64,
    /// Seconds for the factorizations of the site.
    pub constraint_seconds: f64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A site whose activations cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnusableSite {
    /// Its name.
    pub name: String,
    /// The modules that have no adapter because of this, in order of name.
    pub modules: Vec<String>,
    /// Why the activations cannot be used.
    pub reason: String,
    /// The next step for the user.
    pub remedy: String,
}

/// Bounds on the shift of the model: for the start `update`, unless the user gave a strength.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustRegion {
    /// The requested shift of the model, as a share of its hidden states.
    pub model: f64,
    /// Number of adapted layers that follow one another. Layers that read the same input count once.
    pub depth: u64,
    /// The largest shift of each layer, as a share of its own output: `model / √depth`.
    pub layer: f64,
}

/// The result for one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerReport {
    /// Its module, by its name at run time.
    pub module: String,
    /// The number of its block, if the module has blocks: experts, or groups of a convolution. Older reports have it at the end of
    /// the module's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<usize>,
    /// Name of its weight in the checkpoint.
    pub tensor: String,
    /// Its site.
    pub site: String,
    /// Output features.
    pub outputs: usize,
    /// Input features.
    pub inputs: usize,
    /// Its rank.
    pub rank: usize,
    /// Share of `|Δ F|²` that this rank keeps.
    pub energy_kept: f64,
    /// `|Δ F|²`.
    pub energy: f64,
    /// True if the energy is exact, false if it is estimated from the residual check.
    pub energy_exact: bool,
    /// Strength `η`.
    pub strength: f64,
    /// Shift of the layer's output by the update, as a share of the output, in root mean square.
    pub shift: f64,
    /// Units of rank whose singular value is zero apart from rounding. They start with a zero column in `B` and an orthonormal
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

impl LayerReport {
    /// The identity of the layer.
    pub fn name(&self) -> LayerName {
        LayerName { module: self.module.clone(), block: self.block }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{block, layer, report};
    use super::*;
    use serde_json::Value;

    /// Older versions of the tool wrote reports without some of the fields. Those fields are then empty.
    #[test]
    fn reads_reports_of_older_versions() {
        let now = report(vec![layer("a", 8), layer("b", 4)]);
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

    #[test]
    fn blocks_of_older_reports_keep_their_names() {
        let expert = block("experts", 3);
        let mut older = serde_json::to_value(&expert).unwrap();
        assert_eq!((&older["module"], &older["block"]), (&"experts".into(), &3.into()));
        assert_eq!(serde_json::from_value::<LayerReport>(older.clone()).unwrap(), expert);
        older.as_object_mut().unwrap().remove("block");
        older["module"] = "experts.3".into();
        let older: LayerReport = serde_json::from_value(older).unwrap();
        assert_eq!(older.name().to_string(), expert.name().to_string());
    }
}
