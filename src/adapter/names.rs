//! Names of files, and names of tensors in adapter files.

use super::format::SingleFile;
use crate::factors::LayerShape;

/// The file with the tensors of a PEFT adapter.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";
/// The configuration of a PEFT adapter. It is written last: if it is present, the adapter is complete.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file beside an adapter with the report of its run.
pub const REPORT_FILE: &str = "report.json";

/// The prefix of every tensor name in a PEFT adapter.
pub(super) const PREFIX: &str = "base_model.model.";
/// The suffix of a down matrix.
pub(super) const A_SUFFIX: &str = ".lora_A.weight";
/// The suffix of an up matrix.
pub(super) const B_SUFFIX: &str = ".lora_B.weight";
/// The suffix of a scale in kohya's format.
pub(super) const ALPHA_SUFFIX: &str = ".alpha";

/// The suffixes of `A` and `B` in a PEFT adapter.
pub(super) fn suffixes(shape: &LayerShape) -> [&'static str; 2] {
    match shape {
        // PEFT stores them as parameters and not as layers.
        LayerShape::Embedding => [".lora_embedding_A", ".lora_embedding_B"],
        _ => [A_SUFFIX, B_SUFFIX],
    }
}

/// The prefix of tensor names, and the suffixes of `A` and `B`; `None` stands for PEFT.
pub(super) fn affixes(format: Option<SingleFile>) -> (&'static str, [&'static str; 2]) {
    match format {
        None => (PREFIX, [A_SUFFIX, B_SUFFIX]),
        Some(SingleFile::Diffusers) => ("", [A_SUFFIX, B_SUFFIX]),
        Some(SingleFile::Kohya) => ("", [".lora_down.weight", ".lora_up.weight"]),
    }
}

/// The file with the tensors of an adapter for mlx-lm.
pub(super) const MLX_FILE: &str = "adapters.safetensors";

/// The files of adapters in all formats, without records. Those that complete an adapter come first, because old files are removed in this
/// order.
pub(super) fn adapter_files() -> impl Iterator<Item = &'static str> {
    last_files().chain([TENSORS_FILE, MLX_FILE])
}

/// The files that complete an adapter. Writers put them in place last.
pub(super) fn last_files() -> impl Iterator<Item = &'static str> {
    [CONFIG_FILE].into_iter().chain(SingleFile::ALL.map(SingleFile::file_name))
}
