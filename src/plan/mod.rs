//! What a run is going to do, from headers alone: sites, layers, shapes, memory, work, and every complaint at once.
//!
//! Runs nothing: a [`Plan`] is data. `select` says which modules are adapted, `names` finds the weight of a module in the
//! checkpoint with the renames of `presets`, and `stored` where it shares a tensor or has several. `embeddings` knows what is special
//! about those, `weights` stands in for activations where there are none, `blocks` makes layers of what is stored, `layers` puts
//! sites, modules and weights together, `options` checks what the user asks for against them, `cost` estimates memory and work, and
//! `schedule` says how many sites fit side by side. `measurement` plans the measurement of moments, `shard` cuts work into
//! parts, and `division` says what that comes to. `unfit` is why a weight gets no adapter.

mod blocks;
mod cost;
mod division;
mod embeddings;
mod layers;
mod measurement;
mod names;
mod nearest;
mod options;
mod presets;
mod recording;
mod renames;
mod schedule;
mod select;
mod shard;
mod stored;
mod unfit;
mod weights;

use crate::constraint::Coupling;
use crate::element::Element;
use crate::factors::LayerShape;
use crate::method::{Method, Options};
use crate::simd::Precision;
use crate::storage::{Access, Checkpoint, Piece, Problem, Problems};
use cost::Memory;
pub use division::{Division, Share};
pub use embeddings::refuse_tied_embedding;
use layers::Found;
pub use measurement::{Measurement, MeasurementRequest, SiteRows, plan_measurement};
use recording::RecordedSite;
pub use recording::Recording;
pub use renames::Rename;
use renames::Renames;
use select::Selector;
use serde::{Deserialize, Serialize};
pub use shard::Shard;
use std::path::PathBuf;

/// What a user asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Checkpoint folder or file.
    pub model: PathBuf,
    /// Fine-tuning activations: files and folders. Methods that look at weights alone take only the names of modules from
    /// them, and do without: the modules are then those of the checkpoint.
    pub activations: Vec<PathBuf>,
    /// Moments files that take their place, if there are any.
    pub moments: Vec<PathBuf>,
    /// Pre-training activations; without them and their moments, source statistics are isotropic.
    pub source: Vec<PathBuf>,
    /// Moments files that take their place, if there are any.
    pub source_moments: Vec<PathBuf>,
    /// Which layers.
    pub selection: Selection,
    /// From module names to checkpoint names.
    pub renames: Vec<Rename>,
    /// How the factors come about. [`Strength::MaxShift`](crate::factors::Strength::MaxShift) is the share of the whole model here.
    pub method: Options,
    /// What happens to rows with NaN or infinity.
    pub nonfinite: Nonfinite,
    /// What Gram matrices are computed with.
    pub precision: Precision,
    /// Number format in which the factors will be stored.
    pub element: Element,
    /// How files are read.
    pub access: Access,
    /// Threads to work with.
    pub threads: usize,
    /// Bytes that the run may hold, if that is limited.
    pub max_memory: Option<u64>,
    /// True to refuse a run in which the activations of a site cannot be used, instead of going on without the site.
    #[serde(default)]
    pub strict: bool,
}

impl Request {
    /// Every recorded module, with the usual options, in f32 and on one thread: what a caller does not set otherwise.
    pub fn new(model: PathBuf, activations: Vec<PathBuf>) -> Self {
        Self {
            model,
            activations,
            moments: Vec::new(),
            source: Vec::new(),
            source_moments: Vec::new(),
            selection: Selection::default(),
            renames: Vec::new(),
            method: Options::default(),
            nonfinite: Nonfinite::default(),
            precision: Precision::default(),
            element: Element::F32,
            access: Access::default(),
            threads: 1,
            max_memory: None,
            strict: false,
        }
    }
}

/// Which layers get an adapter. Empty lists select everything that an activation site names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Module names or suffixes, as PEFT's `target_modules` list understands them; `all-linear` for all.
    pub targets: Vec<String>,
    /// Regular expressions, one of which must be found in the module name.
    pub include: Vec<String>,
    /// Regular expressions, none of which may be found in the module name.
    pub exclude: Vec<String>,
}

/// What happens to rows with NaN or infinity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nonfinite {
    /// The run is refused, with file, tensor, row and column.
    #[default]
    Refuse,
    /// They are left out, and counted in the report.
    SkipRows,
}

