//! Sites, modules and weights put together.

use super::names::Names;
use super::nearest::list;
use super::recording::{RecordedSite, Recording};
use super::renames::Renames;
use super::select::Selector;
use super::{PlannedLayer, PlannedSite, Skipped, weights};
use crate::constraint::Coupling;
use crate::element::Element;
use crate::factors::LayerShape;
use crate::method::Options;
use crate::rank::Limits;
use crate::storage::{Checkpoint, Problem, Problems, StoredTensor, quoted};
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

/// Why a weight gets no adapter.
enum Unfit {
    /// Its kind is none that can be adapted: left out, unless the user names it.
    Kind(String),
    /// Something is wrong with it.
    Wrong(Problem),
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
    let mut readers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for site in sites {
        let mut layers = Vec::new();
        for module in site.modules.iter().filter(|module| selector.selects(module)) {
            let tensor = match names.resolve(module) {
                Ok(tensor) => tensor,
                Err(unresolved) => {
                    found.problems.push(unresolved.problem(module).in_file(checkpoint.path()));
                    continue;
                }
            };
            readers.entry(tensor).or_default().push(module);
            let Some(stored) = checkpoint.get(tensor) else { continue };
            let located =
                |problem: Problem| problem.in_file(checkpoint.source(stored).path()).in_tensor(tensor);
            match layer(
                module,
                tensor,
                stored,
                site,
                weights::is_transposed(checkpoint, module),
                &options.limits,
            ) {
                Ok(layer) => layers.push(layer),
                Err(Unfit::Wrong(problem)) => found.problems.push(located(problem)),
                Err(Unfit::Kind(reason)) if selector.names(module) => {
                    let what = format!("module {} cannot be adapted: {reason}", quoted(module));
                    found.problems.push(
                        located(Problem::data(what))
                            .help("leave it out of --target, or name it to --exclude"),
                    );
                }
                Err(Unfit::Kind(reason)) => found.skipped.push(Skipped { name: module.clone(), reason }),
            }
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
                layers,
            });
        }
    }
    if checkpoint.config().is_none() {
        complain_of_squares(checkpoint, &mut found);
    }
    for (tensor, modules) in readers.into_iter().filter(|(_, modules)| modules.len() > 1) {
        let what = format!(
            "expected one module for each weight, found that {} share it; tied weights cannot be adapted one by one",
            list(modules)
        );
        found.problems.push(
            Problem::data(what)
                .in_file(checkpoint.path())
                .in_tensor(tensor)
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
            .in_tensor(&layer.tensor)
            .help("put the model's config.json there, or leave this layer out with --exclude")
        })
        .collect();
    problems.into_iter().for_each(|problem| found.problems.push(problem));
}

fn layer(
    module: &str,
    tensor: &str,
    stored: &StoredTensor,
    site: &RecordedSite<'_>,
    is_transposed: bool,
    limits: &Limits,
) -> Result<PlannedLayer, Unfit> {
    let stored = &stored.tensor;
    let element = Element::from_name(&stored.dtype).ok_or_else(|| {
        Unfit::Kind(format!(
            "its weight holds {} and not F64, F32, F16 or BF16 numbers",
            quoted(&stored.dtype)
        ))
    })?;
    let (outputs, shape) = shape_of(module, &stored.shape, site, is_transposed)?;
    let outputs = usize::try_from(outputs)
        .ok()
        .filter(|&outputs| outputs > 0)
        .ok_or_else(|| Unfit::Kind(format!("its weight has {outputs} outputs")))?;
    let full_rank = outputs.min(site.width);
    let multiple = limits.multiple.max(1);
    Ok(PlannedLayer {
        module: module.into(),
        tensor: tensor.into(),
        shape,
        element,
        outputs,
        inputs: site.width,
        max_rank: full_rank.min(limits.max) / multiple * multiple,
    })
}

/// Output features and the way of storing, from the shape of a weight and the width of what it reads.
fn shape_of(
    module: &str,
    stored: &[u64],
    site: &RecordedSite<'_>,
    is_transposed: bool,
) -> Result<(u64, LayerShape), Unfit> {
    let width = site.width as u64;
    let wrong = |expected: u64, why: &str| {
        let what = format!(
            "module {} has a weight of shape {stored:?}: expected {expected} numbers in each row of site {}, {why}found {width}",
            quoted(module),
            quoted(site.name)
        );
        Unfit::Wrong(Problem::data(what).help(
            "give the checkpoint that the activations were recorded from, or correct the names with --rename",
        ))
    };
    match *stored {
        [inputs, outputs] if inputs == width && (is_transposed || outputs != width) => {
            Ok((outputs, LayerShape::Transposed))
        }
        [outputs, inputs] if inputs == width => Ok((outputs, LayerShape::Linear)),
        [_, inputs] => Err(wrong(inputs, "")),
        [_, middle, inputs] if inputs == width && middle != 1 => {
            Err(Unfit::Kind("it holds several matrices, such as those of experts, in one tensor".into()))
        }
        [outputs, channels, ref kernel @ ..] if (1..=3).contains(&kernel.len()) => {
            let inputs = kernel.iter().try_fold(channels, |product, &axis| product.checked_mul(axis));
            match inputs {
                Some(inputs) if inputs == width => Ok((outputs, LayerShape::Convolution(kernel.to_vec()))),
                // As many channels as a multiple of those of the weight: PEFT's A then reads other channels than the weight.
                Some(inputs) if inputs > 0 && width > inputs && width.is_multiple_of(inputs) => {
                    Err(Unfit::Kind(format!("it is a convolution in {} groups", width / inputs)))
                }
                Some(inputs) => Err(wrong(inputs, "one unfolded patch, ")),
                None => Err(Unfit::Kind(format!("its weight has the shape {stored:?}"))),
            }
        }
        _ => Err(Unfit::Kind(format!(
            "its weight has the shape {stored:?}, and is none of a linear layer or a convolution"
        ))),
    }
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
        if other.width != site.width {
            problems.push(differ("numbers per row", site.width as u64, other.width as u64));
        }
        if coupling == Coupling::Paired && other.rows != site.rows {
            problems.push(differ("rows", site.rows, other.rows).help(
                "paired rows are of the same inputs in the same order; --coupling transport needs no pairs",
            ));
        }
    }
}
