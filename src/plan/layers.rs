//! Matches sites, modules and weights.

use super::blocks::Module;
use super::names::{Names, Tensor, Unresolved};
use super::nearest::list;
use super::recording::{RecordedSite, Recording};
use super::renames::Renames;
use super::select::Selector;
use super::stored::{Stored, locate};
use super::unadapted::Unadapted;
use super::unfit::Unfit;
use super::{PlannedLayer, PlannedSite, SharedTensor, Skipped, blocks, embeddings, families, shared};
use crate::constraint::Coupling;
use crate::factors::{LayerName, LayerShape, Start};
use crate::method::{Method, Options};
use crate::storage::wrappers::{self, Wrapped};
use crate::storage::{Checkpoint, Piece, Problem, Problems, quoted};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The most modules without a weight for which similar names are searched.
const SEARCHED: usize = 20;

/// The result of [`find`].
#[derive(Default)]
pub(super) struct Found {
    /// The sites with at least one layer that can be adapted.
    pub sites: Vec<PlannedSite>,
    /// Selected modules that cannot be adapted.
    pub skipped: Vec<Skipped>,
    /// Tensors of adapted layers that other recorded modules read too, if the start can change the base.
    pub shared: Vec<SharedTensor>,
    /// Problems.
    pub problems: Problems,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// The names of tensors without the parts of wrappers, where they differ from the names in the files.
struct Unwrapped {
    names: BTreeMap<String, String>,
    note: Option<String>,
}

impl Unwrapped {
    /// Two tensors that would have one name keep their own.
    fn of(checkpoint: &Checkpoint) -> Self {
        let mut names = BTreeMap::new();
        let mut wrapped = Wrapped::default();
        if !checkpoint.is_in_memory() {
            let mut taken: BTreeMap<Cow<'_, str>, usize> = BTreeMap::new();
            for name in checkpoint.names() {
                *taken.entry(wrappers::of_tensor(name)).or_default() += 1;
            }
            for name in checkpoint.names() {
                let inner = wrappers::of_tensor(name);
                if inner != name && taken.get(&inner) == Some(&1) {
                    wrapped.add(name, &inner);
                    names.insert(name.to_owned(), inner.into_owned());
                }
            }
        }
        Self { names, note: wrapped.note(["tensor of the checkpoint", "tensors of the checkpoint"]) }
    }

    /// The names that transformers gives to the tensors of a known model type, and the names in the files.
    fn names_at_run_time<'a>(&self, checkpoint: &'a Checkpoint) -> Vec<(String, &'a str)> {
        let Some(config) = checkpoint.config().filter(|_| !checkpoint.is_in_memory()) else {
            return Vec::new();
        };
        let tensors = checkpoint.names().map(|stored| (stored, self.names.get(stored)));
        let tensors: Vec<(String, &str)> = tensors
            .map(|(stored, name)| (name.cloned().unwrap_or_else(|| stored.to_owned()), stored))
            .collect();
        families::names_at_run_time(config, &tensors)
    }

    fn tensors<'a>(&'a self, checkpoint: &'a Checkpoint) -> impl Iterator<Item = Tensor<'a>> {
        checkpoint
            .names()
            .map(|stored| Tensor { name: self.names.get(stored).map_or(stored, String::as_str), stored })
    }
}