/// What a run is going to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The model as it was named.
    pub model: PathBuf,
    /// The sites that are read, in order of name, each with its layers.
    pub sites: Vec<PlannedSite>,
    /// What is left out, and why.
    pub skipped: Vec<Skipped>,
    /// How the factors come about.
    pub method: Options,
    /// What happens to rows with NaN or infinity.
    pub nonfinite: Nonfinite,
    /// True to refuse a run in which the activations of a site cannot be used, instead of going on without the site.
    #[serde(default)]
    pub strict: bool,
    /// What Gram matrices are computed with.
    pub precision: Precision,
    /// Number format in which the factors will be stored.
    pub element: Element,
    /// Threads to work with.
    pub threads: usize,
    /// How many narrow sites are worked on side by side.
    pub side_by_side: usize,
    /// Bytes that the run will hold at its peak, estimated from the shapes.
    pub peak_memory: u64,
    /// Floating-point operations, estimated from the shapes.
    pub work: Work,
}

impl Plan {
    /// The layers of all sites.
    pub fn layers(&self) -> impl Iterator<Item = &PlannedLayer> {
        self.sites.iter().flat_map(|site| &site.layers)
    }

    /// The part of [`Self::work`] that a site asks for.
    pub fn site_work(&self, site: &PlannedSite) -> Work {
        cost::work(std::slice::from_ref(site), &self.method)
    }

    /// The sites of a part of the run. Every site is of one part, and all parts have about the same work.
    pub fn sites_of(&self, shard: Shard) -> Vec<&PlannedSite> {
        shard::sites_of(self, shard)
    }
}

impl PlannedSite {
    /// Whether this site is worked on beside others, on one thread. Wider sites are worked on one after the other, with
    /// all threads inside.
    pub fn is_narrow(&self) -> bool {
        is_narrow(self.width)
    }
}

/// True if sites of this width are worked on side by side, each on its share of the threads. Wider sites are worked on one after the
/// other, with all threads inside.
pub(crate) fn is_narrow(width: usize) -> bool {
    const SIDE_BY_SIDE: usize = 2048;
    width <= SIDE_BY_SIDE
}

/// A site and the layers that read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedSite {
    /// Its name in the activation files.
    pub name: String,
    /// Numbers per row.
    pub width: usize,
    /// Fine-tuning rows, or tokens.
    pub rows: u64,
    /// Pre-training rows, if there are any.
    pub source_rows: Option<u64>,
    /// Rows to read, of both kinds: none of those whose moments are known.
    pub rows_to_read: u64,
    /// Bytes of activations or moments to read.
    pub bytes: u64,
    /// Bytes of the images that patches are cut from, one of either kind of activations, which are held while rows are read.
    pub image_bytes: u64,
    /// In how many classes the tokens of an embedding fall, see [`token_classes`](crate::constraint::token_classes): its activations
    /// are counts, and not rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<u64>,
    /// The layers that read it, in order of module name.
    pub layers: Vec<PlannedLayer>,
}

/// A layer that gets an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedLayer {
    /// Runtime module name; with a number behind it for one of the blocks of a module, such as an expert.
    pub module: String,
    /// Where its weight is in the checkpoint: pieces that follow one another.
    pub weight: Vec<Piece>,
    /// How it is stored there.
    pub shape: LayerShape,
    /// Number format of the weight.
    pub element: Element,
    /// Output features `m`.
    pub outputs: usize,
    /// Input features `d`.
    pub inputs: usize,
    /// Largest rank that its module may get.
    pub max_rank: usize,
}

impl PlannedLayer {
    /// Names of the tensors that hold its weight.
    pub fn tensors(&self) -> String {
        self.weight.iter().map(|piece| piece.tensor.as_str()).collect::<Vec<_>>().join(" + ")
    }
}

/// Something that is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Module or site.
    pub name: String,
    /// Why, in words.
    pub reason: String,
}

/// Floating-point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Gram updates.
    pub moments: f64,
    /// Factorizations per site, and operators and decompositions per layer.
    pub factors: f64,
}

/// The opened files of a plan.
pub struct Inputs {
    /// The model.
    pub checkpoint: Checkpoint,
    /// Fine-tuning activations, unless the method does without and none were given.
    pub target: Option<Recording>,
    /// Pre-training activations.
    pub source: Option<Recording>,
}

