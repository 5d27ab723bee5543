//! The names of tensors in adapter files: which tensor of which module each one is.

use super::format::SingleFile;
use super::names::{ALPHA_SUFFIX, PREFIX, affixes, suffixes};
use crate::factors::LayerShape;
use crate::storage::wrappers::after_prefix;
use std::borrow::Cow;

/// A tensor name of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The name of the module, with the parts of wrappers.
    pub(super) module: String,
    /// The rest of the name, without the name of the adapter.
    pub(super) end: String,
    pub(super) kind: Kind,
}

/// The meaning of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `A` (0), `B` (1) or `alpha` (2) of a layer; true for an embedding.
    Factor(bool, usize),
    /// A tensor on which no product of factors depends.
    Further(Further),
    /// A tensor on which the update of a layer depends, besides its factors.
    Refused(Refused),
}

/// A kind of tensors on which no product of factors depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Further {
    /// A weight or bias of a module that is trained as a whole: a classification head, `modules_to_save`, a resized embedding.
    Module,
    /// A copy of the base weight of an adapted module. PEFT saves such copies for adapted embeddings and output heads.
    BaseCopy,
    /// New rows of an embedding.
    Tokens,
    /// A bias after `B`.
    Bias,
}

impl Further {
    /// The words for one tensor, and for several.
    pub(super) fn words(self) -> [&'static str; 2] {
        match self {
            Self::Module => ["tensor of a whole module", "tensors of whole modules"],
            Self::BaseCopy => ["copy of a base weight", "copies of base weights"],
            Self::Tokens => ["tensor of trained tokens", "tensors of trained tokens"],
            Self::Bias => ["bias of B (lora_bias)", "biases of B (lora_bias)"],
        }
    }
}

/// A kind of adapter whose update is not the product of two factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refused {
    /// DoRA.
    Dora,
    /// A CP decomposition of convolutions, with a tensor between the factors.
    Cp,
    /// LoHa, LoKr and other decompositions of LyCORIS.
    Lycoris,
}

impl Refused {
    /// The name of the adapter.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Dora => "a DoRA adapter: magnitudes rescale the sum of weight and product",
            Self::Cp => "a CP decomposition (Tucker): a third tensor is between the factors of convolutions",
            Self::Lycoris => "an adapter of LyCORIS, such as LoHa or LoKr, and not LoRA",
        }
    }

    pub(super) fn help(self) -> &'static str {
        match self {
            Self::Dora => {
                "merge it into the model with the program that made it, or train with use_dora=False"
            }
            Self::Cp => {
                "train it without use_cp or use_tucker, or merge it into the model with the program that made it"
            }
            Self::Lycoris => "merge it into the model with the program that made it, or train LoRA",
        }
    }
}

/// Ends of names that single-file adapters have, in all formats of diffusers and kohya's scripts, and the index of the factor.
const SINGLE_FILE_ENDS: [(&str, usize); 11] = [
    (".lora_A.weight", 0),
    (".lora_B.weight", 1),
    (".lora_down.weight", 0),
    (".lora_up.weight", 1),
    (".lora.down.weight", 0),
    (".lora.up.weight", 1),
    (".lora_linear_layer.down.weight", 0),
    (".lora_linear_layer.up.weight", 1),
    ("_lora.down.weight", 0),
    ("_lora.up.weight", 1),
    (ALPHA_SUFFIX, 2),
];

impl SingleFile {
    /// The ends of factors in the names of tensors.
    pub(super) fn is_factor(key: &str) -> bool {
        SINGLE_FILE_ENDS.iter().any(|(end, index)| *index < 2 && key.ends_with(end))
    }

    /// True if a file has factors of an adapter that needs no configuration.
    pub(super) fn claims(header: &crate::storage::safetensors::Header) -> bool {
        header.tensors.keys().any(|key| Self::is_factor(key) && !key.starts_with(PREFIX))
    }
}

