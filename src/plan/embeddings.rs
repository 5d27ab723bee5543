//! Embeddings: modules whose activations are token counts.

use super::recording::RecordedSite;
use super::unfit::Unfit;
use crate::constraint::{Coupling, token_classes};
use crate::factors::LayerShape;
use crate::method::Options;
use crate::storage::{Checkpoint, Problem, quoted};
use serde_json::Value;

/// Output features and layout of an embedding, from the shape of its weight and the number of counted tokens.
pub(super) fn shape_of(
    module: &str,
    stored: &[u64],
    site: &RecordedSite<'_>,
    options: &Options,
) -> Result<(u64, LayerShape), Unfit> {
    let method = options.method;
    if let Some(reason) = method.reason_against(&LayerShape::Embedding) {
        return Err(Unfit::Kind(format!(
            "it is an embedding, and the method {} does not adapt embeddings: {reason}",
            method.name()
        )));
    }
    if method.has_constraints() && options.coupling == Coupling::Paired {
        return Err(Unfit::Kind("it is an embedding, and token counts have no pairs".into()));
    }
    let tokens = site.width as u64;
    match *stored {
        [rows, outputs] if rows == tokens => Ok((outputs, LayerShape::Embedding)),
        [rows, _] => Err(Unfit::Wrong(
            Problem::data(format!(
                "module {} has a weight of shape {stored:?}: expected counts of {rows} tokens in site {}, found {tokens}",
                quoted(module),
                quoted(site.name)
            ))
            .help(format!("record numpy.bincount(ids, minlength={rows})")),
        )),
        _ => Err(Unfit::Kind(format!("token counts were recorded, but its weight of shape {stored:?} is not an embedding"))),
    }
}

/// The number of classes of tokens, if the site has token counts.
pub(super) fn classes(target: &RecordedSite<'_>, source: Option<&RecordedSite<'_>>) -> Option<u64> {
    let source = source.and_then(RecordedSite::counts);
    target.counts().map(|counts| token_classes(counts, source) as u64)
}

/// True if the configuration ties this tensor of the vocabulary to the output head or the embedding of the model, or if it does not mention
/// tying and the model has an output head without a weight.
pub(super) fn shares_head(checkpoint: &Checkpoint, tensor: &str) -> bool {
    let Some(config) = checkpoint.config() else { return false };
    let inner = config.get("text_config");
    let shape = checkpoint.get(tensor).map(|stored| &stored.tensor.shape);
    // Tables of positions and of token types have another number of rows than the vocabulary.
    let sizes = [Some(config), inner].into_iter().flatten().filter_map(|config| config.get("vocab_size"));
    let mut sizes = sizes.filter_map(Value::as_u64).peekable();
    let rows = shape.and_then(|shape| shape.first().copied());
    if sizes.peek().is_some() && sizes.all(|size| Some(size) != rows) {
        return false;
    }
    let said = |config: &Value| config.get("tie_word_embeddings")?.as_bool();
    match (said(config).or_else(|| inner.and_then(said)), has_head(config)) {
        (Some(tied), head) => tied && head.unwrap_or(true),
        // Where nothing is said, models that have an output head share it, unless it has a weight of its own.
        (None, head) => {
            let of_same_shape =
                |name: &&str| checkpoint.get(name).map(|stored| &stored.tensor.shape) == shape;
            head == Some(true) && checkpoint.names().filter(of_same_shape).count() < 2
        }
    }
}

/// Returns whether a model has an output head over its vocabulary, from the names of its classes in transformers. `None` if unknown.
fn has_head(config: &Value) -> Option<bool> {
    const HEADS: [&str; 6] = [
        "ForCausalLM",
        "LMHeadModel",
        "ForMaskedLM",
        "ForConditionalGeneration",
        "ForPreTraining",
        "DoubleHeadsModel",
    ];
    /// Ends of the names of classes without a head.
    const NONE: [&str; 6] =
        ["Model", "Encoder", "Classification", "QuestionAnswering", "MultipleChoice", "Retrieval"];
    let classes = config.get("architectures").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let names = || classes.iter().filter_map(Value::as_str);
    let is_one = |endings: &[&str], class: &str| endings.iter().any(|ending| class.ends_with(ending));
    if names().any(|class| is_one(&HEADS, class)) {
        return Some(true);
    }
    (names().next().is_some() && names().all(|class| is_one(&NONE, class))).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Access, safetensors};
    use std::fs;

    /// Returns whether the table `e.weight` is tied with this configuration and these other tensors of the same shape.
    fn refused(config: &str, others: &[&str]) -> bool {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config).unwrap();
        let tensor = |name: &&str| ((*name).to_owned(), ("F32".to_owned(), vec![3, 1], vec![0; 12]));
        let tensors = others.iter().chain(&["e.weight"]).map(tensor).collect();
        let mut file = fs::File::create(folder.path().join("model.safetensors")).unwrap();
        safetensors::write(&mut file, &Default::default(), &tensors).unwrap();
        let checkpoint = Checkpoint::open(folder.path(), Access::Auto).unwrap();
        shares_head(&checkpoint, "e.weight")
    }

    /// The configuration decides. If it does not mention tying, a model with a head but without its weight counts as tied.
    #[test]
    fn shared_heads_are_recognized() {
        assert!(refused(r#"{"tie_word_embeddings":true}"#, &["lm_head.weight"]));
        assert!(refused(r#"{"text_config":{"tie_word_embeddings":true}}"#, &[]));
        assert!(!refused(r#"{"tie_word_embeddings":false,"architectures":["LlamaForCausalLM"]}"#, &[]));
        assert!(refused(r#"{"architectures":["GPT2LMHeadModel"]}"#, &[]));
        assert!(!refused(r#"{"architectures":["LlamaForCausalLM"]}"#, &["lm_head.weight"]));
        assert!(!refused(r#"{"architectures":["BertModel"]}"#, &[]));
    }

    /// Some configurations tie a head that the model does not have. Only known classes without a head are accepted.
    #[test]
    fn models_without_a_head_share_none() {
        let tied = |class: &str| {
            refused(&format!(r#"{{"tie_word_embeddings":true,"architectures":["{class}"]}}"#), &[])
        };
        for class in
            ["BertModel", "XLMRobertaModel", "GlmModel", "T5EncoderModel", "BertForTokenClassification"]
        {
            assert!(!tied(class), "{class}");
        }
        for class in
            ["GlmForCausalLM", "GPT2LMHeadModel", "BertForPreTraining", "T5ForConditionalGeneration", "Other"]
        {
            assert!(tied(class), "{class}");
        }
        assert!(!refused(r#"{"architectures":["XLMRobertaModel"]}"#, &[]), "nothing is said");
        assert!(!refused(r#"{"architectures":["GlmForSequenceClassification"]}"#, &[]));
    }

    /// The table has three rows.
    #[test]
    fn only_the_table_of_the_vocabulary_is_shared() {
        let tied = |sizes: &str| {
            refused(
                &format!(r#"{{"tie_word_embeddings":true,"architectures":["LlamaForCausalLM"],{sizes}}}"#),
                &[],
            )
        };
        assert!(tied(r#""vocab_size":3"#));
        assert!(!tied(r#""vocab_size":4"#), "a table of positions");
        assert!(tied(r#""text_config":{"vocab_size":3}"#));
        assert!(!tied(r#""text_config":{"vocab_size":4}"#));
        assert!(tied(r#""vocab_size":4,"text_config":{"vocab_size":3}"#));
    }
}
