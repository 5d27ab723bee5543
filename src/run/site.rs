//! One site: its moments, its constraints, and the decompositions of the weights that read it.

use super::job::Job;
use super::moments::{Measured, Reading};
use super::partial::PartialRun;
use super::saved_layers::SavedLayers;
use super::unusable::{self, Failure};
use super::{Event, Observer, counts, damaged, interrupted, site_of};
use crate::constraint::{Coupling, Evidence};
use crate::error::Error;
use crate::factors::{LayerShape, module_and_block};
use crate::method::{Basis, Draft};
use crate::moments::{Moments, Sides};
use crate::plan::{Inputs, Plan, PlannedLayer, PlannedSite, Recording};
use crate::report::{SiteReport, UnusableSite};
use crate::spread::Spread;
use crate::storage::{Access, Checkpoint, Problem, Source, quoted};
use faer::{Mat, MatRef, Par};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A layer that is decomposed, and waits for its rank.
pub(super) struct DecomposedLayer<'a> {
    pub site: &'a str,
    pub planned: &'a PlannedLayer,
    pub draft: Draft,
    pub seconds: f64,
}

/// What a site gives.
pub(super) struct FinishedSite<'a> {
    /// The report of the site, or the reason why the site cannot be used; it then has no layers.
    pub found: Result<SiteReport, UnusableSite>,
    pub layers: Vec<DecomposedLayer<'a>>,
}

impl FinishedSite<'_> {
    /// The name of the site.
    pub(super) fn name(&self) -> &str {
        self.found.as_ref().map_or_else(|site| &site.name, |report| &report.name)
    }
}

/// Loads a site that an earlier run saved, or does the [`work`] and saves it. A site that cannot be used is left out, or refused if
/// the plan is strict.
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
            observer.event(Event::LayerDecomposed { module: &layer.planned.module });
        }
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

/// Says that a site is left out, or refuses that.
fn tell_left_out(plan: &Plan, site: &FinishedSite<'_>, observer: &dyn Observer) -> Result<(), Problem> {
    let Err(left_out) = &site.found else { return Ok(()) };
    if plan.strict {
        return Err(unusable::refusal(left_out, true));
    }
    let UnusableSite { name, modules, reason, .. } = left_out;
    observer.event(Event::SiteLeftOut { site: name, modules, reason });
    Ok(())
}

/// Where a finished site is kept.
struct Saved<'a> {
    path: PathBuf,
    partial: &'a PartialRun,
}

impl Saved<'_> {
    /// Loads the site; none if nothing was saved, or it was made with other options.
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
            .map(|layer| (layer.planned.module.clone(), (layer.draft.clone(), layer.seconds)));
        let job = self.partial.job().of_layers(&planned.name);
        SavedLayers { job, found: finished.found.clone(), layers: layers.collect() }.write(&self.path)?;
        self.partial.forget_sums(&planned.name)
    }
}

/// Loads a saved site; none if it was made with other options than those of `job`.
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
    let foreign = || Problem::data("expected the layers of this run, found other ones").in_file(path);
    let mut finished = FinishedSite { found, layers: Vec::new() };
    if finished.name() != planned.name {
        return Err(foreign());
    }
    for layer in planned.layers.iter().filter(|_| finished.found.is_ok()) {
        let (draft, seconds) = saved.remove(&layer.module).ok_or_else(foreign)?;
        if draft.shape() != (layer.outputs, layer.inputs) {
            return Err(foreign());
        }
        finished.layers.push(DecomposedLayer { site: &planned.name, planned: layer, draft, seconds });
    }
    Ok(Some(finished))
}