/// Reads a tensor name; `None` for an unknown one.
pub(super) fn read(key: &str, format: Option<SingleFile>) -> Option<Key> {
    match format {
        None => of_peft(after_prefix(key, PREFIX)?),
        Some(_) => of_single_file(key),
    }
}

fn of_peft(name: &str) -> Option<Key> {
    let (_, [down, up]) = affixes(None);
    let [embedding_down, embedding_up] = suffixes(&LayerShape::Embedding);
    let name = &*without_adapter_name(name);
    let kinds = [
        (down, Kind::Factor(false, 0)),
        (up, Kind::Factor(false, 1)),
        (embedding_down, Kind::Factor(true, 0)),
        (embedding_up, Kind::Factor(true, 1)),
        (".lora_B.bias", Kind::Further(Further::Bias)),
        (".lora_magnitude_vector", Kind::Refused(Refused::Dora)),
        (".lora_magnitude_vector.weight", Kind::Refused(Refused::Dora)),
        (".lora_mid.weight", Kind::Refused(Refused::Cp)),
        (".base_layer.weight", Kind::Further(Further::BaseCopy)),
        (".base_layer.bias", Kind::Further(Further::BaseCopy)),
        (".token_adapter.trainable_tokens_delta", Kind::Further(Further::Tokens)),
        (".trainable_tokens_delta", Kind::Further(Further::Tokens)),
    ];
    if let Some(key) = kinds.into_iter().find_map(|(end, kind)| split(name, end, kind)) {
        return Some(key);
    }
    let (module, end) = name.rsplit_once('.')?;
    let is_lora = name.split('.').any(|part| part.starts_with("lora_"));
    (!is_lora && !module.is_empty() && !end.is_empty()).then(|| Key {
        module: module.strip_suffix(".modules_to_save").unwrap_or(module).to_owned(),
        end: format!(".{end}"),
        kind: Kind::Further(Further::Module),
    })
}

fn split(name: &str, end: &str, kind: Kind) -> Option<Key> {
    let module = name.strip_suffix(end).filter(|module| !module.is_empty())?;
    Some(Key { module: module.to_owned(), end: end.to_owned(), kind })
}

/// A tensor name of PEFT without the name of the adapter, `default`, which states of running models have.
fn without_adapter_name(name: &str) -> Cow<'_, str> {
    let parts: Vec<&str> = name.split('.').collect();
    let takes_name = |part: &str| {
        part.starts_with("lora_") || part == "modules_to_save" || part == "trainable_tokens_delta"
    };
    let place = parts.windows(2).position(|pair| takes_name(pair[0]) && pair[1] == "default");
    match place {
        None => Cow::Borrowed(name),
        Some(place) => {
            let kept: Vec<&str> = parts[..=place].iter().chain(&parts[place + 2..]).copied().collect();
            Cow::Owned(kept.join("."))
        }
    }
}

fn of_single_file(key: &str) -> Option<Key> {
    const REFUSED: [(&str, Refused); 4] = [
        (".dora_scale", Refused::Dora),
        (".lora_magnitude_vector", Refused::Dora),
        (".lora_magnitude_vector.weight", Refused::Dora),
        (".lora_mid.weight", Refused::Cp),
    ];
    let factor = SINGLE_FILE_ENDS
        .into_iter()
        .find_map(|(end, index)| split(key, end, Kind::Factor(false, index)))
        .map(|key| Key { module: of_processor(&key.module, &key.end).into_owned(), ..key });
    let refused = || REFUSED.into_iter().find_map(|(end, kind)| split(key, end, Kind::Refused(kind)));
    let lycoris = || {
        let (module, end) = key.rsplit_once('.')?;
        let is_known = ["hada_", "lokr_", "oft_"].iter().any(|start| end.starts_with(start));
        is_known.then(|| Key {
            module: module.to_owned(),
            end: format!(".{end}"),
            kind: Kind::Refused(Refused::Lycoris),
        })
    };
    factor.or_else(refused).or_else(lycoris)
}

