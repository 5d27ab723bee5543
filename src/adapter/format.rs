//! The formats of adapters, with the names that they give to files and modules.

use serde::{Deserialize, Serialize};

/// The format of an adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A PEFT folder.
    #[default]
    Peft,
    /// A single file, for a component of a pipeline.
    SingleFile(SingleFile, Component),
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

    fn prefixes(self) -> impl Iterator<Item = &'static str> {
        Component::ALL.into_iter().map(move |component| component.prefix(self)).chain(match self {
            Self::Diffusers => None,
            // The first of two text encoders.
            Self::Kohya => Some("lora_te1_"),
        })
    }

    /// The prefix of a component, if all names have it; otherwise the empty string.
    pub(super) fn common_prefix<'a>(self, names: impl Iterator<Item = &'a str> + Clone) -> &'static str {
        self.prefixes().find(|prefix| names.clone().all(|name| name.starts_with(prefix))).unwrap_or("")
    }
}
