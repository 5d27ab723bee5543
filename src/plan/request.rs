//! The request of a user: inputs, options and limits.

use super::{Rename, Room};
use crate::element::Element;
use crate::method::Options;
use crate::simd::Precision;
use crate::storage::Access;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The request of a user.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Checkpoint folder or file.
    pub model: PathBuf,
    /// Fine-tuning activations: files and folders. Methods that use only weights take only the module names from them. Without
    /// activations, these methods take the module names from the checkpoint.
    pub activations: Vec<PathBuf>,
    /// Moments files that replace the fine-tuning activations.
    pub moments: Vec<PathBuf>,
    /// Pre-training activations. Without activations and moments, the source statistics are isotropic.
    pub source: Vec<PathBuf>,
    /// Moments files that replace the pre-training activations.
    pub source_moments: Vec<PathBuf>,
    /// The layers to adapt.
    pub selection: Selection,
    /// Rules that turn module names into checkpoint names.
    pub renames: Vec<Rename>,
    /// Rules for the names of modules in the adapter. They come before all other uses of the names.
    #[serde(default)]
    pub adapter_renames: Vec<Rename>,
    /// Method and options. Here [`Strength::MaxShift`](crate::factors::Strength::MaxShift) is the share for the whole model.
    pub method: Options,
    /// The treatment of rows with NaN or infinity.
    pub nonfinite: Nonfinite,
    /// Precision of the Gram matrices.
    pub precision: Precision,
    /// Number format of the stored factors.
    pub element: Element,
    /// The way to read files.
    pub access: Access,
    /// Number of threads.
    pub threads: usize,
    /// Memory limit in bytes, if there is one.
    pub max_memory: Option<u64>,
    /// The memory that the system leaves to this process, if it limits it. It is not saved with the request.
    #[serde(skip)]
    pub room: Option<Room>,
    /// True if a site with unusable activations ends the run. Otherwise the run continues without the site.
    #[serde(default)]
    pub strict: bool,
}

impl Request {
    /// A request with default options: every recorded module, f32, one thread.
    pub fn new(model: PathBuf, activations: Vec<PathBuf>) -> Self {
        Self {
            model,
            activations,
            moments: Vec::new(),
            source: Vec::new(),
            source_moments: Vec::new(),
            selection: Selection::default(),
            renames: Vec::new(),
            adapter_renames: Vec::new(),
            method: Options::default(),
            nonfinite: Nonfinite::default(),
            precision: Precision::default(),
            element: Element::F32,
            access: Access::default(),
            threads: 1,
            max_memory: None,
            room: None,
            strict: false,
        }
    }
}

impl Request {
    /// True if there are fine-tuning activations, or their moments.
    pub(super) fn has_target(&self) -> bool {
        !self.activations.is_empty() || !self.moments.is_empty()
    }

    /// True if there are pre-training activations, or their moments.
    pub(super) fn has_source(&self) -> bool {
        !self.source.is_empty() || !self.source_moments.is_empty()
    }
}

/// The layers to adapt. Empty lists select all recorded modules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Module names or suffixes, as PEFT's `target_modules` list understands them; `all-linear` for all.
    pub targets: Vec<String>,
    /// Regular expressions. At least one must match a part of the module name.
    pub include: Vec<String>,
    /// Regular expressions. None may match a part of the module name.
    pub exclude: Vec<String>,
}

/// The treatment of rows with NaN or infinity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nonfinite {
    /// An error that names file, tensor, row and column.
    #[default]
    Refuse,
    /// Such rows are skipped, and counted in the report.
    SkipRows,
}
