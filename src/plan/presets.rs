//! Guesses the renames that transformers 5 makes when it loads a checkpoint, for models of unknown type: from runtime module names to names
//! on disk. `families` knows the renames of known types.
//!
//! Source: `conversion_mapping.py` of transformers 5.23. Models that only gain or lose a
//! prefix, such as the towers of CLIP, SigLIP and LLaVA, need no entry, because the lookup tries prefixes anyway.

use regex::Regex;
use std::sync::LazyLock;

/// One family of models: regular expressions and replacements, applied in order.
type Family = &'static [(&'static str, &'static str)];

/// ViT, DeiT and BEiT; also DINOv2, which keeps `encoder.layer` at run time and renames only the attention.
const VISION_TRANSFORMERS: Family = &[
    (r"(^|\.)layers\.(\d+)\.", "${1}encoder.layer.${2}."),
    (r"\.attention\.q_proj$", ".attention.attention.query"),
    (r"\.attention\.k_proj$", ".attention.attention.key"),
    (r"\.attention\.v_proj$", ".attention.attention.value"),
    (r"\.attention\.o_proj$", ".attention.output.dense"),
    (r"\.mlp\.fc1$", ".intermediate.dense"),
    (r"\.mlp\.fc2$", ".output.dense"),
];

/// LLaVA, PaliGemma, Gemma 3, InternVL and Mistral 3.
const LANGUAGE_MODEL_INSIDE: Family = &[(r"^(model\.)?language_model\.", "language_model.model.")];

/// Qwen2-VL and Qwen2.5-VL.
const LANGUAGE_MODEL_AT_ROOT: Family = &[(r"^(model\.)?language_model\.", "model.")];

/// The SwiGLU of DINOv2. The other two weights share one tensor, see `stored`.
const DINOV2_SWIGLU: Family = &[(r"\.mlp\.down_proj$", ".mlp.weights_out")];

/// Mixtral and MiniMax. `stored` finds their experts one by one.
const SPARSE_EXPERTS: Family = &[(r"\.mlp\.experts\.", ".block_sparse_moe.experts.")];

/// Towers of CLIP and SigLIP inside other models, as saved by older versions.
const VISION_TOWER: Family = &[(r"^(model\.)?vision_tower\.", "vision_tower.vision_model.")];

static COMPILED: LazyLock<Vec<Vec<(Regex, &'static str)>>> = LazyLock::new(|| {
    let compile = |pattern| Regex::new(pattern).expect("the patterns above are valid");
    [
        VISION_TRANSFORMERS,
        LANGUAGE_MODEL_INSIDE,
        LANGUAGE_MODEL_AT_ROOT,
        DINOV2_SWIGLU,
        SPARSE_EXPERTS,
        VISION_TOWER,
    ]
    .map(|family| family.iter().map(|&(pattern, replacement)| (compile(pattern), replacement)).collect())
    .into()
});

