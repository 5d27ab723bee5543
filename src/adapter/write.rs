//! Adapters in memory, and writing them in any format.

use super::names::last_files;
use super::{Component, Contents, Format, SingleFile, Staged};
use crate::factors::{Factors, LayerName, LayerShape};
use crate::storage::Problems;
use std::collections::BTreeMap;
use std::path::Path;

/// The factors of all layers, and the scale `s` that they share.
pub struct Adapter {
    /// Factors by layer.
    pub layers: BTreeMap<LayerName, Factors>,
    /// How the weights of layers are stored. Layers that are missing here are linear.
    pub shapes: BTreeMap<LayerName, LayerShape>,
    /// The components of layers, for an adapter of several components of a pipeline. The names of such layers begin with the name that
    /// diffusers has for the component. Layers that are missing here have no component in their name.
    pub components: BTreeMap<LayerName, Component>,
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

    /// The component of a layer and the name of its module there, for an adapter of several components.
    pub(super) fn component_of<'a>(&self, layer: &'a LayerName) -> Option<(Component, &'a str)> {
        let component = *self.components.get(layer)?;
        Some((component, layer.module.strip_prefix(component.prefix(SingleFile::Diffusers))?))
    }

    /// The adapter with the opposite update. With both adapters, the base computes the same as without them.
    pub fn negated(&self) -> Self {
        let negated = |factors: &Factors| Factors { a: factors.a.clone(), b: -&factors.b };
        Self {
            layers: self.layers.iter().map(|(layer, factors)| (layer.clone(), negated(factors))).collect(),
            shapes: self.shapes.clone(),
            components: self.components.clone(),
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
/// The folder is replaced as a whole: at every moment, it holds the old adapter or the new one. Other files in it stay.
///
/// # Errors
/// Those of [`Staged::adapter`]; an I/O problem if the folder cannot be replaced.
pub fn write_adapter(folder: &Path, contents: &Contents<'_>, format: Format) -> Result<(), Problems> {
    let mut staged = Staged::create(&[folder])?;
    staged.adapter(folder, contents, format)?;
    Ok(staged.commit()?)
}

/// True if the adapter in a folder is complete: the file that is written last is present.
pub fn is_complete(folder: &Path) -> bool {
    last_files().any(|name| folder.join(name).exists())
}