/// Reads the rows of a site, where the method looks at any, and decomposes its layers, with this many threads inside.
fn work<'a>(
    plan: &'a Plan,
    planned: &'a PlannedSite,
    inputs: &Inputs,
    threads: usize,
    observer: &dyn Observer,
    partial: Option<&PartialRun>,
) -> Result<FinishedSite<'a>, Failure> {
    let go_on = || if observer.stop_requested() { Err(interrupted()) } else { Ok(()) };
    go_on()?;
    // Factorizations round differently for different numbers of parts, so that number is fixed, whatever the threads.
    const PARTS: usize = 16;
    let par = if planned.is_narrow() { Par::Seq } else { Par::rayon(PARTS) };
    observer.event(Event::SiteStarted { site: &planned.name, rows: planned.rows_to_read });

    let by_tokens = planned.classes.is_some() && plan.method.method.reads_activations();
    let (basis, report) = if by_tokens {
        observer.event(Event::MomentsReady { site: &planned.name });
        counts::basis(plan, planned, inputs, par)
            .map_err(|error| Failure::of_activations(&error, &planned.name))?
    } else {
        let reading =
            Reading { nonfinite: plan.nonfinite, precision: plan.precision, threads, observer, partial };
        basis_of_rows(plan, planned, inputs, reading, par)?
    };
    let asked = plan.method.ridge;
    for (matrix, used) in basis.dampings().into_iter().filter(|(_, used)| *used > asked) {
        let site = quoted(&planned.name);
        let message = format!(
            "site {site}: the ridge {asked:e} was too small to factor the {matrix}, and was raised to {used:e} for it"
        );
        observer.event(Event::Warning { message });
    }

    let mut layers = Vec::new();
    for layer in &planned.layers {
        go_on()?;
        let started = Instant::now();
        let numbers = read_weight(&inputs.checkpoint, layer)?;
        let weight = match layer.shape.is_transposed() {
            false => MatRef::from_row_major_slice(&numbers, layer.outputs, layer.inputs),
            true => MatRef::from_column_major_slice(&numbers, layer.outputs, layer.inputs),
        };
        let draft =
            basis.decompose(weight, &layer.shape, &layer.module, &plan.method, par).map_err(|error| {
                let problem = match (&error, first_nonfinite(&numbers, layer)) {
                    (Error::NonFinite { .. }, Some(found)) => found,
                    _ => describe(error, layer),
                };
                in_weight(problem, &inputs.checkpoint, layer)
            })?;
        layers.push(DecomposedLayer {
            site: &planned.name,
            planned: layer,
            draft,
            seconds: started.elapsed().as_secs_f64(),
        });
        observer.event(Event::LayerDecomposed { module: &layer.module });
    }
    Ok(FinishedSite { found: Ok(report), layers })
}

/// What the method makes of the rows of a site, and what is to be said of them.
fn basis_of_rows(
    plan: &Plan,
    planned: &PlannedSite,
    inputs: &Inputs,
    reading: Reading<'_>,
    par: Par,
) -> Result<(Basis, SiteReport), Failure> {
    let started = Instant::now();
    let measured = match plan.method.method.reads_activations() {
        true => Some(Measurements::of(plan, planned, inputs, reading)?),
        false => None,
    };
    let moments_seconds = started.elapsed().as_secs_f64();
    reading.observer.event(Event::MomentsReady { site: &planned.name });

    let started = Instant::now();
    let target = measured.as_ref().map(|measured| &measured.target);
    let source = measured.as_ref().and_then(|measured| measured.source.as_ref());
    let refused = |error| Failure::of_activations(&error, &planned.name);
    let target_spread = target.map(Spread::of).transpose().map_err(refused)?;
    let source_spread = source.map(Spread::of).transpose();
    let source_spread = source_spread.map_err(|error| Failure::of_source(&error, &planned.name))?;
    let evidence = measured.as_ref().map(Measurements::evidence);
    let basis = Basis::new(evidence, &planned.name, &plan.method, par).map_err(refused)?;
    let report = SiteReport {
        name: planned.name.clone(),
        width: planned.width,
        rows: target.map_or(0, Moments::count),
        source_rows: source.map(Moments::count),
        skipped_rows: measured.as_ref().map_or(0, |measured| measured.skipped_rows),
        damping: basis.damping().unwrap_or(0.0),
        spread: target_spread,
        source_spread,
        frechet_distance: basis.frechet_distance(),
        moments_seconds,
        constraint_seconds: started.elapsed().as_secs_f64(),
    };
    Ok((basis, report))
}

/// What was measured at a site.
struct Measurements {
    target: Moments,
    source: Option<Moments>,
    change: Option<Mat<f64>>,
    skipped_rows: u64,
}