/// Finds and checks the weight of every selected module.
pub(super) fn find(
    checkpoint: &Checkpoint,
    sites: &[RecordedSite<'_>],
    source: Option<&Recording>,
    selector: &Selector<'_>,
    (renames, before): (&Renames<'_>, &BTreeMap<String, String>),
    options: &Options,
) -> Found {
    let before = |module| before.get(module).map_or(module, String::as_str);
    let recorded = sites.iter().flat_map(|site| site.modules).map(|module| before(module));
    let unwrapped = Unwrapped::of(checkpoint);
    let at_run_time = unwrapped.names_at_run_time(checkpoint);
    let at_run_time = at_run_time.iter().map(|(name, stored)| Tensor { name, stored });
    let at_run_time = Names::new(at_run_time, recorded.clone(), renames);
    let names =
        Names::new(unwrapped.tensors(checkpoint), recorded, renames).with_names_at_run_time(&at_run_time);
    let unadapted = Unadapted::of(checkpoint);
    let unread_quantization = checkpoint.unread_quantization();
    let mut found = Found { notes: unwrapped.note.iter().cloned().collect(), ..Found::default() };
    let mut readers: BTreeMap<Vec<Piece>, Vec<LayerName>> = BTreeMap::new();
    for site in sites {
        let mut layers = Vec::new();
        for module in site.modules.iter().filter(|module| selector.selects(module)) {
            if let Some(reason) = unadapted.reason_against(module) {
                skip(module, reason, selector, checkpoint, &mut found);
                continue;
            }
            // A module that the user renamed for the adapter keeps its old name in the checkpoint, or has the new one there too.
            let located = locate_layer(&names, before(module), module);
            let located = located.or_else(|unresolved| match before(module) == module {
                true => Err(unresolved),
                false => locate_layer(&names, module, module),
            });
            let (stored, name) = match located {
                Ok(found) => found,
                Err(unresolved) => {
                    // A search for similar names compares all names. With many problems, the first ones are enough.
                    let names = Some(&names).filter(|_| found.problems.0.len() < SEARCHED);
                    if let Some(method) = &unread_quantization {
                        let problem = blocks::unread_quantization(method);
                        found.problems.push(problem.in_file(checkpoint.path()).in_tensor(module));
                        continue;
                    }
                    let problem = unresolved.problem(module, names).in_file(checkpoint.path());
                    let help = shared::help_for_head(checkpoint, module, &unresolved);
                    found.problems.push(match help {
                        Some(help) => problem.help(help),
                        None => problem,
                    });
                    continue;
                }
            };
            match (Module { name: &name.module, checkpoint, site, options }).layers(&stored) {
                Ok(blocks) if let Some(reason) = reason_against(options.method, &blocks) => {
                    skip(module, reason, selector, checkpoint, &mut found);
                }
                Ok(blocks) => {
                    let is_recorded = |layer: &PlannedLayer| name.block.is_none() || layer.name == name;
                    layers.extend(blocks.into_iter().filter(is_recorded));
                }
                Err(Unfit::Wrong(problem)) => found.problems.push(problem),
                Err(Unfit::Kind(reason)) => skip(module, reason, selector, checkpoint, &mut found),
            }
        }
        for layer in &layers {
            readers.entry(layer.weight.clone()).or_default().push(layer.name.clone());
        }
        if !layers.is_empty() {
            let read = options.method.reads_activations();
            let source = source.and_then(|source| source.site(site.name));
            let sum = |target: u64, source: Option<u64>| match read {
                true => target.saturating_add(source.unwrap_or(0)),
                false => 0,
            };
            found.sites.push(PlannedSite {
                name: site.name.into(),
                width: site.width,
                rows: if read { site.rows } else { 0 },
                source_rows: source.map(|source| source.rows),
                rows_to_read: sum(site.rows_to_read, source.map(|source| source.rows_to_read)),
                bytes: sum(site.bytes, source.map(|source| source.bytes)),
                image_bytes: sum(site.image_bytes, source.map(|source| source.image_bytes)),
                classes: embeddings::classes(site, source.as_ref()),
                layers,
            });
        }
    }
    complete_experts(selector, checkpoint, &mut found);
    if options.start == Start::Residual {
        found.shared = shared::tensors(&names, sites, &found.sites);
    }
    if checkpoint.config().is_none() {
        refuse_ambiguous_squares(checkpoint, &mut found);
    }
    for (weight, modules) in readers.into_iter().filter(|(_, modules)| modules.len() > 1) {
        let what = format!(
            "the modules {} share one weight; tied weights cannot be adapted separately",
            list(modules)
        );
        found.problems.push(
            Problem::data(what)
                .in_file(checkpoint.path())
                .in_tensor(&weight[0].tensor)
                .help("exclude all but one with --exclude, or correct the names with --rename"),
        );
    }
    found
}

/// Refuses square weights beside weights that are stored transposed, if no configuration tells the layout of the square ones.
fn refuse_ambiguous_squares(checkpoint: &Checkpoint, found: &mut Found) {
    let layers = || found.sites.iter().flat_map(|site| &site.layers);
    if !layers().any(|layer| layer.shape == LayerShape::Transposed) {
        return;
    }
    let square = |layer: &&PlannedLayer| layer.shape == LayerShape::Linear && layer.outputs == layer.inputs;
    let problems: Vec<Problem> = layers()
        .filter(square)
        .map(|layer| {
            Problem::data(format!(
                "module {}: no config.json beside the weights, and the layout of this square weight is ambiguous, because other \
                 weights are stored as [inputs, outputs]",
                quoted(&layer.name.to_string())
            ))
            .in_file(checkpoint.path())
            .in_tensor(&layer.tensors())
            .help("put the config.json of the model there, or exclude this layer with --exclude")
        })
        .collect();
    problems.into_iter().for_each(|problem| found.problems.push(problem));
}

/// Finds the weight of a recorded module, and gives it the name in the adapter. If no weight has this name, the name may be that of one
/// expert: a module and a number.
fn locate_layer<'a>(
    names: &Names<'a>,
    recorded: &str,
    in_adapter: &str,
) -> Result<(Stored<'a>, LayerName), Unresolved<'a>> {
    let unresolved = match locate(names, recorded) {
        Ok(stored) => return Ok((stored, LayerName::of_module(in_adapter))),
        Err(unresolved) => unresolved,
    };
    let expert = block_from_text(recorded).zip(block_from_text(in_adapter));
    match expert.and_then(|(recorded, expert)| Some((locate(names, &recorded.module).ok()?, expert))) {
        Some((stored @ (Stored::Parameter(_) | Stored::Experts(_)), expert)) => Ok((stored, expert)),
        _ => Err(unresolved),
    }
}

/// The block that a recording calls `module.number`. `None` for other names, and for numbers with leading zeros or a sign.
fn block_from_text(text: &str) -> Option<LayerName> {
    let (module, number) = text.rsplit_once('.')?;
    let name = LayerName::of_block(module, number.parse().ok()?);
    (name.to_string() == text).then_some(name)
}

/// The reason why the method does not adapt a module with these blocks.
fn reason_against(method: Method, blocks: &[PlannedLayer]) -> Option<String> {
    let shape = &blocks.first()?.shape;
    let reason = method.reason_against(shape)?;
    Some(format!("the method {} does not adapt {}: {reason}", method.name(), shape.plural()))
}

/// Skips a module. Reports a problem if the user named the module.
fn skip(module: &str, reason: String, selector: &Selector<'_>, checkpoint: &Checkpoint, found: &mut Found) {
    if !selector.names(module) {
        found.skipped.push(Skipped { name: module.into(), reason });
        return;
    }
    let what = format!("module {} cannot be adapted: {reason}", quoted(module));
    let problem = Problem::data(what).in_file(checkpoint.path());
    found.problems.push(problem.help("remove it from --target, or add it to --exclude"));
}

/// Skips modules with some experts that were not recorded: PEFT adapts all experts of a module, or none.
fn complete_experts(selector: &Selector<'_>, checkpoint: &Checkpoint, found: &mut Found) {
    let mut recorded: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for layer in found.sites.iter().flat_map(|site| &site.layers) {
        if let Some(count) = layer.shape.blocks() {
            recorded.entry(layer.name.module.clone()).or_insert((0, count)).0 += 1;
        }
    }
    recorded.retain(|_, (some, all)| some < all);
    if recorded.is_empty() {
        return;
    }
    for site in &mut found.sites {
        site.layers.retain(|layer| !recorded.contains_key(&layer.name.module));
    }
    for (module, (some, all)) in recorded {
        let reason = format!("only {some} of its {all} experts were recorded, but PEFT adapts all or none");
        skip(&module, reason, selector, checkpoint, found);
    }
    found.sites.retain(|site| !site.layers.is_empty());
}

/// Checks that the pre-training activations have the sites of the selected modules.
pub(super) fn check_source(
    target: &[RecordedSite<'_>],
    source: &Recording,
    selector: &Selector<'_>,
    coupling: Coupling,
    problems: &mut Problems,
) {
    let selected = |site: &RecordedSite<'_>| site.modules.iter().any(|module| selector.selects(module));
    for site in target.iter().filter(|site| selected(site)) {
        let Some(other) = source.site(site.name) else {
            let what = format!("the pre-training activations have no site {}", quoted(site.name));
            problems
                .push(Problem::data(what).help("record the same sites for --source as for --activations"));
            continue;
        };
        let differ = |what: &str, here: u64, there: u64| {
            Problem::data(format!(
                "expected {here} {what} as in the fine-tuning activations in {}, found {there}",
                quoted(&site.path.to_string_lossy())
            ))
            .in_file(other.path)
            .in_tensor(site.name)
        };
        if other.recorded.is_tokens() != site.recorded.is_tokens() {
            let kind =
                |site: &RecordedSite<'_>| if site.recorded.is_tokens() { "counts of tokens" } else { "rows" };
            let what =
                format!("expected {} as in the fine-tuning activations, found {}", kind(site), kind(&other));
            problems.push(Problem::data(what).in_file(other.path).in_tensor(site.name));
        } else if other.width != site.width {
            problems.push(differ("numbers per row", site.width as u64, other.width as u64));
        }
        if coupling == Coupling::Paired && !site.recorded.is_tokens() && other.rows != site.rows {
            problems.push(differ("rows", site.rows, other.rows).help(
                "paired rows come from the same inputs in the same order; --coupling transport needs no pairs",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Selection;
    use super::super::testing::{Fixture, INNER, WIDTH, experts, shapes, write};
    use super::*;
    use expect_test::expect;

    #[test]
    fn names_of_blocks_are_read_from_recordings() {
        let block = |module: &str, number| Some(LayerName::of_block(module, number));
        assert_eq!(block_from_text("experts.down_proj.12"), block("experts.down_proj", 12));
        for text in ["down_proj", "down_proj.", "down_proj.01", "down_proj.+1", "down_proj.x", ""] {
            assert_eq!(block_from_text(text), None, "{text}");
        }
    }

    #[test]
    fn problems_of_layers_are_reported_together() {
        let mut fixture = Fixture::bert();
        fixture.model(&[
            ("encoder.layer.0.attention.self.query.weight", "F32", &[INNER, WIDTH + 1]),
            ("encoder.layer.0.attention.self.keys.weight", "F32", &[WIDTH, WIDTH]),
            ("a.encoder.layer.0.attention.self.value.weight", "F32", &[WIDTH, WIDTH]),
            ("b.encoder.layer.0.attention.self.value.weight", "F32", &[WIDTH, WIDTH]),
            ("encoder.layer.0.intermediate.dense.weight", "F32", &[INNER, WIDTH + 2]),
        ]);
        fixture.check_refusal(&expect![[r#"
            Data: model.safetensors: expected the weight of module "encoder.layer.0.attention.self.key" in the checkpoint, found no match; similar names are "encoder.layer.0.attention.self.keys.weight", "encoder.layer.0.attention.self.query.weight", "a.encoder.layer.0.attention.self.value.weight"
                help: map the name to the one in the checkpoint with --rename 'REGEX=REPLACEMENT', or exclude the module with --exclude
            Data: model.safetensors: tensor "encoder.layer.0.attention.self.query.weight": module "encoder.layer.0.attention.self.query" has a weight of shape [10, 7]: expected 7 numbers in each row of site "encoder.layer.0.attention.self.query", found 6
                help: use the checkpoint that the activations were recorded from, or correct the names with --rename
            Data: model.safetensors: expected the weight of module "encoder.layer.0.attention.self.value" in the checkpoint, found several matches: "a.encoder.layer.0.attention.self.value.weight", "b.encoder.layer.0.attention.self.value.weight"
                help: choose one with --rename, for example --rename '^=PREFIX.' for a prefix
            Data: model.safetensors: tensor "encoder.layer.0.intermediate.dense.weight": module "encoder.layer.0.intermediate.dense" has a weight of shape [10, 8]: expected 8 numbers in each row of site "encoder.layer.0.intermediate.dense", found 6
                help: use the checkpoint that the activations were recorded from, or correct the names with --rename
        "#]]);
        // A rename resolves the ambiguity.
        fixture.request.renames = vec!["^=b.".parse().unwrap()];
        fixture.check_refusal(&expect![[r#"
            Data: model.safetensors: expected the weight of module "encoder.layer.0.attention.self.key" in the checkpoint, found no match; similar names are "encoder.layer.0.attention.self.keys.weight", "b.encoder.layer.0.attention.self.value.weight", "encoder.layer.0.attention.self.query.weight"
                help: map the name to the one in the checkpoint with --rename 'REGEX=REPLACEMENT', or exclude the module with --exclude
            Data: model.safetensors: tensor "encoder.layer.0.attention.self.query.weight": module "encoder.layer.0.attention.self.query" has a weight of shape [10, 7]: expected 7 numbers in each row of site "encoder.layer.0.attention.self.query", found 6
                help: use the checkpoint that the activations were recorded from, or correct the names with --rename
            Data: model.safetensors: tensor "encoder.layer.0.intermediate.dense.weight": module "encoder.layer.0.intermediate.dense" has a weight of shape [10, 8]: expected 8 numbers in each row of site "encoder.layer.0.intermediate.dense", found 6
                help: use the checkpoint that the activations were recorded from, or correct the names with --rename
        "#]]);
    }

    #[test]
    fn unsuitable_modules_are_skipped_unless_the_user_names_them() {
        let mut fixture = Fixture::bert();
        fixture.request.method.start = Start::Mirrored;
        fixture.model(&[
            ("encoder.layer.0.attention.self.query.weight", "F32", &[3, INNER, WIDTH]),
            ("encoder.layer.0.attention.self.key.weight", "F32", &[WIDTH, 1, 1]),
            ("encoder.layer.0.attention.self.value.weight", "I64", &[WIDTH, WIDTH]),
            ("encoder.layer.0.intermediate.dense.weight", "F32", &[INNER, WIDTH]),
        ]);
        let skipped = fixture.plan().skipped;
        let reasons: Vec<_> = skipped.iter().map(|skipped| skipped.reason.as_str()).collect();
        expect![[r#"
            it is a convolution in 6 groups: its rank must be a multiple of 12 and at most 12, because each group needs an even rank
            its weight has several matrices, but is not a parameter of fused experts
            its weight has the format "I64", not F64, F32, F16 or BF16"#]].assert_eq(&reasons.join("\n"));
        fixture.request.selection.targets = vec!["all-linear".into()];
        assert_eq!(fixture.plan().skipped, skipped);
        fixture.request.selection.targets = vec!["key".into(), "dense".into()];
        fixture.check_refusal(&expect![[r#"
            Data: model.safetensors: module "encoder.layer.0.attention.self.key" cannot be adapted: it is a convolution in 6 groups: its rank must be a multiple of 12 and at most 12, because each group needs an even rank
                help: remove it from --target, or add it to --exclude
        "#]]);
        fixture.request.selection =
            Selection { include: vec!["(key|value)$".into()], ..Selection::default() };
        fixture.check_refusal(&expect![[r#"
            Data: tensor "encoder.layer.0.attention.self.key": no selected module has a weight that can be adapted: it is a convolution in 6 groups: its rank must be a multiple of 12 and at most 12, because each group needs an even rank
        "#]]);
        // Modules that are not selected are not reported.
        fixture.request.selection =
            Selection { exclude: vec!["query|key|value".into()], ..Selection::default() };
        assert!(fixture.plan().skipped.is_empty());
    }

    #[test]
    fn tied_weights_are_refused() {
        let mut fixture = Fixture::bert();
        fixture.request.renames = vec!["key$=query".parse().unwrap()];
        fixture.model(&[
            ("encoder.layer.0.attention.self.query.weight", "F32", &[WIDTH, WIDTH]),
            ("encoder.layer.0.attention.self.value.weight", "F32", &[WIDTH, WIDTH]),
            ("encoder.layer.0.intermediate.dense.weight", "F32", &[INNER, WIDTH]),
        ]);
        fixture.check_refusal(&expect![[r#"
            Data: model.safetensors: tensor "encoder.layer.0.attention.self.query.weight": the modules "encoder.layer.0.attention.self.key", "encoder.layer.0.attention.self.query" share one weight; tied weights cannot be adapted separately
                help: exclude all but one with --exclude, or correct the names with --rename
        "#]]);
    }

    #[test]
    fn source_activations_must_fit() {
        let mut fixture = Fixture::bert();
        fixture.request.source = vec![fixture.activations("source", 3, WIDTH)];
        fixture.request.method.coupling = Coupling::Paired;
        fixture.check_refusal(&expect![[r#"
            Data: source.safetensors: tensor "encoder.layer.0.attention.self.query": expected 8 rows as in the fine-tuning activations in "target.safetensors", found 3
                help: paired rows come from the same inputs in the same order; --coupling transport needs no pairs
            Data: source.safetensors: tensor "encoder.layer.0.intermediate.dense": expected 16 rows as in the fine-tuning activations in "target.safetensors", found 6
                help: paired rows come from the same inputs in the same order; --coupling transport needs no pairs
        "#]]);
        fixture.activations("source", 8, WIDTH);
        fixture.plan();
        fixture.request.method.coupling = Coupling::Uncorrelated;
        fixture.activations("source", 3, WIDTH + 1);
        fixture.check_refusal(&expect![[r#"
            Data: source.safetensors: tensor "encoder.layer.0.attention.self.query": expected 6 numbers per row as in the fine-tuning activations in "target.safetensors", found 7
            Data: source.safetensors: tensor "encoder.layer.0.intermediate.dense": expected 6 numbers per row as in the fine-tuning activations in "target.safetensors", found 7
        "#]]);
        fixture.request.selection.targets = vec!["dense".into()];
        fixture.check_refusal(&expect![[r#"
            Data: source.safetensors: tensor "encoder.layer.0.intermediate.dense": expected 6 numbers per row as in the fine-tuning activations in "target.safetensors", found 7
        "#]]);
        write(&fixture.request.source[0], None, [("other", "F32", [1, WIDTH].as_slice())]);
        fixture.check_refusal(&expect![[r#"
            Data: the pre-training activations have no site "encoder.layer.0.intermediate.dense"
                help: record the same sites for --source as for --activations
        "#]]);
    }

    /// Experts can be recorded separately, each at its own site. PEFT adapts all experts of a module, or none.
    #[test]
    fn modules_with_missing_experts_are_skipped() {
        const NAMES: [&str; 2] =
            ["layers.0.mlp.experts.gate_up_proj.0", "layers.0.mlp.experts.gate_up_proj.1"];
        let tensors: [(&str, &[u64]); 5] = [
            ("layers.0.block_sparse_moe.experts.0.w1.weight", &[5, 6]),
            ("layers.0.block_sparse_moe.experts.0.w3.weight", &[5, 6]),
            ("layers.0.block_sparse_moe.experts.1.w1.weight", &[5, 6]),
            ("layers.0.block_sparse_moe.experts.1.w3.weight", &[5, 6]),
            ("layers.0.q_proj.weight", &[6, 6]),
        ];
        let fixture = experts(&tensors, &NAMES.map(|name| (name, 6)), None);
        let plan = fixture.plan();
        let expert = LayerShape::Expert { count: 2, transposed: false };
        assert_eq!(shapes(&plan), NAMES.map(|name| (name.to_owned(), 10, 6, &expert)));
        assert_eq!(plan.sites.len(), 2);
        assert_eq!(
            plan.sites[1].layers[0].tensors(),
            "layers.0.block_sparse_moe.experts.1.w1.weight + layers.0.block_sparse_moe.experts.1.w3.weight"
        );

        let alone = experts(&tensors, &[(NAMES[1], 6), ("layers.0.q_proj", 6)], None);
        let plan = alone.plan();
        assert_eq!(shapes(&plan), [("layers.0.q_proj".to_owned(), 6, 6, &LayerShape::Linear)]);
        assert_eq!(plan.skipped[0].name, "layers.0.mlp.experts.gate_up_proj");
        let reason = "only 1 of its 2 experts were recorded, but PEFT adapts all or none";
        assert_eq!(plan.skipped[0].reason, reason);
    }
}
