//! The plan of a run: sites, layers and estimates.

use super::{Nonfinite, Shard, SideBySide, cost, shard};
use crate::element::Element;
use crate::factors::{LayerName, LayerShape};
use crate::initializer;
use crate::method::Options;
use crate::simd::Precision;
use crate::storage::Piece;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The plan of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The model, as the user named it.
    pub model: PathBuf,
    /// The sites, sorted by name, each with its layers.
    pub sites: Vec<PlannedSite>,
    /// Modules without an adapter, and the reasons.
    pub skipped: Vec<Skipped>,
    /// Tensors of adapted layers that other recorded modules read too. Searched only for a residual start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<SharedTensor>,
    /// Notes for the user, about names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Method and options of the initialization.
    pub method: Options,
    /// The treatment of rows with NaN or infinity.
    pub nonfinite: Nonfinite,
    /// True if a site with unusable activations ends the run. Otherwise the run continues without the site.
    #[serde(default)]
    pub strict: bool,
    /// Precision of the Gram matrices.
    pub precision: Precision,
    /// Number format of the stored factors.
    pub element: Element,
    /// Number of threads.
    pub threads: usize,
    /// Numbers of sites that are processed at the same time.
    #[serde(flatten)]
    pub side_by_side: SideBySide,
    /// Peak memory in bytes, estimated from the shapes.
    pub peak_memory: u64,
    /// Floating-point operations, estimated from the shapes.
    pub work: Work,
}

impl Plan {
    /// The layers of all sites.
    pub fn layers(&self) -> impl Iterator<Item = &PlannedLayer> {
        self.sites.iter().flat_map(|site| &site.layers)
    }

    /// The share of one site in [`Self::work`].
    pub fn site_work(&self, site: &PlannedSite) -> Work {
        cost::work(std::slice::from_ref(site), &self.method)
    }

    /// The sites of one part of a divided run. Each site belongs to one part, and all parts have about the same work.
    pub fn sites_of(&self, shard: Shard) -> Vec<&PlannedSite> {
        shard::sites_of(self, shard)
    }
}

impl PlannedSite {
    /// True if the decompositions of this site use one thread.
    pub fn is_narrow(&self) -> bool {
        initializer::is_narrow(self.width)
    }
}

/// A site, and the layers that read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedSite {
    /// Its name in the activation files.
    pub name: String,
    /// Numbers per row.
    pub width: usize,
    /// Fine-tuning rows, or tokens.
    pub rows: u64,
    /// Pre-training rows, if there are any.
    pub source_rows: Option<u64>,
    /// Rows to read, fine-tuning and pre-training together. Rows with known moments do not count.
    pub rows_to_read: u64,
    /// Bytes of activations or moments to read.
    pub bytes: u64,
    /// Bytes of the images that patches are cut from: one image of each kind of activations is in memory while rows are read.
    pub image_bytes: u64,
    /// The number of classes of tokens, for a site whose activations are token counts: see
    /// [`token_classes`](crate::constraint::token_classes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<u64>,
    /// The layers that read it, sorted by module name.
    pub layers: Vec<PlannedLayer>,
}

/// A layer that gets an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedLayer {
    /// Its module. For a block of a module, such as an expert, also the number of the block.
    #[serde(flatten)]
    pub name: LayerName,
    /// The place of its weight in the checkpoint: consecutive pieces.
    pub weight: Vec<Piece>,
    /// The layout of the stored weight.
    pub shape: LayerShape,
    /// Number format of the weight. F32 for a quantized weight, which is computed in it.
    pub element: Element,
    /// The format of a quantized weight in words, such as `NF4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// Output features `m`.
    pub outputs: usize,
    /// Input features `d`.
    pub inputs: usize,
    /// Largest possible rank of its module.
    pub max_rank: usize,
}

impl PlannedLayer {
    /// Names of the tensors with its weight.
    pub fn tensors(&self) -> String {
        self.weight.iter().map(|piece| piece.tensor.as_str()).collect::<Vec<_>>().join(" + ")
    }
}

/// A module or site without an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Module or site.
    pub name: String,
    /// The reason, in words.
    pub reason: String,
}

/// A tensor of an adapted layer, and another recorded module that reads it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SharedTensor {
    /// The tensor.
    pub tensor: String,
    /// The other module, which gets no adapter.
    pub module: String,
}

/// Floating-point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Gram updates.
    pub moments: f64,
    /// Factorizations per site, and operators and decompositions per layer.
    pub factors: f64,
}
