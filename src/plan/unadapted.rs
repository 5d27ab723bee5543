//! Layers that PEFT does not adapt, by the model types in `config.json`.
//!
//! The Python package leaves out the same layers when it records (`python/cntlora/sites.py`), with the same reasons.
//!
//! Sources: `tuners_utils.py` of PEFT 0.21 and the models of transformers 5.24.

use crate::storage::{Checkpoint, visible};
use serde_json::Value;
use std::collections::BTreeSet;

/// The model types of which PEFT does not adapt [`MAMBA_MODULES`].
const MAMBA: [&str; 5] = ["falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"];
const MAMBA_MODULES: [&str; 2] = ["out_proj", "conv1d"];

/// Audio encoders with the convolutions of Whisper, and the models around them.
const LIKE_WHISPER: &[&str] = &[
    "whisper",
    "qwen2_audio",
    "qwen2_audio_encoder",
    "voxtral",
    "voxtral_encoder",
    "moss_transcribe_diarize",
    "moss_transcribe_diarize_audio",
];
const LIKE_MIMI: &[&str] = &[
    "mimi",
    "mimi_encoder",
    "mimi_decoder",
    "pocket_tts_audio_tokenizer",
    "pocket_tts_audio_tokenizer_encoder",
    "pocket_tts_audio_tokenizer_decoder",
];

/// Model types, the end of the name of a layer that is not linear, and the attribute of it that the model reads.
const READ: [(&[&str], &str, &str); 6] = [
    (LIKE_WHISPER, "conv1", "stride"),
    (LIKE_WHISPER, "conv2", "stride"),
    (&["whisper"], "encoder.embed_positions", "num_embeddings"),
    (&["wav2vec2-bert", "seamless_m4t_v2"], "depthwise_conv", "kernel_size"),
    (&["udop"], "relative_attention_bias", "num_embeddings"),
    (LIKE_MIMI, "conv", "stride"),
];

/// The model types of a checkpoint.
pub(super) struct Unadapted {
    /// That of the whole model.
    whole: Option<String>,
    /// Those of the model and of the models inside it.
    all: BTreeSet<String>,
}

impl Unadapted {
    /// Of a model in memory, PEFT itself decided which layers it adapts: nothing is left out.
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        let config = checkpoint.config().filter(|_| !checkpoint.is_in_memory());
        let mut all = BTreeSet::new();
        config.into_iter().for_each(|config| collect(config, &mut all));
        Self { whole: config.and_then(model_type), all }
    }

    /// The reason why PEFT does not adapt a module, in words.
    pub(super) fn reason_against(&self, module: &str) -> Option<String> {
        let last = module.rsplit('.').next().unwrap_or(module);
        if let Some(whole) = &self.whole
            && MAMBA.contains(&whole.as_str())
            && MAMBA_MODULES.contains(&last)
        {
            return Some(format!("PEFT does not adapt {last} of the model type {}", visible(whole)));
        }
        let ends_in = |end: &str| {
            module.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let is_read = |types: &[&str]| types.iter().any(|one| self.all.contains(*one));
        let (_, _, read) = READ.iter().find(|(types, end, _)| ends_in(end) && is_read(types))?;
        Some(format!("the model reads its `{read}`, which the adapted layer of PEFT does not have"))
    }
}

fn model_type(config: &Value) -> Option<String> {
    Some(config.get("model_type")?.as_str()?.to_owned())
}

/// Adds the model types of a configuration and of those inside it.
fn collect(config: &Value, all: &mut BTreeSet<String>) {
    all.extend(model_type(config));
    let inner = config.as_object().into_iter().flat_map(|config| config.values());
    inner.filter(|value| value.is_object()).for_each(|config| collect(config, all));
}

#[cfg(test)]
mod tests {
    use super::super::testing::experts;
    use super::*;
    use expect_test::expect;
    use std::fs;

