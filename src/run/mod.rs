//! Carries a plan out and tells an observer what happens. Prints nothing.
//!
//! `site` works on one site (`unusable` says why one is left out, and `shift` how far a layer may move), with `moments` for its rows and `counts` for its tokens; `measure` stops there, and writes the
//! moments. `partial` is the folder of an unfinished run, `job` what it is about, and `saved_sums` and `saved_layers` are what is
//! in it. `lock` keeps two runs from one output, and `output` writes it. `parts` divides a run, and `part` is what one of them says
//! of itself.

mod counts;
#[cfg(test)]
mod faults;
mod inputs;
mod job;
mod lock;
mod measure;
mod moments;
mod output;
mod part;
mod partial;
mod parts;
mod ranks;
mod rows;
mod saved_layers;
mod saved_sums;
mod shift;
mod site;
mod unusable;

pub use job::Job;
pub use lock::{OutputLock, progress_folder};
pub use measure::measure;
pub use output::{Output, write};
pub use part::{Part, Writing};
pub use partial::PartialRun;
pub use parts::{Parts, run_part};
pub use saved_layers::SavedLayers;

use crate::activations::{ActivationSet, Site};
use crate::adapter::Adapter;
use crate::factors::{LayerShape, Strength};
use crate::method::Options;
use crate::plan::{Inputs, Plan, PlannedSite, is_narrow};
use crate::rank::Policy;
use crate::report::{InputFiles, LayerReport, Report, SCHEMA_VERSION, UnusableSite};
use crate::simd::Tier;
use crate::simd::threads::share;
use crate::storage::{Problem, Problems};
use rayon::prelude::*;
use serde::Serialize;
use site::{DecomposedLayer, FinishedSite};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What happens during a run.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event<'a> {
    /// The rows of a site are about to be read.
    SiteStarted {
        /// The site.
        site: &'a str,
        /// Rows to come, pre-training rows included.
        rows: u64,
    },
    /// Rows were read and added to the moments of a site.
    RowsAdded {
        /// The site.
        site: &'a str,
        /// How many.
        rows: u64,
    },
    /// Rows that an earlier run added, which are not read again.
    Resumed {
        /// The site.
        site: &'a str,
        /// How many.
        rows: u64,
    },
    /// The moments of a site are complete, and its layers are being decomposed.
    MomentsReady {
        /// The site.
        site: &'a str,
    },
    /// The spectrum of a layer is known.
    LayerDecomposed {
        /// The module.
        module: &'a str,
    },
    /// The activations of a site cannot be used: its layers get no adapter, and the run goes on.
    SiteLeftOut {
        /// The site.
        site: &'a str,
        /// The modules that get no adapter.
        modules: &'a [String],
        /// Why, in words.
        reason: &'a str,
    },
    /// Something that the user should know and that does not stop the run.
    Warning {
        /// In words.
        message: String,
    },
}

