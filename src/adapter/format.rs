//! The formats of adapters, with the names that they give to files and modules.

use crate::storage::safetensors::Header;
use serde::{Deserialize, Serialize};

/// Starts of names in kohya's format.
const KOHYA_STARTS: [&str; 2] = ["lora_unet_", "lora_te"];

/// The format of an adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A PEFT folder.
    #[default]
    Peft,
    /// A single file, for a component of a pipeline.
    SingleFile(SingleFile, Component),
    /// A folder for mlx-lm.
    Mlx,
}

/// The format of a single-file adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SingleFile {
    /// The format of diffusers.
    Diffusers,
    /// The format of kohya's scripts, and of the user interfaces that follow them.
    Kohya,
}

/// The component of a pipeline that is adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// The UNet.
    Unet,
    /// The transformer, in pipelines without a UNet.
    Transformer,
    /// The text encoder, or the first of two text encoders.
    TextEncoder,
    /// The second text encoder.
    TextEncoder2,
}

impl Component {
    /// All components.
    pub const ALL: [Self; 4] = [Self::Unet, Self::Transformer, Self::TextEncoder, Self::TextEncoder2];

    /// Its name in options and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Transformer => "transformer",
            Self::TextEncoder => "text-encoder",
            Self::TextEncoder2 => "text-encoder-2",
        }
    }

    /// Its folder in a pipeline of diffusers.
    pub(super) fn folder(self) -> &'static str {
        self.prefix(SingleFile::Diffusers).trim_end_matches('.')
    }

    /// The name of a module after the prefix.
    pub(super) fn name_of(self, module: &str) -> String {
        let is_text_encoder = matches!(self, Self::TextEncoder | Self::TextEncoder2);
        let inner = if is_text_encoder && module.starts_with("encoder.layers.") { "text_model." } else { "" };
        format!("{inner}{module}")
    }

    /// The prefix of the names of modules.
    pub(super) fn prefix(self, format: SingleFile) -> &'static str {
        match (format, self) {
            (SingleFile::Diffusers, Self::Unet) => "unet.",
            (SingleFile::Diffusers, Self::Transformer) => "transformer.",
            (SingleFile::Diffusers, Self::TextEncoder) => "text_encoder.",
            (SingleFile::Diffusers, Self::TextEncoder2) => "text_encoder_2.",
            (SingleFile::Kohya, Self::Unet | Self::Transformer) => "lora_unet_",
            (SingleFile::Kohya, Self::TextEncoder) => "lora_te_",
            (SingleFile::Kohya, Self::TextEncoder2) => "lora_te2_",
        }
    }
}

/// The prefix of the first of two text encoders, in kohya's format.
pub(super) const FIRST_OF_TWO: &str = "lora_te1_";

impl SingleFile {
    /// Both formats.
    pub const ALL: [Self; 2] = [Self::Diffusers, Self::Kohya];

    /// The name of the file.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Diffusers => "pytorch_lora_weights.safetensors",
            Self::Kohya => "lora.safetensors",
        }
    }

    /// The format of a file with these tensors. Names decide; for a file without tensors, its name.
    pub(super) fn of(header: &Header, file_name: &str) -> Self {
        let is_kohya = |key: &String| KOHYA_STARTS.iter().any(|start| key.starts_with(start));
        match header.tensors.is_empty() && file_name == Self::Kohya.file_name() {
            true => Self::Kohya,
            false if header.tensors.keys().any(is_kohya) => Self::Kohya,
            false => Self::Diffusers,
        }
    }

    /// The component that the prefix of a name stands for, and the rest of the name. In kohya's format, the UNet can also be a
    /// transformer.
    pub(super) fn component_of(self, name: &str) -> Option<(Component, &str)> {
        let prefixes = Component::ALL.into_iter().map(|component| (component, component.prefix(self)));
        let first_of_two = (self == Self::Kohya).then_some((Component::TextEncoder, FIRST_OF_TWO));
        prefixes
            .chain(first_of_two)
            .find_map(|(component, prefix)| Some((component, name.strip_prefix(prefix)?)))
    }
}
