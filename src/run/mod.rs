//! Carries a plan out and tells an observer what happens. Prints nothing.

mod moments;
mod site;

use crate::adapter::Adapter;
use crate::plan::{Inputs, Plan, PlannedSite};
use crate::rank::{self, Layer};
use crate::report::{LayerReport, Report, SCHEMA_VERSION};
use crate::simd::Tier;
use crate::simd::threads::share;
use crate::storage::{Problem, Problems};
use rayon::prelude::*;
use site::{DecomposedLayer, FinishedSite};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// What happens during a run.
#[derive(Clone, Debug)]
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
/// the place where they are; a usage problem for a budget that pays for no rank.
pub fn run(plan: &Plan, inputs: &Inputs, observer: &dyn Observer) -> Result<Outcome, Problems> {
    let started = Instant::now();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(plan.threads)
        .build()
        .map_err(|error| Problem::environment(format!("cannot start {} threads: {error}", plan.threads)))?;
    let sites = pool.install(|| work_on_sites(plan, inputs, observer))?;
    inputs.target.check_unchanged()?;
    if let Some(source) = &inputs.source {
        source.check_unchanged()?;
    }
    for (file, _) in inputs.checkpoint.files() {
        file.check_unchanged()?;
    }

    let (reports, layers): (Vec<_>, Vec<_>) =
        sites.into_iter().map(|site| (site.report, site.layers)).unzip();
    let mut layers: Vec<DecomposedLayer<'_>> = layers.into_iter().flatten().collect();
    layers.sort_by(|a, b| a.planned.module.cmp(&b.planned.module));
    let candidates: Vec<Layer<'_>> = layers.iter().map(|layer| layer.decomposition.as_layer()).collect();
    let ranks = rank::allocate(plan.method.ranks, plan.method.limits, &candidates)
        .map_err(|error| Problem::usage(error.to_string()).help("raise --budget, or lower --min-rank"))?;
    let finished = pool.install(|| {
        layers
            .par_iter()
            .zip(ranks)
            .map(|(layer, rank)| finish(layer, rank, plan))
            .collect::<Result<Vec<_>, _>>()
    })?;

    let mut adapter =
        Adapter { layers: BTreeMap::new(), scale: plan.method.scale, base: plan.model.display().to_string() };
    let mut layer_reports = Vec::new();
    for (report, factors) in finished {
        if let Some(factors) = factors {
            adapter.layers.insert(report.module.clone(), factors);
        }
        layer_reports.push(report);
    }
    let report = Report {
        schema_version: SCHEMA_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        instruction_set: Tier::best().name().into(),
        precision: plan.precision,
        model: plan.model.clone(),
        method: plan.method.clone(),
        sites: reports,
        parameters: layer_reports
            .iter()
            .map(|layer| (layer.rank * (layer.inputs + layer.outputs)) as u64)
            .sum(),
        layers: layer_reports,
        skipped: plan.skipped.clone(),
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok(Outcome { adapter, report })
}

/// All sites, in the order of the plan.
fn work_on_sites<'a>(
    plan: &'a Plan,
    inputs: &Inputs,
    observer: &dyn Observer,
) -> Result<Vec<FinishedSite<'a>>, Problem> {
    let work = |site: &'a PlannedSite, threads| site::work(plan, site, inputs, threads, observer);
    let (narrow, wide): (Vec<_>, Vec<_>) = plan.sites.iter().partition(|site| site.is_narrow());
    let threads = plan.threads / plan.side_by_side;
    let results = Mutex::new(Vec::with_capacity(plan.sites.len()));
    let failed = AtomicBool::new(false);
    let unless_failed = narrow.into_iter().take_while(|_| !failed.load(Ordering::Relaxed));
    share(plan.side_by_side, unless_failed, |site| {
        let result = work(site, threads);
        failed.fetch_or(result.is_err(), Ordering::Relaxed);
        results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut finished = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    for site in wide {
        finished.push(work(site, plan.threads)?);
    }
    finished.sort_by(|a, b| a.report.name.cmp(&b.report.name));
    Ok(finished)
}

/// The factors of a layer whose rank is known; none for rank 0.
fn finish(
    layer: &DecomposedLayer<'_>,
    rank: usize,
    plan: &Plan,
) -> Result<(LayerReport, Option<crate::factors::Factors>), Problem> {
    let started = Instant::now();
    let DecomposedLayer { site, planned, decomposition, seconds } = layer;
    let made = match rank {
        0 => None,
        _ => {
            let method = &plan.method;
            let components = &decomposition.components;
            let made = components.initialize(rank, method.strength, method.start, method.scale);
            Some(made.map_err(|error| Problem::data(error.to_string()).in_tensor(&planned.tensor))?)
        }
    };
    let report = LayerReport {
        module: planned.module.clone(),
        tensor: planned.tensor.clone(),
        site: (*site).into(),
        outputs: planned.outputs,
        inputs: planned.inputs,
        rank,
        energy_kept: decomposition.energy_kept(rank),
        energy: decomposition.energy,
        energy_exact: decomposition.energy_exact,
        strength: made.as_ref().map_or(0.0, |made| made.strength),
        shift: made.as_ref().map_or(0.0, |made| made.shift),
        singular_values: decomposition.components.sigma.clone(),
        residual: decomposition.residual,
        seconds: seconds + started.elapsed().as_secs_f64(),
    };
    Ok((report, made.map(|made| made.factors)))
}
