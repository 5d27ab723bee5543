//! Adapters in memory, and writing them in any format.

use super::folder::OutputFolder;
use super::names::last_files;
use super::{Contents, Format, StagedAdapter, peft, single_file};
use crate::factors::{Factors, LayerName, LayerShape};
use crate::storage::{Problem, Problems};
use std::collections::BTreeMap;
use std::path::Path;

/// The factors of all layers, and the scale `s` that they share.
pub struct Adapter {
    /// Factors by layer.
    pub layers: BTreeMap<LayerName, Factors>,
    /// How the weights of layers are stored. Layers that are missing here are linear.
    pub shapes: BTreeMap<LayerName, LayerShape>,
    /// The adapter adds `scale · B A`.
    pub scale: f64,
    /// The value for `base_model_name_or_path` in the configuration.
    pub base: String,
}

impl Adapter {
    /// How the weight of a layer is stored.
    pub fn shape(&self, layer: &LayerName) -> &LayerShape {
        self.shapes.get(layer).unwrap_or(&LayerShape::Linear)
    }

    /// The adapter with the opposite update. With both adapters, the base computes the same as without them.
    pub fn negated(&self) -> Self {
        let negated = |factors: &Factors| Factors { a: factors.a.clone(), b: -&factors.b };
        Self {
            layers: self.layers.iter().map(|(layer, factors)| (layer.clone(), negated(factors))).collect(),
            shapes: self.shapes.clone(),
            scale: self.scale,
            base: self.base.clone(),
        }
    }
}

/// Writes an adapter into a folder.
///
/// The folder is created if its parent exists. An adapter in it is replaced, in whatever format it is. The record `cntlora.json` is
/// written too: the provenance, and the hash of the tensors. The same arguments give the same bytes.
///
/// All files are complete before the first is put in place. Of an old adapter, the file that completes it is removed first. So there
/// is never a configuration beside tensors of another adapter.
///
/// # Errors
/// - Data: no layers, factors whose shapes do not fit, numbers that are not finite before or after rounding, modules whose names are
///   equal in the format.
/// - Usage: a scale that is not positive, a number format other than F32, F16 and BF16, a layer that the format does not support.
/// - I/O: problems of writing.
pub fn write_adapter(folder: &Path, contents: &Contents<'_>, format: Format) -> Result<(), Problems> {
    Ok(stage_adapter(folder, contents, format)?.commit()?)
}

/// Does the same as [`write_adapter`], up to the point where old files change.
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

/// True if the adapter in a folder is complete: the file that is written last is present.
pub fn is_complete(folder: &Path) -> bool {
    last_files().any(|name| folder.join(name).exists())
}

/// Removes the file that completes an adapter, in whatever format it is. Call this before its base changes.
///
/// # Errors
/// An I/O problem if the file cannot be removed.
pub fn retire(folder: &Path) -> Result<(), Problem> {
    if folder.is_dir() {
        let output = OutputFolder::open(folder)?;
        last_files().try_for_each(|name| output.remove(name))?;
    }
    Ok(())
}
