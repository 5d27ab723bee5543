//! The input of an embedding: counts of tokens in place of rows. They were read when the files were opened.

use crate::error::Error;
use crate::method::Basis;
use crate::moments::Counts;
use crate::plan::{Inputs, Plan, PlannedSite, Recording};
use crate::report::SiteReport;
use crate::spread::Spread;
use faer::Par;
use std::time::Instant;

/// What the method makes of the tokens that were met, and what is to be said of them.
pub(super) fn basis(
    plan: &Plan,
    planned: &PlannedSite,
    inputs: &Inputs,
    par: Par,
) -> Result<(Basis, SiteReport), Error> {
    let started = Instant::now();
    let counts = |recording| counts_of(recording, &planned.name);
    let target = inputs.target.as_ref().and_then(counts).ok_or(Error::NoRows)?;
    let source = inputs.source.as_ref().and_then(counts);
    let basis = Basis::of_tokens(target, source, &plan.method, par)?;
    let report = SiteReport {
        name: planned.name.clone(),
        width: planned.width,
        rows: target.total(),
        source_rows: source.map(Counts::total),
        skipped_rows: 0,
        damping: basis.damping().unwrap_or(0.0),
        spread: Some(Spread::of_tokens(target)),
        source_spread: source.map(Spread::of_tokens),
        frechet_distance: basis.frechet_distance(),
        moments_seconds: 0.0,
        constraint_seconds: started.elapsed().as_secs_f64(),
    };
    Ok((basis, report))
}

fn counts_of<'a>(recording: &'a Recording, site: &str) -> Option<&'a Counts> {
    match recording {
        Recording::Activations(set) => set.site(site)?.counts(),
        Recording::Moments(set) => set.counts(site),
    }
}
