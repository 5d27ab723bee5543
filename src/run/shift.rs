//! From the shift that the user allows the model to the share that each layer gets.
//!
//! The numerics bound the shift of one layer's output ([`Strength::MaxShift`]). Shifts add up along the depth of a model: each layer
//! changes the inputs of those after it. If the changes of layers that follow one another are independent, their squares add up, so
//! that `n` of them move the model by the `√n` of what each moves. So each layer gets `share / √n`.
//!
//! `n` counts the adapted layers that follow one another. Layers that read the same input are beside one another and count once, and so
//! do the experts of a layer, of which each token takes a few.

use super::site::DecomposedLayer;
use super::unusable::module;
use crate::factors::{Start, Strength};
use crate::method::Options;
use crate::report::TrustRegion;
use std::collections::BTreeMap;

/// How the shift that is allowed to the model is divided among the layers that get an adapter; none where nothing is divided.
pub(super) fn divide<'a>(
    options: &Options,
    adapted: impl Iterator<Item = &'a DecomposedLayer<'a>>,
) -> Option<TrustRegion> {
    let (Strength::MaxShift(model), Start::Update) = (options.strength, options.start) else { return None };
    let depth = depth(adapted.map(|layer| (layer.site, module(layer.planned))));
    Some(TrustRegion { model, depth: depth as u64, layer: model / (depth.max(1) as f64).sqrt() })
}

/// How many of these layers, each with its site and its module, follow one another.
fn depth<'a>(layers: impl Iterator<Item = (&'a str, &'a str)>) -> usize {
    // Sites whose layers are of one module, such as those of its experts, are beside one another: the first module stands for all.
    let mut first_of_site: BTreeMap<&str, String> = BTreeMap::new();
    for (site, module) in layers {
        let module = without_expert(module);
        let first = first_of_site.entry(site).or_insert_with(|| module.clone());
        if module < *first {
            *first = module;
        }
    }
    let mut modules: Vec<String> = first_of_site.into_values().collect();
    modules.sort();
    modules.dedup();
    modules.len()
}

/// The name of a module with `*` for the number of an expert: `mlp.experts.*.up_proj`.
fn without_expert(module: &str) -> String {
    let mut after_experts = false;
    let parts = module.split('.').map(|part| {
        let is_number = after_experts && !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        after_experts = part == "experts";
        if is_number { "*" } else { part }
    });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_follow_one_another_are_counted() {
        let of = |layers: &[(&str, &str)]| depth(layers.iter().copied());
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[("0.in", "0.q"), ("0.in", "0.k"), ("0.out", "0.o"), ("1.in", "1.q")]), 3);
        // Fused experts, recorded together and each on its own; and experts that are modules themselves.
        let up = "0.mlp.experts.up_proj";
        assert_eq!(of(&[("a", up), ("a", up)]), 1);
        assert_eq!(of(&[("a", up), ("b", up), ("c", "0.mlp.experts.down_proj")]), 2);
        let experts =
            ["0.experts.0.w1", "0.experts.0.w3", "0.experts.11.w1", "0.experts.11.w3", "1.experts.0.w1"];
        let sites = ["a", "a", "b", "b", "c"];
        assert_eq!(of(&sites.into_iter().zip(experts).collect::<Vec<_>>()), 2);
        // Numbers elsewhere are of layers that follow one another.
        assert_eq!(of(&[("a", "blocks.0.conv.0"), ("b", "blocks.0.conv.1")]), 2);
    }
}
