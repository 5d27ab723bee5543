//! One site: its moments, its constraints, and the decompositions of the weights that read it.

use super::moments::{Measured, Reading};
use super::{Event, Observer};
use crate::activations::{ActivationSet, Site};
use crate::constraint::{Constraint, Coupling, Evidence};
use crate::error::Error;
use crate::method::cntlora::{self, Decomposition};
use crate::moments::Moments;
use crate::plan::{Inputs, Plan, PlannedLayer, PlannedSite};
use crate::report::SiteReport;
use crate::storage::{Checkpoint, Problem, quoted};
use faer::{Mat, MatRef, Par};
use std::time::Instant;

/// A layer whose update is decomposed, and waits for its rank.
pub(super) struct DecomposedLayer<'a> {
    pub site: &'a str,
    pub planned: &'a PlannedLayer,
    pub decomposition: Decomposition,
    pub seconds: f64,
}

/// What a site gives.
pub(super) struct FinishedSite<'a> {
    pub report: SiteReport,
    pub layers: Vec<DecomposedLayer<'a>>,
}

/// Reads the rows of a site and decomposes the updates of its layers, with this many threads inside.
pub(super) fn work<'a>(
    plan: &'a Plan,
    planned: &'a PlannedSite,
    inputs: &Inputs,
    threads: usize,
    observer: &dyn Observer,
) -> Result<FinishedSite<'a>, Problem> {
    // Factorizations round differently for different numbers of parts, so that number is fixed, whatever the threads.
    const PARTS: usize = 16;
    let par = if planned.is_narrow() { Par::Seq } else { Par::rayon(PARTS) };
    let rows = planned.rows + planned.source_rows.unwrap_or(0);
    observer.event(Event::SiteStarted { site: &planned.name, rows });

    let started = Instant::now();
    let reading = Reading { nonfinite: plan.nonfinite, precision: plan.precision, threads, observer };
    let measured = Measurements::of(plan, planned, inputs, reading)?;
    let moments_seconds = started.elapsed().as_secs_f64();
    observer.event(Event::MomentsReady { site: &planned.name });

    let started = Instant::now();
    let evidence = Evidence {
        target: &measured.target,
        source: measured.source.as_ref(),
        cross: measured.cross.as_ref().map(Mat::as_ref),
    };
    let constraint = Constraint::new(evidence, plan.method.terms(), par)
        .map_err(|error| describe(error).in_tensor(&planned.name))?;
    if constraint.damping() > plan.method.ridge {
        let (site, asked, used) = (quoted(&planned.name), plan.method.ridge, constraint.damping());
        let message = format!(
            "site {site}: the ridge {asked:e} was too small to factor its activations, and was raised to {used:e}"
        );
        observer.event(Event::Warning { message });
    }
    let report = SiteReport {
        name: planned.name.clone(),
        width: planned.width,
        rows: measured.target.count(),
        source_rows: measured.source.as_ref().map(Moments::count),
        skipped_rows: measured.skipped_rows,
        damping: constraint.damping(),
        moments_seconds,
        constraint_seconds: started.elapsed().as_secs_f64(),
    };
    drop(measured);

    let mut layers = Vec::new();
    for layer in &planned.layers {
        let started = Instant::now();
        let weight = read_weight(&inputs.checkpoint, layer)?;
        let weight = MatRef::from_row_major_slice(&weight, layer.outputs, layer.inputs);
        let decomposition = cntlora::decompose(&constraint, weight, &layer.module, &plan.method, par)
            .map_err(|error| in_weight(describe(error), &inputs.checkpoint, layer))?;
        layers.push(DecomposedLayer {
            site: &planned.name,
            planned: layer,
            decomposition,
            seconds: started.elapsed().as_secs_f64(),
        });
        observer.event(Event::LayerDecomposed { module: &layer.module });
    }
    Ok(FinishedSite { report, layers })
}

/// What was measured at a site.
struct Measurements {
    target: Moments,
    source: Option<Moments>,
    cross: Option<Mat<f64>>,
    skipped_rows: u64,
}

impl Measurements {
    fn of(
        plan: &Plan,
        planned: &PlannedSite,
        inputs: &Inputs,
        reading: Reading<'_>,
    ) -> Result<Self, Problem> {
        let target = (&inputs.target, site_of(&inputs.target, &planned.name)?);
        let source = match &inputs.source {
            Some(set) => Some((set, site_of(set, &planned.name)?)),
            None => None,
        };
        if let (Coupling::Paired, Some(source)) = (plan.method.coupling, source) {
            let Measured { moments, skipped_rows } = reading.measure_pairs(source, target)?;
            let (source, target, cross) =
                moments.split().map_err(|error| describe(error).in_tensor(&planned.name))?;
            return Ok(Self { target, source: Some(source), cross: Some(cross), skipped_rows });
        }
        let Measured { moments: target, mut skipped_rows } = reading.measure(target.0, target.1)?;
        let mut moments = None;
        if let Some((set, site)) = source {
            let measured = reading.measure(set, site)?;
            skipped_rows += measured.skipped_rows;
            moments = Some(measured.moments);
        }
        Ok(Self { target, source: moments, cross: None, skipped_rows })
    }
}

/// A site that the plan found when it looked at these files.
fn site_of<'a>(set: &'a ActivationSet, name: &str) -> Result<&'a Site, Problem> {
    set.site(name).ok_or_else(|| {
        Problem::data("the plan names this site, but the files do not have it").in_tensor(name)
    })
}

/// A weight as f32, row after row.
fn read_weight(checkpoint: &Checkpoint, layer: &PlannedLayer) -> Result<Vec<f32>, Problem> {
    let bytes = checkpoint.read(&layer.tensor)?;
    let mut weight = vec![0.0; layer.outputs * layer.inputs];
    layer.element.decode_f32(&bytes, &mut weight);
    Ok(weight)
}

fn in_weight(problem: Problem, checkpoint: &Checkpoint, layer: &PlannedLayer) -> Problem {
    let problem = problem.in_tensor(&layer.tensor);
    match checkpoint.get(&layer.tensor) {
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
