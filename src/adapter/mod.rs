//! Adapters as files: the writer and the reader of PEFT folders, the residual base, and the check that re-reads what
//! was written. How the factors came about is not known here.

mod config;
mod contents;
mod convert;
#[cfg(test)]
mod faults;
mod folder;
mod modules;
mod peft;
mod read;
mod record;
mod replace;
mod residual;
mod single_file;
mod staged;
#[cfg(test)]
mod testing;
mod verify;

pub use config::{Config, Patterns, Targets};
pub use contents::Contents;
pub use convert::{Conversion, convert};
pub use folder::refuse_occupied;
pub use peft::other_modules;
pub use read::{PeftAdapter, PeftLayer};
pub use record::{FileRecord, Origin, RECORD_FILE, record_heading, recorded_layer};
pub use residual::{
    AdaptedWeight, StagedBase, refuse_model_folder, stage_residual_base, write_residual_base,
};
pub use single_file::{Component, SingleFile, refuse_shapes_without_place};
pub use staged::{Staged, StagedAdapter, anchor_of, default_base};
pub use verify::{Check, Outcome, Verification, verify};

use crate::element::Element;
use crate::factors::{Factors, LayerShape};
use crate::storage::{Problem, Problems};
use faer::MatRef;
use folder::OutputFolder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The tensors of a PEFT adapter.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";
/// The configuration of a PEFT adapter. It is written last: its presence means that the adapter is complete.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file beside an adapter that holds the report of its run.
pub const REPORT_FILE: &str = "report.json";

/// The factors of all layers, by runtime module name, and the scale `s` that they share.
pub struct Adapter {
    /// Factors by module name.
    pub layers: BTreeMap<String, Factors>,
    /// How the weights of the layers are stored that are not stored as those of linear layers.
    pub shapes: BTreeMap<String, LayerShape>,
    /// The adapter adds `scale · B A`.
    pub scale: f64,
    /// `base_model_name_or_path` of its configuration.
    pub base: String,
}

impl Adapter {
    /// How the weight of a layer is stored.
    pub fn shape(&self, module: &str) -> &LayerShape {
        self.shapes.get(module).unwrap_or(&LayerShape::Linear)
    }

    /// The adapter that takes away what this one adds. Beside it, the base computes what it does without either.
    pub fn negated(&self) -> Self {
        let negated = |factors: &Factors| Factors { a: factors.a.clone(), b: -&factors.b };
        Self {
            layers: self.layers.iter().map(|(module, factors)| (module.clone(), negated(factors))).collect(),
            shapes: self.shapes.clone(),
            scale: self.scale,
            base: self.base.clone(),
        }
    }
}

/// How an adapter is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A folder of PEFT.
    #[default]
    Peft,
    /// One file, for this part of a pipeline.
    SingleFile(SingleFile, Component),
}

/// Writes an adapter into a folder, in a format.
///
/// The folder is created if its parent exists; an adapter in it is replaced, in whatever format it is. `cntlora.json` is written with
/// it, the provenance with the hash of the tensors added. The same arguments give the same bytes.
///
/// # Errors
/// Data: no layer, a factor whose shape does not fit, a value that is not finite, or not after rounding, names of modules that differ
/// only where those of the format do not. Usage: a scale that is not positive, a number format other than F32, F16 and BF16, a layer
/// for which the format has no place. I/O: what writing meets. All files are complete before the first is put in place, and the old
/// file that completed an adapter goes before its tensors do: there is never a configuration beside tensors that it was not written
/// for.
pub fn write_adapter(folder: &Path, contents: &Contents<'_>, format: Format) -> Result<(), Problems> {
    Ok(stage_adapter(folder, contents, format)?.commit()?)
}

/// As [`write_adapter`] up to the point where old files change.
///
/// # Errors
/// Those of [`write_adapter`].
pub fn stage_adapter<'a>(
    folder: &'a Path,
    contents: &Contents<'_>,
    format: Format,
) -> Result<StagedAdapter<'a>, Problems> {
    match format {
        Format::Peft => peft::stage(folder, contents),
        Format::SingleFile(format, component) => single_file::stage(folder, contents, (format, component)),
    }
}

/// Whether a folder holds the file that a writer puts in place last: the adapter in it is complete.
pub fn is_complete(folder: &Path) -> bool {
    last_files().any(|name| folder.join(name).exists())
}

/// Removes the file that makes an adapter complete, in whatever format it is: to be done before the base that it belongs to
/// changes.
///
/// # Errors
/// An I/O problem if it cannot be removed.
pub fn retire(folder: &Path) -> Result<(), Problem> {
    if folder.is_dir() {
        let output = OutputFolder::open(folder)?;
        last_files().try_for_each(|name| output.remove(name))?;
    }
    Ok(())
}

/// The files that the writers put in place last.
fn last_files() -> impl Iterator<Item = &'static str> {
    [CONFIG_FILE].into_iter().chain(SingleFile::ALL.map(SingleFile::file_name))
}

/// The key prefix of every tensor of a PEFT adapter.
const PREFIX: &str = "base_model.model.";
/// The key suffix of a down matrix.
const A_SUFFIX: &str = ".lora_A.weight";
/// The key suffix of an up matrix.
const B_SUFFIX: &str = ".lora_B.weight";

/// What stands after the name of a module with a weight of this shape, for `A` and for `B`.
fn suffixes(shape: &LayerShape) -> [&'static str; 2] {
    match shape {
        // Parameters and not layers, in PEFT.
        LayerShape::Embedding => [".lora_embedding_A", ".lora_embedding_B"],
        _ => [A_SUFFIX, B_SUFFIX],
    }
}

/// Refuses factors that make no update.
fn check_shapes(factors: &Factors) -> Result<(), Problem> {
    let Factors { a, b } = factors;
    if a.nrows() > 0 && a.ncols() > 0 && b.nrows() > 0 && a.nrows() == b.ncols() {
        return Ok(());
    }
    let (a, b) = ((a.nrows(), a.ncols()), (b.nrows(), b.ncols()));
    Err(Problem::data(format!(
        "expected factors A (rank, inputs) and B (outputs, rank) with a rank of 1 or more, found {a:?} and {b:?}"
    )))
}

/// The numbers of a factor in the number format of a file, row by row.
fn encode(factor: MatRef<'_, f32>, element: Element) -> Vec<u8> {
    let mut bytes = Vec::new();
    let places = (0..factor.nrows()).flat_map(|i| (0..factor.ncols()).map(move |j| (i, j)));
    element.encode(places.map(|place| f64::from(factor[place])), &mut bytes);
    bytes
}
