//! The ranks of all layers, chosen from all spectra. All blocks of a module have the same rank.

use super::site::DecomposedLayer;
use crate::error::Result;
use crate::method::Options;
use crate::rank::{self, Layer};

/// The rank of each layer, in their order. A group of a convolution gets its share of the module's rank.
///
/// # Errors
/// As [`rank::allocate`].
pub(super) fn allocate(layers: &[DecomposedLayer<'_>], options: &Options) -> Result<Vec<usize>> {
    let layers: Vec<(&str, Layer<'_>)> = layers
        .iter()
        .map(|layer| {
            let parts = layer.planned.shape.parts();
            (layer.planned.name.module.as_str(), Layer { parts, ..layer.draft.as_layer(options.start) })
        })
        .collect();
    rank::allocate_by_module(options.ranks, options.limits, &layers)
}
