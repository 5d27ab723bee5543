//! Weights that two parts of a model use: a changed base would change both.
//!
//! The second user of a tensor shows in different places: a recorded module of another name that finds the same tensor, the metadata of a
//! file that stores the tensor once for several names, the tying of embedding and output head in `config.json`, and the name of the tensor.

use super::embeddings::shares_head;
use super::names::{Names, Unresolved};
use super::recording::RecordedSite;
use super::stored::{Stored, locate};
use super::weights::is_table;
use super::{Plan, PlannedLayer, PlannedSite, SharedTensor};
use crate::factors::LayerShape;
use crate::storage::{Checkpoint, Problem, Problems, quoted};
use std::collections::BTreeSet;

/// The last parts of the names of output heads over the vocabulary.
const HEADS: [&str; 4] = ["lm_head", "embed_out", "proj_out", "decoder"];

/// The last part of the name of a module or of a weight.
fn last(name: &str) -> &str {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    module.rsplit('.').next().unwrap_or(module)
}

/// Finds the tensors of adapted layers that recorded modules without an adapter read too.
pub(super) fn tensors(
    names: &Names<'_>,
    recorded: &[RecordedSite<'_>],
    planned: &[PlannedSite],
) -> Vec<SharedTensor> {
    let layers = || planned.iter().flat_map(|site| &site.layers);
    let adapted: BTreeSet<&str> = layers().map(|layer| layer.name.module.as_str()).collect();
    let tensors: BTreeSet<&str> =
        layers().flat_map(|layer| &layer.weight).map(|piece| piece.tensor.as_str()).collect();
    let others = recorded.iter().flat_map(|site| site.modules).filter(|module| {
        let block = module.rsplit_once('.').map_or("", |(module, _)| module);
        !adapted.contains(module.as_str()) && !adapted.contains(block)
    });
    let shared = others.filter_map(|module| match locate(names, module) {
        Ok(Stored::Own(tensor) | Stored::Parameter(tensor)) if tensors.contains(tensor) => {
            Some(SharedTensor { tensor: tensor.into(), module: module.clone() })
        }
        _ => None,
    });
    shared.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Refuses to change weights that another part of the model uses too.
///
/// # Errors
/// A usage problem for each of these weights.
pub fn refuse_shared_weights(plan: &Plan, checkpoint: &Checkpoint) -> Result<(), Problems> {
    let mut problems = Problems::default();
    for layer in plan.layers() {
        if let Some(reason) = second_user(plan, checkpoint, layer) {
            let problem = Problem::usage(reason).in_file(checkpoint.path()).in_tensor(&layer.tensors());
            problems.push(problem.help(
                "give --start mirrored or --residual anchor, which do not change the base, or exclude the layer with --exclude",
            ));
        }
    }
    problems.or_ok(())
}

/// The second user of the weight of a layer, in a sentence.
fn second_user(plan: &Plan, checkpoint: &Checkpoint, layer: &PlannedLayer) -> Option<String> {
    let module = quoted(&layer.name.to_string());
    let [piece] = layer.weight.as_slice() else { return None };
    let tensor = &piece.tensor;
    if let Some(shared) = plan.shared.iter().find(|shared| shared.tensor == *tensor) {
        let other = quoted(&shared.module);
        return Some(format!(
            "the module {other} uses the weight of {module} too: a changed base would change both"
        ));
    }
    let mut metadata = checkpoint.files().iter().flat_map(|(_, header)| &header.metadata);
    let alias = metadata.find(|(name, kept)| *kept == tensor && checkpoint.get(name).is_none());
    if let Some((other, _)) = alias {
        let other = quoted(other);
        return Some(format!(
            "the metadata of the file give this tensor a second name, {other}, so another part of the model uses the weight of {module} \
             too: a changed base would change both"
        ));
    }
    let is_embedding = layer.shape == LayerShape::Embedding;
    let is_renamed = last(tensor) != last(&layer.name.module);
    let (is_head, is_table) = (HEADS.contains(&last(tensor)), is_table(last(tensor)));
    if is_renamed && !is_embedding && is_table {
        let table = quoted(tensor.strip_suffix(".weight").unwrap_or(tensor));
        return Some(format!(
            "{module} uses the weight of the embedding {table}: a changed base would change both"
        ));
    }
    if is_renamed && is_embedding && is_head {
        let head = quoted(tensor.strip_suffix(".weight").unwrap_or(tensor));
        return Some(format!(
            "the embedding {module} uses the weight of the output head {head}: a changed base would change both"
        ));
    }
    let named_as_head = is_head || is_table || HEADS.contains(&last(&layer.name.module));
    let (one, other) = match is_embedding {
        true => ("embedding", "output head"),
        false => ("output head", "embedding"),
    };
    (shares_head(checkpoint, tensor) && (is_embedding || named_as_head)).then(|| {
        format!(
            "this {one} is also the {other} of the model (tie_word_embeddings in config.json): a changed base would change both"
        )
    })
}

/// The help for an output head without a weight of its own: the tensor of the embedding is its weight.
pub(super) fn help_for_head(
    checkpoint: &Checkpoint,
    module: &str,
    unresolved: &Unresolved<'_>,
) -> Option<String> {
    if !matches!(unresolved, Unresolved::Missing(_)) || !HEADS.contains(&last(module)) {
        return None;
    }
    let rows = |name: &&str| {
        checkpoint.get(name).and_then(|stored| match stored.tensor.shape[..] {
            [rows, _] => Some(rows),
            _ => None,
        })
    };
    let tables = checkpoint.names().filter(|name| name.ends_with(".weight") && is_table(last(name)));
    let table = tables.filter(|name| rows(name).is_some()).max_by_key(rows)?;
    let table = table.strip_suffix(".weight").unwrap_or(table);
    Some(format!(
        "the model has no weight of its own for this output head, which uses that of the embedding {}: exclude the module with \
         --exclude, or adapt it with --rename '^{}$={table}' and a start that does not change the base, such as --start mirrored",
        quoted(table),
        regex::escape(module)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fixture, WIDTH, sites, write};
    use super::super::{plan, refuse_shared_weights};
    use crate::factors::Start;
    use crate::storage::shown;
    use expect_test::expect;
    use std::fs;

    const HEAD: u64 = 9;

    /// A model with an embedding and a linear layer, recorded with an output head, and a residual start.
    fn tied(recorded: &[&str]) -> Fixture {
        let mut fixture = Fixture::bert();
        fixture.request.method.start = Start::Residual;
        fixture.model(&[
            ("model.embed_tokens.weight", "F32", &[HEAD, WIDTH]),
            ("model.layers.0.q_proj.weight", "F32", &[WIDTH, WIDTH]),
        ]);
        let metadata = sites(&[("x", recorded)]);
        write(&fixture.request.activations[0], Some(&metadata), [("x", "F32", [8, WIDTH].as_slice())]);
        fixture
    }

    /// The refusal of a changed base for the layers of a plan.
    fn refused(fixture: &Fixture) -> String {
        let (plan, inputs) = plan(&fixture.request).unwrap_or_else(|problems| panic!("{problems}"));
        match refuse_shared_weights(&plan, &inputs.checkpoint) {
            Ok(()) => "accepted\n".into(),
            Err(problems) => shown(&problems, fixture.folder.path()),
        }
    }

    /// A rename of the head to the embedding makes two users of one tensor. The old code changed the embedding too, without a word.
    #[test]
    fn a_head_that_a_rename_leads_to_the_embedding_is_refused() {
        let mut fixture = tied(&["lm_head", "model.layers.0.q_proj"]);
        fixture.request.renames = vec!["^lm_head$=model.embed_tokens".parse().unwrap()];
        expect![[r#"
            Usage: model.safetensors: tensor "model.embed_tokens.weight": "lm_head" uses the weight of the embedding "model.embed_tokens": a changed base would change both
                help: give --start mirrored or --residual anchor, which do not change the base, or exclude the layer with --exclude
        "#]].assert_eq(&refused(&fixture));
        fixture.request.selection.targets = vec!["q_proj".into()];
        assert_eq!(refused(&fixture), "accepted\n");
    }

    /// The help of the missing head does not lead into a changed embedding.
    #[test]
    fn the_help_for_a_missing_head_names_a_start_that_keeps_the_base() {
        let fixture = tied(&["lm_head", "model.layers.0.q_proj"]);
        fixture.check_refusal(&expect![[r#"
            Data: model.safetensors: expected the weight of module "lm_head" in the checkpoint, found no match; similar names are "model.embed_tokens.weight", "model.layers.0.q_proj.weight"
                help: the model has no weight of its own for this output head, which uses that of the embedding "model.embed_tokens": exclude the module with --exclude, or adapt it with --rename '^lm_head$=model.embed_tokens' and a start that does not change the base, such as --start mirrored
        "#]]);
    }

    /// Another recorded module finds the same tensor, although it is not selected.
    #[test]
    fn a_recorded_module_without_an_adapter_is_a_second_user() {
        let mut fixture = tied(&["first", "second"]);
        fixture.request.renames = vec!["^(first|second)$=model.layers.0.q_proj".parse().unwrap()];
        fixture.request.selection.targets = vec!["first".into()];
        expect![[r#"
            Usage: model.safetensors: tensor "model.layers.0.q_proj.weight": the module "second" uses the weight of "first" too: a changed base would change both
                help: give --start mirrored or --residual anchor, which do not change the base, or exclude the layer with --exclude
        "#]].assert_eq(&refused(&fixture));
        // Nothing changes the base without a residual start.
        fixture.request.method.start = Start::Mirrored;
        assert!(fixture.plan().shared.is_empty());
    }

    /// Files of `safetensors.torch.save_model` name the removed copies of a tensor in their metadata.
    #[test]
    fn a_second_name_in_the_metadata_is_a_second_user() {
        let fixture = tied(&["model.layers.0.q_proj"]);
        assert_eq!(refused(&fixture), "accepted\n");
        let tensor = ("F32".to_owned(), vec![WIDTH, WIDTH], vec![0; 4 * (WIDTH * WIDTH) as usize]);
        let metadata = [("model.copy.weight", "model.layers.0.q_proj.weight"), ("format", "pt")];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let mut file = fs::File::create(&fixture.request.model).unwrap();
        let tensors = [("model.layers.0.q_proj.weight".to_owned(), tensor)].into();
        crate::storage::safetensors::write(&mut file, &metadata, &tensors).unwrap();
        expect![[r#"
            Usage: model.safetensors: tensor "model.layers.0.q_proj.weight": the metadata of the file give this tensor a second name, "model.copy.weight", so another part of the model uses the weight of "model.layers.0.q_proj" too: a changed base would change both
                help: give --start mirrored or --residual anchor, which do not change the base, or exclude the layer with --exclude
        "#]].assert_eq(&refused(&fixture));
    }

    /// A tied model ignores its stored copy of the head, so a changed copy would have no effect.
    #[test]
    fn a_stored_head_of_a_tied_model_is_refused() {
        let fixture = tied(&["lm_head"]);
        fixture.model(&[
            ("model.embed_tokens.weight", "F32", &[HEAD, WIDTH]),
            ("lm_head.weight", "F32", &[HEAD, WIDTH]),
        ]);
        assert_eq!(refused(&fixture), "accepted\n");
        let configure = |config: &str| fs::write(fixture.folder.path().join("config.json"), config).unwrap();
        configure(r#"{"tie_word_embeddings":false}"#);
        assert_eq!(refused(&fixture), "accepted\n");
        configure(r#"{"tie_word_embeddings":true}"#);
        expect![[r#"
            Usage: model.safetensors: tensor "lm_head.weight": this output head is also the embedding of the model (tie_word_embeddings in config.json): a changed base would change both
                help: give --start mirrored or --residual anchor, which do not change the base, or exclude the layer with --exclude
        "#]].assert_eq(&refused(&fixture));
    }
}