impl Measurements {
    fn evidence(&self) -> Evidence<'_> {
        Evidence {
            target: &self.target,
            source: self.source.as_ref(),
            change: self.change.as_ref().map(Mat::as_ref),
        }
    }

    fn of(
        plan: &Plan,
        planned: &PlannedSite,
        inputs: &Inputs,
        reading: Reading<'_>,
    ) -> Result<Self, Failure> {
        let name = &planned.name;
        let refused = |error| Failure::of_activations(&error, name);
        let target = inputs.target.as_ref().ok_or(Error::NoRows).map_err(refused)?;
        if let (Coupling::Paired, Some(Recording::Activations(source)), Recording::Activations(target)) =
            (plan.method.coupling, &inputs.source, target)
        {
            let pairs =
                reading.measure_pairs((source, site_of(source, name)?), (target, site_of(target, name)?));
            let Measured { moments, skipped_rows, .. } = pairs?;
            let Sides { source, target, change } = moments.split().map_err(refused)?;
            return Ok(Self { target, source: Some(source), change: Some(change), skipped_rows });
        }
        let target = Self::side(target, name, reading, "target")?;
        reading.check_variation(&target.moments).map_err(refused)?;
        let source = match &inputs.source {
            Some(recording) => Some(Self::side(recording, name, reading, "source")?),
            None => None,
        };
        let skipped_rows = target.skipped_rows + source.as_ref().map_or(0, |source| source.skipped_rows);
        let source = source.map(|source| source.moments);
        Ok(Self { target: target.moments, source, change: None, skipped_rows })
    }

    /// The moments of one kind of activations, measured now or before. `kind` names the saved sums.
    fn side(
        recording: &Recording,
        name: &str,
        reading: Reading<'_>,
        kind: &str,
    ) -> Result<Measured<Moments>, Problem> {
        match recording {
            Recording::Activations(set) => {
                let site = site_of(set, name)?;
                reading.measure(set, site, 0..site.rows(), kind)
            }
            Recording::Moments(set) => {
                let skipped_rows = set.content().sites.get(name).map_or(0, |site| site.skipped_rows);
                let moments = set.read(name)?;
                reading.warn_of_lost_digits(name, &moments);
                Ok(Measured { moments, skipped_rows, saved: false })
            }
        }
    }
}

/// A weight as f32, in the order in which it is stored. That of a group of a convolution is as wide as the patches of all
/// groups, and zero outside its own channels.
fn read_weight(checkpoint: &Checkpoint, layer: &PlannedLayer) -> Result<Vec<f32>, Problem> {
    let no_memory =
        || in_weight(Problem::environment("no memory for the numbers of the weight"), checkpoint, layer);
    let mut bytes = Vec::new();
    for piece in &layer.weight {
        let mut more = checkpoint.read_piece(piece)?;
        match bytes.is_empty() {
            true => bytes = more,
            false => {
                bytes.try_reserve_exact(more.len()).map_err(|_| no_memory())?;
                bytes.append(&mut more);
            }
        }
    }
    let length = layer.outputs * layer.inputs;
    let mut weight = Vec::new();
    weight.try_reserve_exact(length).map_err(|_| no_memory())?;
    weight.resize(length, 0.0);
    let (LayerShape::Group { count, .. }, Some((_, group))) = (&layer.shape, module_and_block(&layer.module))
    else {
        layer.element.decode_f32(&bytes, &mut weight);
        return Ok(weight);
    };
    let own = layer.inputs / count;
    let row_bytes = own * layer.element.size();
    for (row, bytes) in weight.chunks_mut(layer.inputs).zip(bytes.chunks(row_bytes)) {
        layer.element.decode_f32(bytes, &mut row[group * own..][..own]);
    }
    Ok(weight)
}

/// What to say of a weight that holds NaN or infinity: where the first is in the matrix as it is stored, and how many there are.
fn first_nonfinite(weight: &[f32], layer: &PlannedLayer) -> Option<Problem> {
    let place = weight.iter().position(|value| !value.is_finite())?;
    let others = weight[place + 1..].iter().filter(|value| !value.is_finite()).count();
    let columns = if layer.shape.is_transposed() { layer.outputs } else { layer.inputs };
    let problem = Problem::data(format!(
        "the weight holds a value that is not finite: {} in row {}, column {} of module {}; there are {others} more",
        weight[place],
        place / columns,
        place % columns,
        quoted(&layer.module)
    ));
    Some(problem.help(format!(
        "download or convert the checkpoint again, or leave this layer out with {}",
        unusable::exclusion(layer)
    )))
}

fn in_weight(problem: Problem, checkpoint: &Checkpoint, layer: &PlannedLayer) -> Problem {
    let problem = problem.in_tensor(&layer.tensors());
    match layer.weight.first().and_then(|piece| checkpoint.get(&piece.tensor)) {
        Some(stored) => problem.in_file(checkpoint.source(stored).path()),
        None => problem,
    }
}

/// A refusal of the numerics that is about a layer, with the next step.
fn describe(error: Error, layer: &PlannedLayer) -> Problem {
    let problem = Problem::data(error.to_string());
    match error {
        Error::NonFinite { .. } | Error::NoConvergence { .. } => problem.help(format!(
            "look at its weight with `cntlora inspect FILE --values`, or leave this layer out with {}",
            unusable::exclusion(layer)
        )),
        _ => problem,
    }
}
