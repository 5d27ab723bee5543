//! The statistics of a site: from its activations to the site of the numerics, and to the report of the site.

use super::Event;
use super::moments::{Measured, Reading};
use super::partial::{SOURCE, TARGET};
use super::unusable::Failure;
use crate::activations::{ActivationSet, Site};
use crate::constraint::{Coupling, Evidence, TokenEvidence};
use crate::error::Error;
use crate::initializer::{self, Initializer};
use crate::moments::{Counts, Moments, RowsOrTokens, Sides};
use crate::plan::{Inputs, PlannedSite, Recording};
use crate::report::SiteReport;
use crate::spread::Spread;
use crate::storage::{Problem, quoted};
use faer::Mat;
use std::time::Instant;

/// The statistics of a site: moments of rows, or the token counts of fine-tuning and pre-training.
type Statistics<'a> = RowsOrTokens<Measurements, (&'a Counts, Option<&'a Counts>)>;

/// Measures a site, if the method reads activations, and computes what its layers share.
pub(super) fn of_site(
    initializer: &Initializer,
    planned: &PlannedSite,
    inputs: &Inputs,
    reading: Reading<'_>,
) -> Result<(initializer::Site, SiteReport), Failure> {
    let name = &planned.name;
    let refused = |error| Failure::of_activations(&error, name);
    let started = Instant::now();
    let statistics = match initializer.options().method.reads_activations() {
        true => Some(measure(initializer, planned, inputs, reading)?),
        false => None,
    };
    let is_tokens = statistics.as_ref().is_some_and(RowsOrTokens::is_tokens);
    // Counts are read when the files are opened.
    let moments_seconds = if is_tokens { 0.0 } else { started.elapsed().as_secs_f64() };
    reading.observer.event(Event::MomentsReady { site: name });

    let started = Instant::now();
    let mut report = SiteReport {
        name: name.clone(),
        embedding: planned.classes.is_some(),
        width: planned.width,
        rows: 0,
        source_rows: None,
        skipped_rows: 0,
        zero_rows: 0,
        source_zero_rows: 0,
        damping: 0.0,
        spread: None,
        source_spread: None,
        frechet_distance: None,
        moments_seconds,
        constraint_seconds: 0.0,
    };
    let activations = match &statistics {
        None => None,
        Some(RowsOrTokens::Rows(measured)) => {
            let Measurements { target, source, skipped_rows, .. } = measured;
            report.rows = target.count();
            report.source_rows = source.as_ref().map(Moments::count);
            report.skipped_rows = *skipped_rows;
            report.zero_rows = target.zero_rows();
            report.source_zero_rows = source.as_ref().map_or(0, Moments::zero_rows);
            let evidence = measured.evidence();
            let only_source = initializer.options().method.reads_only_source();
            let source = if only_source { Some(evidence.target) } else { evidence.source };
            Some(Evidence { source, ..evidence }.into())
        }
        Some(RowsOrTokens::Tokens((target, source))) => {
            report.rows = target.total();
            report.source_rows = source.map(Counts::total);
            Some(TokenEvidence { target, source: *source }.into())
        }
    };
    // Both begin with work for one thread.
    let (spreads, site) = rayon::join(
        || spreads(statistics.as_ref(), name),
        || initializer.site_with_stream(name, activations).map_err(refused),
    );
    (report.spread, report.source_spread) = spreads?;
    let site = site?;
    report.damping = site.dampings().into_iter().map(|(_, damping)| damping).fold(0.0, f64::max);
    report.frechet_distance = site.frechet_distance();
    report.constraint_seconds = started.elapsed().as_secs_f64();
    for (matrix, damping) in site.dampings() {
        tracing::info!(site = %quoted(name), matrix, damping, "damped");
    }
    let (rows, seconds) = (report.rows, report.moments_seconds + report.constraint_seconds);
    tracing::info!(site = %quoted(name), rows, skipped_rows = report.skipped_rows, seconds, "measured");
    Ok((site, report))
}

/// The spread of fine-tuning and of pre-training activations.
fn spreads(
    statistics: Option<&Statistics<'_>>,
    name: &str,
) -> Result<(Option<Spread>, Option<Spread>), Failure> {
    Ok(match statistics {
        None => (None, None),
        Some(RowsOrTokens::Rows(Measurements { target, source, .. })) => {
            let target = Spread::of(target).map_err(|error| Failure::of_activations(&error, name))?;
            let source = source.as_ref().map(Spread::of).transpose();
            (Some(target), source.map_err(|error| Failure::of_source(&error, name))?)
        }
        Some(RowsOrTokens::Tokens((target, source))) => {
            (Some(Spread::of_tokens(target)), source.map(Spread::of_tokens))
        }
    })
}

fn measure<'a>(
    initializer: &Initializer,
    planned: &PlannedSite,
    inputs: &'a Inputs,
    reading: Reading<'_>,
) -> Result<Statistics<'a>, Failure> {
    if planned.classes.is_none() {
        return Measurements::of(initializer, planned, inputs, reading).map(RowsOrTokens::Rows);
    }
    let counts = |recording: &'a Option<Recording>| match recording.as_ref()? {
        Recording::Activations(set) => set.site(&planned.name)?.counts(),
        Recording::Moments(set) => set.counts(&planned.name),
    };
    let refused = |error| Failure::of_activations(&error, &planned.name);
    let target = counts(&inputs.target).ok_or(Error::NoRows).map_err(refused)?;
    Ok(RowsOrTokens::Tokens((target, counts(&inputs.source))))
}

/// The measured moments of a site.
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
        initializer: &Initializer,
        planned: &PlannedSite,
        inputs: &Inputs,
        reading: Reading<'_>,
    ) -> Result<Self, Failure> {
        let name = &planned.name;
        let refused = |error| Failure::of_activations(&error, name);
        let target = inputs.target.as_ref().ok_or(Error::NoRows).map_err(refused)?;
        if let (Coupling::Paired, Some(Recording::Activations(source)), Recording::Activations(target)) =
            (initializer.options().coupling, &inputs.source, target)
        {
            let pairs =
                reading.measure_pairs((source, site_of(source, name)?), (target, site_of(target, name)?));
            let Measured { moments, skipped_rows, .. } = pairs?;
            let Sides { source, target, change } = moments.split().map_err(refused)?;
            return Ok(Self { target, source: Some(source), change: Some(change), skipped_rows });
        }
        let target = Self::side(target, name, reading, TARGET)?;
        let source = match &inputs.source {
            Some(recording) => Some(Self::side(recording, name, reading, SOURCE)?),
            None => None,
        };
        let skipped_rows = target.skipped_rows + source.as_ref().map_or(0, |source| source.skipped_rows);
        let source = source.map(|source| source.moments);
        Ok(Self { target: target.moments, source, change: None, skipped_rows })
    }

    /// The moments of one kind of activations, measured now or read from a file. `kind` names the saved sums.
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

/// A site of the plan in these files.
pub(super) fn site_of<'a>(set: &'a ActivationSet, name: &str) -> Result<&'a Site, Problem> {
    set.site(name).ok_or_else(|| Problem::data("the activations have no site with this name").in_tensor(name))
}
