//! Layers of a checkpoint without activations, for methods that use only weights.
//!
//! A checkpoint does not tell which matrices are linear layers. The user names them, or selects all. Matrices with the name of an
//! embedding or of the output head are excluded, as in PEFT's `all-linear`, unless the user names an embedding explicitly.

use super::Selection;
use super::naming::Naming;
use super::select::Selector;
use crate::storage::{Checkpoint, Problem, Problems};

/// Parts of names that belong to embedding tables and output heads.
const NO_LINEAR_LAYERS: [&str; 7] =
    ["embed", "wte", "wpe", "lm_head", "shared", "relative_attention_bias", "score"];

/// Ends of the names of embedding tables. Matrices called "embedder" are linear layers.
const TABLES: [&str; 10] = [
    "embed_tokens",
    "embed_positions",
    "embed_in",
    "embedding",
    "embeddings",
    "wte",
    "wpe",
    "shared",
    "relative_attention_bias",
    "embedding_table",
];

/// True if a name ends like that of an embedding table. `last` is the last part of the name of a module.
pub(super) fn is_table(last: &str) -> bool {
    TABLES.iter().any(|table| last.ends_with(table))
}

/// A weight that stands for the site of its module.
pub(super) struct StandIn {
    /// The name of the module in the checkpoint.
    pub module: String,
    /// Input features, or tokens.
    pub inputs: usize,
    /// True if it is the table of an embedding.
    pub is_table: bool,
}

/// All matrices that can be weights of linear layers, and the embedding tables that the user names.
pub(super) fn stand_ins(
    checkpoint: &Checkpoint,
    selector: &Selector<'_>,
    naming: &Naming<'_>,
) -> Vec<StandIn> {
    let stand_in = |name: &str| {
        let stored = checkpoint.get(name)?;
        let module = name.strip_suffix(".weight")?;
        // A name that the renames refuse is reported later.
        let is_named = naming.name(module).is_ok_and(|module| selector.names(&module));
        let &[first, second] = stored.tensor.shape.as_slice() else { return None };
        let last = module.rsplit('.').next().unwrap_or(module);
        let is_table = is_table(last) && is_named;
        if !is_table && NO_LINEAR_LAYERS.iter().any(|part| last.contains(part)) {
            return None;
        }
        let is_transposed = is_transposed(checkpoint, module) && checkpoint.quantized(name).is_none();
        let inputs = if is_table || is_transposed { first } else { second };
        let inputs = usize::try_from(inputs).ok().filter(|&inputs| inputs > 0)?;
        Some(StandIn { module: module.into(), inputs, is_table })
    };
    checkpoint.names().filter_map(stand_in).collect()
}

/// Returns whether a module is a Conv1D layer of a model like GPT-2, whose weights are stored as `[inputs, outputs]`. The shape of a
/// square weight does not tell.
pub(super) fn is_transposed(checkpoint: &Checkpoint, module: &str) -> bool {
    const FAMILIES: [&str; 4] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];
    const LAYERS: [&str; 4] = ["c_attn", "q_attn", "c_proj", "c_fc"];
    if checkpoint.is_in_memory() {
        return false;
    }
    let model_type = checkpoint.config().and_then(|config| config.get("model_type")?.as_str());
    let last = module.rsplit('.').next().unwrap_or(module);
    model_type.is_some_and(|model_type| FAMILIES.contains(&model_type)) && LAYERS.contains(&last)
}

/// Requires a selection of layers.
pub(super) fn check_selection(selection: &Selection, problems: &mut Problems) {
    if selection.targets.is_empty() && selection.include.is_empty() {
        problems.push(
            Problem::usage("without activations, the layers must be named")
                .help("give --target q_proj,v_proj or --target all-linear, or give --activations, which name the layers"),
        );
    }
}
