//! A run from the first row to the last factor.

use super::assemble::assemble;
use super::side_by_side::{Threads, beside, with_threads, work_side_by_side};
use super::site::{self, FinishedSite};
use super::{Observer, PartialRun, inputs, rows};
use crate::adapter::Adapter;
use crate::plan::{Inputs, Plan, PlannedSite};
use crate::report::Report;
use crate::storage::{Problem, Problems};
use std::time::Instant;

/// The result of a run: the factors in memory, and the report.
pub struct Outcome {
    /// The factors. Layers of rank 0 are omitted.
    pub adapter: Adapter,
    /// The report.
    pub report: Report,
}

/// Reads the activations and computes the factors. Writes no files.
///
/// # Errors
/// An I/O problem if a file cannot be read, or changed during the run; a data problem for unusable values, with their place; data
/// problems for all unusable sites, if no site is usable or if [`Plan::strict`] is set; a usage problem if the budget is too small for
/// any rank; an interruption if the observer requests one.
pub fn run(plan: &Plan, inputs: &Inputs, observer: &dyn Observer) -> Result<Outcome, Problems> {
    carry_out(plan, inputs, observer, None)
}

/// As [`run()`], with saved progress: work that an earlier run of the same job saved is not repeated, and the result has the same bits
/// as that of an uninterrupted run. The caller discards `partial` after the result is written.
///
/// # Errors
/// As [`run()`], and I/O and data problems of the saved progress.
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
    // The threads keep their workspaces until they end, so all steps use the same ones.
    with_threads(plan.threads, || {
        // With several threads, small files are hashed at the same time.
        let (sites, files) = beside(
            plan.threads > 1,
            || work_on_sites(plan, inputs, observer, partial),
            || inputs::files(inputs),
        )?;
        let sites = sites?;
        check_unchanged(inputs)?;
        rows::warn_of_few(plan, sites.iter().flat_map(|site| &site.found), observer);
        rows::warn_of_zeros(plan, sites.iter().flat_map(|site| &site.found), observer);
        assemble(plan, files?, sites, started)
    })
}

/// Processes all sites. The result is sorted by name.
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

/// Returns an error if an input file changed since it was opened.
pub(super) fn check_unchanged(inputs: &Inputs) -> Result<(), Problems> {
    for recording in inputs.target.iter().chain(&inputs.source) {
        recording.check_unchanged()?;
    }
    for (file, _) in inputs.checkpoint.files() {
        file.check_unchanged()?;
    }
    Ok(())
}
