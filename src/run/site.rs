//! The work on one site: measures it, and decomposes the weights that read it.

use super::job::Job;
use super::moments::Reading;
use super::observer::check_stop;
use super::partial::PartialRun;
use super::saved_layers::SavedLayers;
use super::saved_sums::damaged;
use super::unusable::{self, Failure};
use super::weight::{describe, first_nonfinite, in_weight, read_weight};
use super::{Event, Observer, site_statistics};
use crate::dense::Buffer;
use crate::error::Error;
use crate::initializer::Initializer;
use crate::method::Draft;
use crate::plan::{Inputs, Plan, PlannedLayer, PlannedSite};
use crate::report::{SiteReport, UnusableSite};
use crate::storage::{Access, Problem, Source, quoted};
use faer::MatRef;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A decomposed layer whose rank is not chosen yet.
pub(super) struct DecomposedLayer<'a> {
    pub site: &'a str,
    pub planned: &'a PlannedLayer,
    pub draft: Draft,
    pub seconds: f64,
}

/// The result of a site.
pub(super) struct FinishedSite<'a> {
    /// The report of the site. If the site cannot be used: the reason, and no layers.
    pub found: Result<SiteReport, UnusableSite>,
    pub layers: Vec<DecomposedLayer<'a>>,
}

impl FinishedSite<'_> {
    /// The name of the site.
    pub(super) fn name(&self) -> &str {
        self.found.as_ref().map_or_else(|site| &site.name, |report| &report.name)
    }
}

/// Loads a saved site, or does the [`work`] and saves the result. An unusable site is skipped, or refused if the plan is strict.
pub(super) fn finish<'a>(
    plan: &'a Plan,
    planned: &'a PlannedSite,
    inputs: &Inputs,
    threads: usize,
    observer: &dyn Observer,
    partial: Option<&PartialRun>,
) -> Result<FinishedSite<'a>, Problem> {
    let saved = partial.map(|partial| Saved { path: partial.layers(&planned.name), partial });
    if let Some(saved) = &saved
        && let Some(finished) = saved.load(planned)?
    {
        observer.event(Event::SiteStarted { site: &planned.name, rows: planned.rows_to_read });
        observer.event(Event::Resumed { site: &planned.name, rows: planned.rows_to_read });
        for layer in &finished.layers {
            observer.event(Event::LayerDecomposed { layer: &layer.planned.name });
        }
        tracing::info!(site = %quoted(&planned.name), "loaded from saved progress");
        tell_left_out(plan, &finished, observer)?;
        return Ok(finished);
    }
    let finished = match work(plan, planned, inputs, threads, observer, partial) {
        Ok(finished) => finished,
        Err(Failure::Fatal(problem)) => return Err(problem),
        Err(Failure::Unusable { reason, remedy }) => {
            let found = Err(unusable::left_out(planned, reason, remedy));
            FinishedSite { found, layers: Vec::new() }
        }
    };
    tell_left_out(plan, &finished, observer)?;
    if let Some(saved) = &saved {
        saved.save(planned, &finished)?;
    }
    Ok(finished)
}

/// Reports an unusable site as an event, or as an error if the plan is strict.
fn tell_left_out(plan: &Plan, site: &FinishedSite<'_>, observer: &dyn Observer) -> Result<(), Problem> {
    let Err(left_out) = &site.found else { return Ok(()) };
    if plan.strict {
        return Err(unusable::refusal(left_out, true));
    }
    let UnusableSite { name, modules, reason, .. } = left_out;
    observer.event(Event::SiteLeftOut { site: name, modules, reason });
    Ok(())
}

/// The place of a saved site.
struct Saved<'a> {
    path: PathBuf,
    partial: &'a PartialRun,
}