/// Possible names of a module on disk, one for each family that renames it.
pub(super) fn names_on_disk(module: &str) -> impl Iterator<Item = String> {
    COMPILED.iter().filter_map(move |family| {
        let name = super::renames::rename(family, module)?;
        (name != module).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::super::families::names_at_run_time;
    use super::super::names::{Names, Tensor};
    use super::super::renames::Renames;
    use std::collections::BTreeMap;

    /// Resolves all modules in a checkpoint with exactly the expected tensors.
    #[track_caller]
    fn check(pairs: &[(&str, &str)]) {
        let renames = Renames::new(&[]).unwrap();
        let modules = || pairs.iter().map(|&(module, _)| module);
        let names = Names::new(pairs.iter().map(|&(_, tensor)| tensor), modules(), &renames);
        for &(module, tensor) in pairs {
            assert_eq!(names.resolve(module), Ok(tensor), "{module}");
        }
    }

    /// Every linear layer of small models of each family, as saved by transformers (`tests/golden/names.py`). Each layer finds its
    /// own weight. Layers without a tensor of their own find none. All this holds with the configuration of the model, and for most
    /// families without it too.
    #[test]
    fn names_match_checkpoints_of_transformers() {
        const NEED_CONFIG: [&str; 2] = ["gpt-neox", "nemotron-h"];
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Family {
            modules: BTreeMap<String, Option<String>>,
            others: Vec<String>,
            config: serde_json::Value,
        }
        let text = include_str!("../../tests/golden/names.json");
        let families: BTreeMap<String, Family> = serde_json::from_str(text).unwrap();
        assert!(families.len() >= 20, "{}", families.len());
        for (name, Family { modules, others, config }) in families {
            let renames = Renames::new(&[]).unwrap();
            let recorded = || modules.keys().map(String::as_str);
            let tensors = || modules.values().flatten().chain(&others).map(String::as_str);
            let stored: Vec<(String, &str)> = tensors().map(|name| (name.to_owned(), name)).collect();
            let at_run_time = names_at_run_time(&config, &stored);
            let at_run_time = at_run_time.iter().map(|(name, stored)| Tensor { name, stored });
            let at_run_time = Names::new(at_run_time, recorded(), &renames);
            let with_config =
                Names::new(tensors(), recorded(), &renames).with_names_at_run_time(&at_run_time);
            let without = Names::new(tensors(), recorded(), &renames);
            let is_guessed = !NEED_CONFIG.contains(&name.as_str());
            for (module, tensor) in &modules {
                assert_eq!(with_config.resolve(module).ok(), tensor.as_deref(), "{name}: {module}");
                if is_guessed {
                    assert_eq!(without.resolve(module).ok(), tensor.as_deref(), "{name}: {module}");
                }
            }
        }
    }

    /// Older checkpoints of LLaVA contain the inner name of the tower.
    #[test]
    fn towers_inside_other_models() {
        check(&[
            (
                "model.vision_tower.encoder.layers.0.self_attn.q_proj",
                "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
            ),
            (
                "model.language_model.layers.0.self_attn.q_proj",
                "language_model.model.layers.0.self_attn.q_proj.weight",
            ),
        ]);
    }

    #[test]
    fn vision_transformers() {
        check(&[
            ("vit.layers.0.attention.q_proj", "vit.encoder.layer.0.attention.attention.query.weight"),
            ("vit.layers.0.attention.k_proj", "vit.encoder.layer.0.attention.attention.key.weight"),
            ("vit.layers.0.attention.v_proj", "vit.encoder.layer.0.attention.attention.value.weight"),
            ("vit.layers.0.attention.o_proj", "vit.encoder.layer.0.attention.output.dense.weight"),
            ("vit.layers.0.mlp.fc1", "vit.encoder.layer.0.intermediate.dense.weight"),
            ("vit.layers.0.mlp.fc2", "vit.encoder.layer.0.output.dense.weight"),
            ("vit.layers.10.mlp.fc2", "vit.encoder.layer.10.output.dense.weight"),
            ("classifier", "classifier.weight"),
        ]);
    }

    /// A model without a head can use the checkpoint of the model with a head, and vice versa.
    #[test]
    fn vision_transformers_with_another_prefix() {
        check(&[
            ("layers.0.attention.q_proj", "deit.encoder.layer.0.attention.attention.query.weight"),
            ("layers.0.attention.o_proj", "deit.encoder.layer.0.attention.output.dense.weight"),
            ("layers.0.mlp.fc2", "deit.encoder.layer.0.output.dense.weight"),
        ]);
        check(&[("beit.layers.0.mlp.fc1", "encoder.layer.0.intermediate.dense.weight")]);
    }

    #[test]
    fn dinov2() {
        check(&[
            (
                "dinov2.encoder.layer.0.attention.q_proj",
                "dinov2.encoder.layer.0.attention.attention.query.weight",
            ),
            (
                "dinov2.encoder.layer.0.attention.o_proj",
                "dinov2.encoder.layer.0.attention.output.dense.weight",
            ),
            ("dinov2.encoder.layer.0.mlp.fc1", "dinov2.encoder.layer.0.mlp.fc1.weight"),
        ]);
    }

    #[test]
    fn towers_of_clip_and_siglip() {
        check(&[(
            "encoder.layers.0.self_attn.q_proj",
            "text_model.encoder.layers.0.self_attn.q_proj.weight",
        )]);
        check(&[
            ("encoder.layers.0.mlp.fc1", "vision_model.encoder.layers.0.mlp.fc1.weight"),
            ("head.mlp.fc1", "vision_model.head.mlp.fc1.weight"),
        ]);
    }

    #[test]
    fn language_model_inside() {
        check(&[
            (
                "model.language_model.layers.0.self_attn.q_proj",
                "language_model.model.layers.0.self_attn.q_proj.weight",
            ),
            ("model.vision_tower.encoder.layers.0.mlp.fc1", "vision_tower.encoder.layers.0.mlp.fc1.weight"),
            ("model.multi_modal_projector.linear_1", "multi_modal_projector.linear_1.weight"),
            ("lm_head", "language_model.lm_head.weight"),
        ]);
        check(&[("language_model.layers.0.mlp.up_proj", "language_model.model.layers.0.mlp.up_proj.weight")]);
    }

    #[test]
    fn language_model_at_root() {
        check(&[
            ("model.language_model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj.weight"),
            ("model.visual.blocks.0.attn.qkv", "visual.blocks.0.attn.qkv.weight"),
            ("lm_head", "lm_head.weight"),
        ]);
    }
}