/// The module that an attention processor of old diffusers adapts: `attn1.processor.to_q_lora` adapts `attn1.to_q`.
fn of_processor<'a>(module: &'a str, end: &str) -> Cow<'a, str> {
    let Some(part) = end.starts_with("_lora").then(|| module.rsplit_once(".processor.")).flatten() else {
        return Cow::Borrowed(module);
    };
    match part {
        (parent, "to_out") => Cow::Owned(format!("{parent}.to_out.0")),
        (parent, last) => Cow::Owned(format!("{parent}.{last}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_peft_are_read() {
        use Further::{BaseCopy, Bias, Module, Tokens};
        let further = Kind::Further;
        for (name, module, end, kind) in [
            ("q.lora_A.weight", "q", ".lora_A.weight", Kind::Factor(false, 0)),
            ("q.lora_B.default.weight", "q", ".lora_B.weight", Kind::Factor(false, 1)),
            ("e.lora_embedding_A", "e", ".lora_embedding_A", Kind::Factor(true, 0)),
            ("e.lora_embedding_B.default", "e", ".lora_embedding_B", Kind::Factor(true, 1)),
            ("q.lora_B.bias", "q", ".lora_B.bias", further(Bias)),
            ("e.base_layer.weight", "e", ".base_layer.weight", further(BaseCopy)),
            ("score.weight", "score", ".weight", further(Module)),
            ("score.modules_to_save.default.weight", "score", ".weight", further(Module)),
            (
                "e.token_adapter.trainable_tokens_delta",
                "e",
                ".token_adapter.trainable_tokens_delta",
                further(Tokens),
            ),
            ("q.lora_magnitude_vector", "q", ".lora_magnitude_vector", Kind::Refused(Refused::Dora)),
        ] {
            let expected = Key { module: module.into(), end: end.into(), kind };
            let read = |prefix: &str| read(&format!("{prefix}{name}"), None);
            assert_eq!(read("base_model.model."), Some(expected.clone()), "{name}");
            assert_eq!(read("module.base_model.model."), Some(expected), "{name}");
            assert_eq!(read(""), None, "{name}");
        }
        for name in
            ["base_model.model.q.lora_C.weight", "base_model.model..lora_A.weight", "base_model.model.x"]
        {
            assert_eq!(read(name, None), None, "{name}");
        }
    }

    #[test]
    fn names_of_single_files_are_read() {
        for (name, module, kind) in [
            ("unet.a.to_q.lora.down.weight", "unet.a.to_q", Kind::Factor(false, 0)),
            ("unet.a.processor.to_q_lora.up.weight", "unet.a.to_q", Kind::Factor(false, 1)),
            ("unet.a.processor.to_out_lora.up.weight", "unet.a.to_out.0", Kind::Factor(false, 1)),
            ("text_encoder.q.lora_linear_layer.up.weight", "text_encoder.q", Kind::Factor(false, 1)),
            ("lora_unet_a_to_q.lora_down.weight", "lora_unet_a_to_q", Kind::Factor(false, 0)),
            ("lora_unet_a_to_q.alpha", "lora_unet_a_to_q", Kind::Factor(false, 2)),
            ("lora_unet_c.lora_mid.weight", "lora_unet_c", Kind::Refused(Refused::Cp)),
            ("lora_unet_c.dora_scale", "lora_unet_c", Kind::Refused(Refused::Dora)),
            ("lora_unet_c.hada_w1_a", "lora_unet_c", Kind::Refused(Refused::Lycoris)),
        ] {
            let found = read(name, Some(SingleFile::Kohya)).unwrap();
            assert_eq!((found.module.as_str(), found.kind), (module, kind), "{name}");
        }
        assert_eq!(read("unet.q.weight", Some(SingleFile::Diffusers)), None);
    }
}
