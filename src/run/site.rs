//! One site: its moments, its constraints, and the decompositions of the weights that read it.

use super::moments::{Measured, Reading};
use super::partial::PartialRun;
use super::saved_layers::SavedLayers;
use super::{Event, Observer, counts, damaged, interrupted, site_of};
use crate::constraint::{Coupling, Evidence};
use crate::error::Error;
use crate::factors::{LayerShape, module_and_block};
use crate::method::{Basis, Draft};
use crate::moments::Moments;
use crate::plan::{Inputs, Plan, PlannedLayer, PlannedSite, Recording};
use crate::report::SiteReport;
use crate::spread::Spread;
use crate::storage::{Access, Checkpoint, Problem, Source, quoted};
use faer::{Mat, MatRef, Par};
use std::path::Path;
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
    pub report: SiteReport,
    pub layers: Vec<DecomposedLayer<'a>>,
}

/// What an earlier run saved of a site, or [`work`] on it, saved.
pub(super) fn finish<'a>(
    plan: &'a Plan,
    planned: &'a PlannedSite,
    inputs: &Inputs,
    threads: usize,
    observer: &dyn Observer,
    partial: Option<&PartialRun>,
) -> Result<FinishedSite<'a>, Problem> {
    let Some(partial) = partial else { return work(plan, planned, inputs, threads, observer, None) };
    let path = partial.layers(&planned.name);
    if path.exists() {
        let finished = load(planned, &path, partial.job()).map_err(damaged)?;
        observer.event(Event::SiteStarted { site: &planned.name, rows: planned.rows_to_read });
        observer.event(Event::Resumed { site: &planned.name, rows: planned.rows_to_read });
        for layer in &finished.layers {
            observer.event(Event::LayerDecomposed { module: &layer.planned.module });
        }
        return Ok(finished);
    }
    let finished = work(plan, planned, inputs, threads, observer, Some(partial))?;
    let layers = finished
        .layers
        .iter()
        .map(|layer| (layer.planned.module.clone(), (layer.draft.clone(), layer.seconds)));
    let saved =
        SavedLayers { job: partial.job().into(), report: finished.report.clone(), layers: layers.collect() };
    saved.write(&path)?;
    partial.forget_sums(&planned.name)?;
    Ok(finished)
}

/// The layers that an earlier run of a job saved.
pub(super) fn load<'a>(
    planned: &'a PlannedSite,
    path: &Path,
    job: &str,
) -> Result<FinishedSite<'a>, Problem> {
    let mut saved = SavedLayers::read(&Source::open(path, Access::Read)?)?;
    let foreign = || Problem::data("expected the layers of this run, found other ones").in_file(path);
    if saved.job != job || saved.report.name != planned.name {
        return Err(foreign());
    }
    let mut layers = Vec::new();
    for layer in &planned.layers {
        let (draft, seconds) = saved.layers.remove(&layer.module).ok_or_else(foreign)?;
        if draft.shape() != (layer.outputs, layer.inputs) {
            return Err(foreign());
        }
        layers.push(DecomposedLayer { site: &planned.name, planned: layer, draft, seconds });
    }
    Ok(FinishedSite { report: saved.report, layers })
}

/// Reads the rows of a site, where the method looks at any, and decomposes its layers, with this many threads inside.
fn work<'a>(
    plan: &'a Plan,
    planned: &'a PlannedSite,
    inputs: &Inputs,
    threads: usize,
    observer: &dyn Observer,
    partial: Option<&PartialRun>,
) -> Result<FinishedSite<'a>, Problem> {
    let go_on = || if observer.stop_requested() { Err(interrupted()) } else { Ok(()) };
    go_on()?;
    // Factorizations round differently for different numbers of parts, so that number is fixed, whatever the threads.
    const PARTS: usize = 16;
    let par = if planned.is_narrow() { Par::Seq } else { Par::rayon(PARTS) };
    observer.event(Event::SiteStarted { site: &planned.name, rows: planned.rows_to_read });

    let by_tokens = planned.classes.is_some() && plan.method.method.reads_activations();
    let (basis, report) = if by_tokens {
        observer.event(Event::MomentsReady { site: &planned.name });
        counts::basis(plan, planned, inputs, par).map_err(|error| describe(error).in_tensor(&planned.name))?
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
                    _ => describe(error),
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
    Ok(FinishedSite { report, layers })
}