impl Saved<'_> {
    /// Loads the site. `None` if it was not saved, or saved with other options.
    fn load<'a>(&self, planned: &'a PlannedSite) -> Result<Option<FinishedSite<'a>>, Problem> {
        match self.path.exists() {
            true => load(planned, &self.path, self.partial.job()).map_err(damaged),
            false => Ok(None),
        }
    }

    fn save(&self, planned: &PlannedSite, finished: &FinishedSite<'_>) -> Result<(), Problem> {
        let layers = finished
            .layers
            .iter()
            .map(|layer| (layer.planned.name.to_string(), (layer.draft.clone(), layer.seconds)));
        let job = self.partial.job().of_layers(&planned.name);
        SavedLayers { job, found: finished.found.clone(), layers: layers.collect() }.write(&self.path)?;
        self.partial.forget_sums(&planned.name)
    }
}

/// Loads a saved site. `None` if it was saved with other options than those of `job`.
pub(super) fn load<'a>(
    planned: &'a PlannedSite,
    path: &Path,
    job: &Job,
) -> Result<Option<FinishedSite<'a>>, Problem> {
    let SavedLayers { job: saved_job, found, layers: mut saved } =
        SavedLayers::read(&Source::open(path, Access::Read)?)?;
    if saved_job != job.of_layers(&planned.name) {
        return Ok(None);
    }
    let foreign = || Problem::data("contains layers of another run").in_file(path);
    let mut finished = FinishedSite { found, layers: Vec::new() };
    if finished.name() != planned.name {
        return Err(foreign());
    }
    for layer in planned.layers.iter().filter(|_| finished.found.is_ok()) {
        let (draft, seconds) = saved.remove(&layer.name.to_string()).ok_or_else(foreign)?;
        if draft.shape() != (layer.outputs, layer.inputs) {
            return Err(foreign());
        }
        finished.layers.push(DecomposedLayer { site: &planned.name, planned: layer, draft, seconds });
    }
    Ok(Some(finished))
}

/// Measures a site, if the method reads activations, and decomposes its layers with this number of threads.
fn work<'a>(
    plan: &'a Plan,
    planned: &'a PlannedSite,
    inputs: &Inputs,
    threads: usize,
    observer: &dyn Observer,
    partial: Option<&PartialRun>,
) -> Result<FinishedSite<'a>, Failure> {
    check_stop(observer)?;
    let initializer =
        Initializer::new(plan.method.clone()).map_err(|error| Problem::usage(error.to_string()))?;
    observer.event(Event::SiteStarted { site: &planned.name, rows: planned.rows_to_read });

    let reading =
        Reading { nonfinite: plan.nonfinite, precision: plan.precision, threads, observer, partial };
    let (site, report) = site_statistics::of_site(&initializer, planned, inputs, reading)?;
    let asked = plan.method.ridge;
    for (matrix, used) in site.dampings().into_iter().filter(|(_, used)| *used > asked) {
        let name = quoted(&planned.name);
        let message = format!(
            "site {name}: the ridge {asked:e} was too small to factor the {matrix}, and was raised to {used:e}"
        );
        observer.event(Event::Warning { message });
    }

    let mut layers = Vec::new();
    let mut memory = Buffer::default();
    for layer in &planned.layers {
        check_stop(observer)?;
        let started = Instant::now();
        let numbers = read_weight(&inputs.checkpoint, layer, &mut memory)?;
        let weight = match layer.shape.is_transposed() {
            false => MatRef::from_row_major_slice(numbers, layer.outputs, layer.inputs),
            true => MatRef::from_column_major_slice(numbers, layer.outputs, layer.inputs),
        };
        let decomposed = site.layer_of_shape(layer.name.clone(), weight, &layer.shape).map_err(|error| {
            let problem = match (&error, first_nonfinite(numbers, layer)) {
                (Error::NonFinite { .. }, Some(found)) => found,
                _ => describe(error, layer),
            };
            in_weight(problem, &inputs.checkpoint, layer)
        })?;
        let (draft, seconds) = (decomposed.into_draft(), started.elapsed().as_secs_f64());
        layers.push(DecomposedLayer { site: &planned.name, planned: layer, draft, seconds });
        tracing::info!(layer = %quoted(&layer.name.to_string()), seconds, "decomposed");
        observer.event(Event::LayerDecomposed { layer: &layer.name });
    }
    Ok(FinishedSite { found: Ok(report), layers })
}