    /// PEFT refuses the whole adapter if it has one of these modules. The old code computed adapters for them.
    #[test]
    fn modules_of_mamba_are_left_out() {
        let tensors: [(&str, &[u64]); 3] = [
            ("layers.0.mixer.in_proj.weight", &[8, 4]),
            ("layers.0.mixer.out_proj.weight", &[4, 8]),
            ("layers.0.mixer.conv1d.weight", &[8, 1, 4]),
        ];
        let sites =
            [("layers.0.mixer.in_proj", 4), ("layers.0.mixer.out_proj", 8), ("layers.0.mixer.conv1d", 32)];
        for model_type in MAMBA {
            let mut fixture = experts(&tensors, &sites, Some(model_type));
            let plan = fixture.plan();
            let adapted: Vec<_> = plan.layers().map(|layer| layer.name.module.as_str()).collect();
            assert_eq!(adapted, ["layers.0.mixer.in_proj"], "{model_type}");
            assert_eq!(
                plan.skipped[1].reason,
                format!("PEFT does not adapt out_proj of the model type {model_type}")
            );
            assert_eq!(plan.skipped[0].name, "layers.0.mixer.conv1d");
            fixture.request.selection.targets = vec!["out_proj".into()];
            let refusal = fixture.refused().to_string();
            assert!(refusal.contains("cannot be adapted: PEFT does not adapt out_proj"), "{refusal}");
        }
        let other = experts(&tensors[..2], &sites[..2], Some("llama")).plan();
        assert_eq!(other.layers().count(), 2);
    }

    /// The model type can be that of a part, such as an audio encoder.
    #[test]
    fn convolutions_whose_stride_the_model_reads_are_left_out() {
        let tensors: [(&str, &[u64]); 3] = [
            ("model.encoder.conv1.weight", &[4, 2, 3]),
            ("model.encoder.conv2.weight", &[4, 4, 3]),
            ("model.encoder.layers.0.fc1.weight", &[8, 4]),
        ];
        let sites =
            [("model.encoder.conv1", 6), ("model.encoder.conv2", 12), ("model.encoder.layers.0.fc1", 4)];
        let fixture = experts(&tensors, &sites, None);
        assert_eq!(fixture.plan().layers().count(), 3);
        let left_out = |config: &str| {
            fs::write(fixture.request.model.join("config.json"), config).unwrap();
            let plan = fixture.plan();
            assert_eq!(plan.layers().count(), 1);
            let skipped = plan.skipped.iter().map(|one| format!("{}: {}", one.name, one.reason));
            skipped.collect::<Vec<_>>().join("\n")
        };
        let of_whisper = left_out(r#"{"model_type":"whisper"}"#);
        assert_eq!(
            left_out(r#"{"model_type":"x","audio_config":{"model_type":"qwen2_audio_encoder"}}"#),
            of_whisper
        );
        expect![[r#"
            model.encoder.conv1: the model reads its `stride`, which the adapted layer of PEFT does not have
            model.encoder.conv2: the model reads its `stride`, which the adapted layer of PEFT does not have"#]].assert_eq(&of_whisper);
    }

    /// The Python package leaves out the same layers, in the same words.
    #[test]
    fn the_python_package_has_the_same_reasons() {
        let python = include_str!("../../python/cntlora/sites.py");
        let quoted =
            |names: &[&str]| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        assert!(python.contains(&format!("MAMBA = {{{}}}", quoted(&MAMBA))));
        assert!(python.contains(&format!("MAMBA_MODULES = ({})", quoted(&MAMBA_MODULES))));
        for sentence in [
            "PEFT does not adapt {last} of the model type {model_type}",
            "the model reads its `{read}`, which the adapted layer of PEFT does not have",
        ] {
            assert!(python.contains(sentence), "{sentence}");
        }
        assert!(READ.iter().all(|(_, _, read)| python.contains(&format!("\"{read}\""))));
    }
}
