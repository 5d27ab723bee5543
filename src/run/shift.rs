//! Divides the allowed shift of the model among its layers.
//!
//! The numerics bound the shift of one layer's output ([`Strength::MaxShift`]). Shifts accumulate along the depth of a model, because
//! each layer changes the inputs of the next layers. If the changes of consecutive layers are independent, their squares add up: `n`
//! layers shift the model by `√n` times the shift of one layer. So each layer gets `share / √n`.
//!
//! `n` is the number of consecutive adapted layers. Layers that read the same input are parallel and count once. The experts of a
//! layer also count once, because each token uses only a few of them.

use super::site::DecomposedLayer;
use crate::factors::{Start, Strength};
use crate::method::Options;
use crate::report::TrustRegion;
use std::collections::BTreeMap;

/// The division of the model's shift among the adapted layers. `None` if the start or the strength does not need it.
pub(super) fn divide<'a>(
    options: &Options,
    adapted: impl Iterator<Item = &'a DecomposedLayer<'a>>,
) -> Option<TrustRegion> {
    let (Strength::MaxShift(model), Start::Update) = (options.strength, options.start) else { return None };
    let depth = depth(adapted.map(|layer| (layer.site, layer.planned.name.module.as_str())));
    Some(TrustRegion { model, depth: depth as u64, layer: model / (depth.max(1) as f64).sqrt() })
}

/// The number of consecutive layers, from the site and the module of each layer.
fn depth<'a>(layers: impl Iterator<Item = (&'a str, &'a str)>) -> usize {
    // Sites of the same module, such as those of its experts, are parallel. The first module represents each site.
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

/// The module name with `*` in place of the number of an expert: `mlp.experts.*.up_proj`.
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
    fn depth_counts_consecutive_layers() {
        let of = |layers: &[(&str, &str)]| depth(layers.iter().copied());
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[("0.in", "0.q"), ("0.in", "0.k"), ("0.out", "0.o"), ("1.in", "1.q")]), 3);
        // Fused experts, recorded together or separately; and experts that are separate modules.
        let up = "0.mlp.experts.up_proj";
        assert_eq!(of(&[("a", up), ("a", up)]), 1);
        assert_eq!(of(&[("a", up), ("b", up), ("c", "0.mlp.experts.down_proj")]), 2);
        let experts =
            ["0.experts.0.w1", "0.experts.0.w3", "0.experts.11.w1", "0.experts.11.w3", "1.experts.0.w1"];
        let sites = ["a", "a", "b", "b", "c"];
        assert_eq!(of(&sites.into_iter().zip(experts).collect::<Vec<_>>()), 2);
        // Other numbers belong to consecutive layers.
        assert_eq!(of(&[("a", "blocks.0.conv.0"), ("b", "blocks.0.conv.1")]), 2);
    }
}