/// Is told what happens. Called from several threads.
pub trait Observer: Sync {
    /// One event.
    fn event(&self, event: Event<'_>);

    /// Whether the run shall end early. It finishes the block or the layer that it is at, saves its progress if it has where to,
    /// and ends with a problem of the category [`Interrupted`](crate::storage::Category::Interrupted).
    fn stop_requested(&self) -> bool {
        false
    }
}

/// Hears everything, does nothing.
impl Observer for () {
    fn event(&self, _event: Event<'_>) {}
}

/// What a run gives: the factors, still in memory, and what is to be said of them.
pub struct Outcome {
    /// The factors. Layers of rank 0 are left out.
    pub adapter: Adapter,
    /// What happened.
    pub report: Report,
}

/// Reads the activations and computes the factors. Writes nothing.
///
/// # Errors
/// An I/O problem if a file cannot be read, or changed meanwhile; a data problem for values that cannot be used, with
/// the place where they are, and for each site if none of them can be used, or, with [`Plan::strict`], if one cannot; a usage problem
/// for a budget that pays for no rank; an interruption if the observer asks for one.
pub fn run(plan: &Plan, inputs: &Inputs, observer: &dyn Observer) -> Result<Outcome, Problems> {
    carry_out(plan, inputs, observer, None)
}

/// As [`run()`], with progress that outlives the process: what an earlier run of the same job saved is not done again, and the result
/// has the same bits as that of one run without interruption. `partial` is left to the caller to discard, when what the
/// run gave is written.
///
/// # Errors
/// As [`run()`], and I/O and data problems of what is saved.
pub fn run_resumable(
    plan: &Plan,
    inputs: &Inputs,
    observer: &dyn Observer,
    partial: &PartialRun,
) -> Result<Outcome, Problems> {
    carry_out(plan, inputs, observer, Some(partial))
}

fn carry_out(
    plan: &Plan,
    inputs: &Inputs,
    observer: &dyn Observer,
    partial: Option<&PartialRun>,
) -> Result<Outcome, Problems> {
    let started = Instant::now();
    // Small files are hashed meanwhile. One thread does one thing after the other.
    let (sites, files) = beside(
        plan.threads > 1,
        || with_threads(plan.threads, || work_on_sites(plan, inputs, observer, partial)),
        || inputs::files(inputs),
    );
    let sites = sites?;
    check_unchanged(inputs)?;
    rows::warn_of_few(plan, sites.iter().flat_map(|site| &site.found), observer);
    assemble(plan, files?, sites, started)
}

/// Does both, the second on a thread of its own if `parallel`.
fn beside<A, B: Send>(
    parallel: bool,
    first: impl FnOnce() -> A,
    second: impl FnOnce() -> B + Send,
) -> (A, B) {
    if !parallel {
        return (first(), second());
    }
    std::thread::scope(|scope| {
        let second = scope.spawn(second);
        (first(), second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Refuses inputs that changed since they were opened.
fn check_unchanged(inputs: &Inputs) -> Result<(), Problems> {
    for recording in inputs.target.iter().chain(&inputs.source) {
        recording.check_unchanged()?;
    }
    for (file, _) in inputs.checkpoint.files() {
        file.check_unchanged()?;
    }
    Ok(())
}

/// Chooses the ranks, when the spectra of all layers are known, and makes the factors.
fn assemble(
    plan: &Plan,
    files: InputFiles,
    sites: Vec<FinishedSite<'_>>,
    started: Instant,
) -> Result<Outcome, Problems> {
    let (mut reports, mut unusable) = (Vec::new(), Vec::new());
    let mut layers: Vec<DecomposedLayer<'_>> = Vec::new();
    for site in sites {
        layers.extend(site.layers);
        match site.found {
            Ok(report) => reports.push(report),
            Err(site) => unusable.push(site),
        }
    }
    drop_incomplete(&mut layers, &unusable);
    if !unusable.is_empty() && (plan.strict || layers.is_empty()) {
        return Err(Problems(unusable.iter().map(|site| unusable::refusal(site, plan.strict)).collect()));
    }
    layers.sort_by(|a, b| a.planned.module.cmp(&b.planned.module));
    let ranks = ranks::allocate(&layers, &plan.method).map_err(|error| {
        let option = if matches!(plan.method.ranks, Policy::Budget(_)) { "--budget" } else { "--rank" };
        Problem::usage(error.to_string()).help(format!("give a larger {option}, or a smaller --min-rank"))
    })?;
    let adapted = layers.iter().zip(&ranks).filter(|(_, rank)| **rank > 0).map(|(layer, _)| layer);
    let trust_region = shift::divide(&plan.method, adapted);
    let mut options = plan.method.clone();
    if let Some(trust_region) = trust_region {
        options.strength = Strength::MaxShift(trust_region.layer);
    }
    let finished = with_threads(plan.threads, || {
        layers
            .par_iter()
            .zip(ranks)
            .map(|(layer, rank)| finish(layer, rank, &options))
            .collect::<Result<Vec<_>, _>>()
    })?;

    let shaped = plan.layers().filter(|layer| layer.shape != LayerShape::Linear);
    let mut adapter = Adapter {
        layers: BTreeMap::new(),
        shapes: shaped.map(|layer| (layer.module.clone(), layer.shape.clone())).collect(),
        scale: plan.method.scale,
        base: plan.model.display().to_string(),
    };
    let mut layer_reports = Vec::new();
    for (report, factors) in finished {
        if let Some(factors) = factors {
            adapter.layers.insert(report.module.clone(), factors);
        }
        layer_reports.push(report);
    }
    let seconds = started.elapsed().as_secs_f64();
    let report = Report {
        schema_version: SCHEMA_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        instruction_set: Tier::best().name().into(),
        precision: plan.precision,
        command: None,
        model: plan.model.clone(),
        inputs: files,
        method: plan.method.clone(),
        sites: reports,
        element: plan.element,
        parameters: layer_reports
            .iter()
            .map(|layer| (layer.rank * (layer.inputs + layer.outputs)) as u64)
            .sum(),
        layers: layer_reports,
        skipped: plan.skipped.clone(),
        unusable,
        trust_region,
        seconds,
    };
    Ok(Outcome { adapter, report })
}

/// Drops the blocks of modules of which another block has no usable site: PEFT adapts all blocks of a module, or none.
fn drop_incomplete(layers: &mut Vec<DecomposedLayer<'_>>, unusable: &[UnusableSite]) {
    let left_out: BTreeSet<&str> =
        unusable.iter().flat_map(|site| &site.modules).map(String::as_str).collect();
    layers.retain(|layer| !left_out.contains(unusable::module(layer.planned)));
}

/// Does the work in a pool of its own.
fn with_threads<T: Send>(
    threads: usize,
    work: impl FnOnce() -> Result<T, Problem> + Send,
) -> Result<T, Problem> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Problem::environment(format!("cannot start {threads} threads: {error}")))?;
    pool.install(work)
}

/// All sites, in the order of the plan.
fn work_on_sites<'a>(
    plan: &'a Plan,
    inputs: &Inputs,
    observer: &dyn Observer,
    partial: Option<&PartialRun>,
) -> Result<Vec<FinishedSite<'a>>, Problem> {
    let work = |site: &'a PlannedSite, threads| site::finish(plan, site, inputs, threads, observer, partial);
    let sites: Vec<&PlannedSite> = plan.sites.iter().collect();
    let mut finished = work_side_by_side(&sites, |site| site.width, Threads::of(plan), work)?;
    finished.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(finished)
}

/// How many threads there are, and how many narrow sites they work on at a time.
#[derive(Clone, Copy)]
struct Threads {
    all: usize,
    side_by_side: usize,
}

impl Threads {
    fn of(plan: &Plan) -> Self {
        Self { all: plan.threads, side_by_side: plan.side_by_side }
    }
}

/// Works on narrow sites side by side, the widest first so that threads finish together, and then on wide ones one after the other,
/// with all threads inside. Begins none after one has failed.
fn work_side_by_side<'a, S: Sync, T: Send>(
    sites: &[&'a S],
    width: impl Fn(&S) -> usize,
    threads: Threads,
    work: impl Fn(&'a S, usize) -> Result<T, Problem> + Sync,
) -> Result<Vec<T>, Problem> {
    let (mut narrow, wide): (Vec<&S>, Vec<&S>) = sites.iter().partition(|site| is_narrow(width(site)));
    narrow.sort_by_key(|site| Reverse(width(site)));
    let results = Mutex::new(Vec::with_capacity(sites.len()));
    let failed = AtomicBool::new(false);
    let unless_failed = narrow.into_iter().enumerate().take_while(|_| !failed.load(Ordering::Relaxed));
    share(threads.side_by_side, unless_failed, |(index, site)| {
        let result = work(site, threads.all / threads.side_by_side);
        failed.fetch_or(result.is_err(), Ordering::Relaxed);
        results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
    });
    // They were begun in order: so the first that fails is always among them, and is the one that is told of.
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    let mut finished = results.into_iter().map(|(_, result)| result).collect::<Result<Vec<_>, _>>()?;
    for site in wide {
        finished.push(work(site, threads.all)?);
    }
    Ok(finished)
}

/// A site that the plan found when it looked at these files.
fn site_of<'a>(set: &'a ActivationSet, name: &str) -> Result<&'a Site, Problem> {
    set.site(name).ok_or_else(|| {
        Problem::data("the plan names this site, but the files do not have it").in_tensor(name)
    })
}

/// What to make of a saved file that is not what was saved: a failure of the environment, after which the rest is still good.
fn damaged(problem: Problem) -> Problem {
    Problem::environment(problem.to_string())
        .help("remove this file to do its site again, or give --restart to begin anew")
}

/// What a run ends with that was asked to.
fn interrupted() -> Problem {
    Problem::interrupted("stopped before it was finished, as was asked for")
}

/// The factors of a layer whose rank is known; none for rank 0.
fn finish(
    layer: &DecomposedLayer<'_>,
    rank: usize,
    options: &Options,
) -> Result<(LayerReport, Option<crate::factors::Factors>), Problem> {
    let started = Instant::now();
    let DecomposedLayer { site, planned, draft, seconds } = layer;
    let made = match rank {
        0 => None,
        _ => {
            let made = draft.initialize(rank, options);
            Some(made.map_err(|error| Problem::data(error.to_string()).in_tensor(&planned.tensors()))?)
        }
    };
    let report = LayerReport {
        module: planned.module.clone(),
        tensor: planned.tensors(),
        site: (*site).into(),
        outputs: planned.outputs,
        inputs: planned.inputs,
        rank,
        energy_kept: draft.as_layer(options.start).energy_kept(rank),
        energy: draft.energy(),
        energy_exact: draft.energy_exact(),
        strength: made.as_ref().map_or(0.0, |made| made.strength),
        shift: made.as_ref().map_or(0.0, |made| made.shift),
        empty_units: made.as_ref().map_or(0, |made| made.empty_units),
        singular_values: draft.spectrum().to_vec(),
        residual: draft.residual(),
        seconds: seconds + started.elapsed().as_secs_f64(),
    };
    Ok((report, made.map(|made| made.factors)))
}
