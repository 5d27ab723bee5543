//! Sites, modules and weights put together.

use super::blocks::Module;
use super::names::{Names, Unresolved};
use super::nearest::list;
use super::recording::{RecordedSite, Recording};
use super::renames::Renames;
use super::select::Selector;
use super::stored::{Stored, locate};
use super::unfit::Unfit;
use super::{PlannedLayer, PlannedSite, Skipped, embeddings};
use crate::constraint::Coupling;
use crate::factors::{LayerShape, module_and_block};
use crate::method::Options;
use crate::storage::{Checkpoint, Piece, Problem, Problems, quoted};
use std::collections::BTreeMap;

/// What was found of the layers.
#[derive(Default)]
pub(super) struct Found {
    /// The sites with at least one layer that can be adapted.
    pub sites: Vec<PlannedSite>,
    /// Modules that are selected and cannot be adapted.
    pub skipped: Vec<Skipped>,
    /// Complaints.
    pub problems: Problems,
}

/// Finds and checks the weight of every selected module.
pub(super) fn find(
    checkpoint: &Checkpoint,
    sites: &[RecordedSite<'_>],
    source: Option<&Recording>,
    selector: &Selector<'_>,
    renames: &Renames<'_>,
    options: &Options,
) -> Found {
    let recorded = sites.iter().flat_map(|site| site.modules).map(String::as_str);
    let names = Names::new(checkpoint.names(), recorded, renames);
    let mut found = Found::default();
    let mut readers: BTreeMap<Vec<Piece>, Vec<String>> = BTreeMap::new();
    for site in sites {
        let mut layers = Vec::new();
        for module in site.modules.iter().filter(|module| selector.selects(module)) {
            let (stored, block) = match locate_block(&names, module) {
                Ok(found) => found,
                Err(unresolved) => {
                    found.problems.push(unresolved.problem(module, &names).in_file(checkpoint.path()));
                    continue;
                }
            };
            let whole = block.and(module_and_block(module)).map_or(module.as_str(), |(parent, _)| parent);
            match (Module { name: whole, checkpoint, site, options }).layers(&stored) {
                Ok(blocks) => {
                    let meant = |layer: &PlannedLayer| block.is_none() || layer.module == *module;
                    layers.extend(blocks.into_iter().filter(meant));
                }
                Err(Unfit::Wrong(problem)) => found.problems.push(problem),
                Err(Unfit::Kind(reason)) => leave_out(module, reason, selector, checkpoint, &mut found),
            }
        }
        for layer in &layers {
            readers.entry(layer.weight.clone()).or_default().push(layer.module.clone());
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
    if checkpoint.config().is_none() {
        complain_of_squares(checkpoint, &mut found);
    }
    for (weight, modules) in readers.into_iter().filter(|(_, modules)| modules.len() > 1) {
        let what = format!(
            "expected one module for each weight, found that {} share it; tied weights cannot be adapted one by one",
            list(modules.iter().map(String::as_str))
        );
        found.problems.push(
            Problem::data(what)
                .in_file(checkpoint.path())
                .in_tensor(&weight[0].tensor)
                .help("leave all but one out with --exclude, or correct the names with --rename"),
        );
    }
    found
}

/// Beside weights that are stored transposed, a square one may be either.
fn complain_of_squares(checkpoint: &Checkpoint, found: &mut Found) {
    let layers = || found.sites.iter().flat_map(|site| &site.layers);
    if !layers().any(|layer| layer.shape == LayerShape::Transposed) {
        return;
    }
    let square = |layer: &&PlannedLayer| layer.shape == LayerShape::Linear && layer.outputs == layer.inputs;
    let problems: Vec<Problem> = layers()
        .filter(square)
        .map(|layer| {
            Problem::data(format!(
                "module {}: expected config.json beside the weights, because other weights are stored as [input, output] \
                 features and this one is square, found none",
                quoted(&layer.module)
            ))
            .in_file(checkpoint.path())
            .in_tensor(&layer.tensors())
            .help("put the model's config.json there, or leave this layer out with --exclude")
        })
        .collect();
    problems.into_iter().for_each(|problem| found.problems.push(problem));
}

/// Where the weight of a module is, and which of its blocks is meant, if it is one of them.
fn locate_block<'a>(names: &Names<'a>, module: &str) -> Result<(Stored<'a>, Option<usize>), Unresolved<'a>> {
    let unresolved = match locate(names, module) {
        Ok(stored) => return Ok((stored, None)),
        Err(unresolved) => unresolved,
    };
    match module_and_block(module).and_then(|(parent, block)| Some((locate(names, parent).ok()?, block))) {
        Some((stored @ (Stored::Parameter(_) | Stored::Experts(_)), block)) => Ok((stored, Some(block))),
        _ => Err(unresolved),
    }
}

/// Leaves a module out, or complains where the user names it.
fn leave_out(
    module: &str,
    reason: String,
    selector: &Selector<'_>,
    checkpoint: &Checkpoint,
    found: &mut Found,
) {
    if !selector.names(module) {
        found.skipped.push(Skipped { name: module.into(), reason });
        return;
    }
    let what = format!("module {} cannot be adapted: {reason}", quoted(module));
    let problem = Problem::data(what).in_file(checkpoint.path());
    found.problems.push(problem.help("leave it out of --target, or name it to --exclude"));
}

/// Leaves out experts whose siblings were not recorded: PEFT adapts all of them, or none.
fn complete_experts(selector: &Selector<'_>, checkpoint: &Checkpoint, found: &mut Found) {
    let mut recorded: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for layer in found.sites.iter().flat_map(|site| &site.layers) {
        if let (Some(count), Some((module, _))) = (layer.shape.blocks(), module_and_block(&layer.module)) {
            recorded.entry(module.into()).or_insert((0, count)).0 += 1;
        }
    }
    for (module, (some, all)) in recorded.into_iter().filter(|(_, (some, all))| some < all) {
        let is_of = |layer: &PlannedLayer| {
            module_and_block(&layer.module)
                .is_some_and(|(other, _)| layer.shape.blocks().is_some() && other == module)
        };
        found.sites.iter_mut().for_each(|site| site.layers.retain(|layer| !is_of(layer)));
        let reason =
            format!("activations of {some} of its {all} experts were recorded, and PEFT adapts all of them");
        leave_out(&module, reason, selector, checkpoint, found);
    }
    found.sites.retain(|site| !site.layers.is_empty());
}

/// Checks that the pre-training activations have the sites of the selected modules.
pub(super) fn check_source(
    target: &Recording,
    source: &Recording,
    selector: &Selector<'_>,
    coupling: Coupling,
    problems: &mut Problems,
) {
    let selected = |site: &RecordedSite<'_>| site.modules.iter().any(|module| selector.selects(module));
    for site in target.sites().into_iter().filter(selected) {
        let Some(other) = source.site(site.name) else {
            let what = format!(
                "expected the site {} among the pre-training activations, found {} sites without it",
                quoted(site.name),
                source.sites().len()
            );
            problems
                .push(Problem::data(what).help("record the same sites for --source as for --activations"));
            continue;
        };
        let differ = |what: &str, here: u64, there: u64| {
            Problem::data(format!(
                "expected {here} {what} as among the fine-tuning activations in {}, found {there}",
                quoted(&site.path.to_string_lossy())
            ))
            .in_file(other.path)
            .in_tensor(site.name)
        };
        if other.is_of_tokens() != site.is_of_tokens() {
            let kind =
                |site: &RecordedSite<'_>| if site.is_of_tokens() { "counts of tokens" } else { "rows" };
            let what = format!(
                "expected {} as among the fine-tuning activations, found {}",
                kind(&site),
                kind(&other)
            );
            problems.push(Problem::data(what).in_file(other.path).in_tensor(site.name));
        } else if other.width != site.width {
            problems.push(differ("numbers per row", site.width as u64, other.width as u64));
        }
        if coupling == Coupling::Paired && !site.is_of_tokens() && other.rows != site.rows {
            problems.push(differ("rows", site.rows, other.rows).help(
                "paired rows are of the same inputs in the same order; --coupling transport needs no pairs",
            ));
        }
    }
}
