//! Embeddings: the modules whose activations are counts of tokens.

use super::recording::RecordedSite;
use super::unfit::Unfit;
use crate::constraint::{Coupling, token_classes};
use crate::factors::LayerShape;
use crate::method::{Method, Options};
use crate::storage::{Checkpoint, Problem, quoted};
use serde_json::Value;

/// Output features and the way of storing of an embedding, from the shape of its weight and the tokens that were counted.
pub(super) fn shape_of(
    module: &str,
    stored: &[u64],
    site: &RecordedSite<'_>,
    options: &Options,
) -> Result<(u64, LayerShape), Unfit> {
    let method = options.method;
    if let Some(reason) = method.reason_against_embeddings() {
        return Err(Unfit::Kind(format!(
            "it is an embedding, which the method {} does not adapt: {reason}",
            method.name()
        )));
    }
    if method == Method::Cntlora && options.coupling == Coupling::Paired {
        return Err(Unfit::Kind("it is an embedding, and counts of tokens have no pairs".into()));
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
        _ => Err(Unfit::Kind(format!("tokens were counted, and its weight has the shape {stored:?}: it is no embedding"))),
    }
}

/// In how many classes the tokens of a site fall, if it is that of an embedding.
pub(super) fn classes(target: &RecordedSite<'_>, source: Option<&RecordedSite<'_>>) -> Option<u64> {
    let source = source.and_then(RecordedSite::counts);
    target.counts().map(|counts| token_classes(counts, source) as u64)
}

/// Refuses to change the weight of an embedding that the output head of the model shares.
///
/// # Errors
/// A usage problem if the configuration says so, or if it says nothing, and the model has an output head but no weight for it.
pub fn refuse_tied_embedding(checkpoint: &Checkpoint, tensor: &str) -> Result<(), Problem> {
    if !shares_head(checkpoint, tensor) {
        return Ok(());
    }
    let what = "expected an embedding of its own, found one that is also the output head of the model \
                (tie_word_embeddings in config.json): a changed base would change both";
    Err(Problem::usage(what).in_file(checkpoint.path()).in_tensor(tensor).help(
        "give --residual anchor, which leaves the base as it is, or leave the embedding out with --exclude",
    ))
}

fn shares_head(checkpoint: &Checkpoint, tensor: &str) -> bool {
    let Some(config) = checkpoint.config() else { return false };
    let inner = config.get("text_config");
    let shape = checkpoint.get(tensor).map(|stored| &stored.tensor.shape);
    // Tables of positions and of token types have other numbers of rows than the vocabulary.
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

/// Whether a model has an output head over its vocabulary, by the names of its classes in transformers; `None` if they do not tell.
fn has_head(config: &Value) -> Option<bool> {
    const HEADS: [&str; 6] = [
        "ForCausalLM",
        "LMHeadModel",
        "ForMaskedLM",
        "ForConditionalGeneration",
        "ForPreTraining",
        "DoubleHeadsModel",
    ];
    /// They end in one of these, and in none of the above.
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

    /// Whether the table `e.weight` is refused beside this configuration and these other tensors of its shape.
    fn refused(config: &str, others: &[&str]) -> bool {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config).unwrap();
        let tensor = |name: &&str| ((*name).to_owned(), ("F32".to_owned(), vec![3, 1], vec![0; 12]));
        let tensors = others.iter().chain(&["e.weight"]).map(tensor).collect();
        let mut file = fs::File::create(folder.path().join("model.safetensors")).unwrap();
        safetensors::write(&mut file, &Default::default(), &tensors).unwrap();
        let checkpoint = Checkpoint::open(folder.path(), Access::Auto).unwrap();
        refuse_tied_embedding(&checkpoint, "e.weight").is_err()
    }

    /// What the configuration says decides; where it says nothing, whether a head can be anything but shared.
    #[test]
    fn shared_heads_are_recognized() {
        assert!(refused(r#"{"tie_word_embeddings":true}"#, &["lm_head.weight"]));
        assert!(refused(r#"{"text_config":{"tie_word_embeddings":true}}"#, &[]));
        assert!(!refused(r#"{"tie_word_embeddings":false,"architectures":["LlamaForCausalLM"]}"#, &[]));
        assert!(refused(r#"{"architectures":["GPT2LMHeadModel"]}"#, &[]));
        assert!(!refused(r#"{"architectures":["LlamaForCausalLM"]}"#, &["lm_head.weight"]));
        assert!(!refused(r#"{"architectures":["BertModel"]}"#, &[]));
    }

    /// Some models are said to share a head that they do not have: only those of transformers that have none are believed not to.
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

    /// The table here has three rows.
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