/// What the method makes of the rows of a site, and what is to be said of them.
fn basis_of_rows(
    plan: &Plan,
    planned: &PlannedSite,
    inputs: &Inputs,
    reading: Reading<'_>,
    par: Par,
) -> Result<(Basis, SiteReport), Problem> {
    let started = Instant::now();
    let measured = match plan.method.method.reads_activations() {
        true => Some(Measurements::of(plan, planned, inputs, reading)?),
        false => None,
    };
    let moments_seconds = started.elapsed().as_secs_f64();
    reading.observer.event(Event::MomentsReady { site: &planned.name });

    let started = Instant::now();
    let spread =
        |moments: &Moments| Spread::of(moments).map_err(|error| describe(error).in_tensor(&planned.name));
    let target = measured.as_ref().map(|measured| &measured.target);
    let source = measured.as_ref().and_then(|measured| measured.source.as_ref());
    let (target_spread, source_spread) = (target.map(spread).transpose()?, source.map(spread).transpose()?);
    let evidence = measured.as_ref().map(Measurements::evidence);
    let basis = Basis::new(evidence, &planned.name, &plan.method, par)
        .map_err(|error| describe(error).in_tensor(&planned.name))?;
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
    cross: Option<Mat<f64>>,
    skipped_rows: u64,
}

impl Measurements {
    fn evidence(&self) -> Evidence<'_> {
        Evidence {
            target: &self.target,
            source: self.source.as_ref(),
            cross: self.cross.as_ref().map(Mat::as_ref),
        }
    }

    fn of(
        plan: &Plan,
        planned: &PlannedSite,
        inputs: &Inputs,
        reading: Reading<'_>,
    ) -> Result<Self, Problem> {
        let name = &planned.name;
        let target = inputs.target.as_ref().ok_or_else(|| describe(Error::NoRows).in_tensor(name))?;
        if let (Coupling::Paired, Some(Recording::Activations(source)), Recording::Activations(target)) =
            (plan.method.coupling, &inputs.source, target)
        {
            let pairs =
                reading.measure_pairs((source, site_of(source, name)?), (target, site_of(target, name)?));
            let Measured { moments, skipped_rows, .. } = pairs?;
            let (source, target, cross) = moments.split().map_err(|error| describe(error).in_tensor(name))?;
            return Ok(Self { target, source: Some(source), cross: Some(cross), skipped_rows });
        }
        let target = Self::side(target, name, reading, "target")?;
        let source = match &inputs.source {
            Some(recording) => Some(Self::side(recording, name, reading, "source")?),
            None => None,
        };
        let skipped_rows = target.skipped_rows + source.as_ref().map_or(0, |source| source.skipped_rows);
        let source = source.map(|source| source.moments);
        Ok(Self { target: target.moments, source, cross: None, skipped_rows })
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
                Ok(Measured { moments: set.read(name)?, skipped_rows, saved: false })
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
    Some(problem.help("download or convert the checkpoint again, or leave this layer out with --exclude"))
}

fn in_weight(problem: Problem, checkpoint: &Checkpoint, layer: &PlannedLayer) -> Problem {
    let problem = problem.in_tensor(&layer.tensors());
    match layer.weight.first().and_then(|piece| checkpoint.get(&piece.tensor)) {
        Some(stored) => problem.in_file(checkpoint.source(stored).path()),
        None => problem,
    }
}

/// A refusal of the numerics with the next step.
fn describe(error: Error) -> Problem {
    let problem = Problem::data(error.to_string());
    match error {
        Error::NotPositiveDefinite { .. } => {
            problem.help("raise --ridge, or leave this layer out with --exclude")
        }
        Error::NoVariation { .. } | Error::NoRows => {
            problem.help("record more and different inputs, or leave this layer out with --exclude")
        }
        Error::NonFinite { .. } | Error::NoConvergence { .. } => {
            problem.help("look at the values with `cntlora inspect`, or leave this layer out with --exclude")
        }
        _ => problem,
    }
}