/// Opens the inputs, checks everything that headers and options can tell, and plans the run.
///
/// # Errors
/// All complaints about the options, the checkpoint, both sets of activations, and how they fit together. What cannot be
/// judged because of another complaint is left out.
pub fn plan(request: &Request) -> Result<(Plan, Inputs), Problems> {
    let mut problems = Problems::default();
    let reads_rows = request.moments.is_empty() || !request.source.is_empty();
    if reads_rows {
        problems.collect(options::check_precision(request.precision));
    }
    let has_source = !request.source.is_empty() || !request.source_moments.is_empty();
    options::check_values(&request.method, has_source, &mut problems);
    options::check_pairs(request, &mut problems);
    let renames = problems.collect(Renames::new(&request.renames));
    let selector = problems.collect(Selector::new(&request.selection));
    let checkpoint = problems.collect(Checkpoint::open(&request.model, request.access));
    let has_target = !request.activations.is_empty() || !request.moments.is_empty();
    let target = match has_target || request.method.method.reads_activations() {
        true => problems.collect(Recording::open(&request.activations, &request.moments, request.access)),
        false => None,
    };
    let source = match has_source {
        true => problems.collect(Recording::open(&request.source, &request.source_moments, request.access)),
        false => None,
    };
    for recording in [&target, &source].into_iter().flatten() {
        problems.collect(options::check_moments_precision(recording, request.precision));
    }

    if let (Some(target), Some(selector), Some(source)) = (&target, &selector, &source) {
        layers::check_source(target, source, selector, request.method.coupling, &mut problems);
    }
    let stand_ins;
    let sites: Option<Vec<RecordedSite<'_>>> = match (&target, &checkpoint, &selector) {
        (Some(target), _, _) => Some(target.sites()),
        (None, Some(checkpoint), Some(selector))
            if !has_target && !request.method.method.reads_activations() =>
        {
            weights::check_selection(&request.selection, &mut problems);
            stand_ins = weights::stand_ins(checkpoint, selector);
            Some(stand_ins.iter().map(|weight| recording::of_weight(weight, checkpoint.path())).collect())
        }
        _ => None,
    };
    if let (Some(sites), Some(selector)) = (&sites, &selector) {
        selector.check(sites.iter().flat_map(|site| site.modules).map(String::as_str), &mut problems);
    }
    let mut found = Found::default();
    if let (Some(checkpoint), Some(sites), Some(selector), Some(renames)) =
        (&checkpoint, &sites, &selector, &renames)
    {
        found = layers::find(checkpoint, sites, source.as_ref(), selector, renames, &request.method);
        problems.0.append(&mut found.problems.0);
        options::check_ranks(&request.method, &found.sites, &mut problems);
        if request.strict && request.method.method.reads_activations() {
            options::check_rows(&found.sites, &mut problems);
        }
        if found.sites.is_empty()
            && problems.0.is_empty()
            && let Some(first) = found.skipped.first()
        {
            let what = format!("no selected module has a weight that can be adapted: {}", first.reason);
            problems.push(Problem::data(what).in_tensor(&first.name));
        }
    }
    let memory = Memory::of_run(&found.sites, &request.method);
    let cheaper = match (request.method.method, request.method.coupling) {
        (Method::Cntlora, Coupling::Transport) => "; --coupling uncorrelated and smaller ranks need less",
        _ => "; smaller ranks need less",
    };
    let side_by_side = schedule::side_by_side(&memory, request.threads, request.max_memory, cheaper);
    let side_by_side = problems.collect(side_by_side);
    match (checkpoint, side_by_side) {
        (Some(checkpoint), Some(side_by_side)) if problems.0.is_empty() => {
            let plan = Plan {
                model: request.model.clone(),
                peak_memory: memory.peak(side_by_side),
                work: cost::work(&found.sites, &request.method),
                sites: found.sites,
                skipped: found.skipped,
                method: request.method.clone(),
                nonfinite: request.nonfinite,
                strict: request.strict,
                precision: request.precision,
                element: request.element,
                threads: request.threads,
                side_by_side,
            };
            Ok((plan, Inputs { checkpoint, target, source }))
        }
        _ => Err(problems),
    }
}

#[cfg(test)]
mod tests;
