//! A run that is divided by sites.
//!
//! Ranks can depend on the spectra of all layers, so a divided run has two phases. Each part decomposes the layers of some sites, and
//! keeps as many components as the largest rank needs. Joining the parts chooses the ranks and makes the factors, without activations
//! and weights. A part is a folder with the saved progress of its run ([`PartialRun`]) and `part.json`.

use super::assemble::assemble;
use super::job::Job;
use super::part::{PART, Part};
use super::partial::{JOB, PartialRun};
use super::side_by_side::{Threads, with_threads, work_side_by_side};
use super::site::FinishedSite;
use super::whole::check_unchanged;
use super::{Observer, Outcome, inputs, rows, site};
use crate::moments_file::check_all_once;
use crate::plan::{Inputs, Plan, PlannedSite, Shard};
use crate::report::UnusableSite;
use crate::storage::{Access, Problem, Problems, Source, quoted};
use rayon::prelude::*;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

/// Decomposes the layers of a part, and saves them in `partial`. Returns the unusable sites of the part, sorted by name.
///
/// # Errors
/// As [`run_resumable`](super::run_resumable).
pub fn run_part(
    plan: &Plan,
    inputs: &Inputs,
    shard: Shard,
    observer: &dyn Observer,
    partial: &PartialRun,
) -> Result<Vec<UnusableSite>, Problems> {
    let work =
        |planned, threads| Ok(site::finish(plan, planned, inputs, threads, observer, Some(partial))?.found);
    let sites = with_threads(plan.threads, || {
        work_side_by_side(&plan.sites_of(shard), |site| site.width, Threads::of(plan), work)
    })?;
    rows::warn_of_few(plan, sites.iter().flatten(), observer);
    rows::warn_of_zeros(plan, sites.iter().flatten(), observer);
    check_unchanged(inputs)?;
    let mut unusable: Vec<UnusableSite> = sites.into_iter().filter_map(Result::err).collect();
    unusable.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(unusable)
}

/// All parts of a divided run.
#[derive(Debug)]
pub struct Parts {
    /// The folders, in order of part.
    folders: Vec<PathBuf>,
    part: Part,
    job: Job,
}

impl Parts {
    /// The folders in `paths`, and directly inside these folders, that are parts, complete or not.
    pub fn folders(paths: &[PathBuf]) -> Vec<PathBuf> {
        let is_part = |folder: &PathBuf| folder.join(PART).is_file();
        let mut folders = Vec::new();
        for path in paths {
            if is_part(path) {
                folders.push(path.clone());
            } else {
                let mut within: Vec<PathBuf> = fs::read_dir(path)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(is_part)
                    .collect();
                within.sort();
                folders.append(&mut within);
            }
        }
        folders
    }

    /// Opens the parts of one run, in any order.
    ///
    /// # Errors
    /// I/O and data problems of each part; data problems for parts that are missing, given twice, or from different runs.
    pub fn open(folders: &[PathBuf]) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let read: Vec<Result<_, Problem>> = folders.par_iter().map(read).collect();
        let parts: Vec<(&PathBuf, Part, Job)> =
            read.into_iter().filter_map(|part| problems.collect(part)).collect();
        problems.or_ok(())?;
        let Some((first, first_part, job)) = parts.first() else {
            return Err(Problem::usage("no parts of a run were given").into());
        };
        let count = first_part.shard.count;
        let first = quoted(&first.to_string_lossy());
        let mut problems = Problems::default();
        for (folder, part, other) in &parts {
            let refuse = |what: String| Problem::data(what).in_file(folder);
            if part.shard.count != count {
                let found = part.shard;
                problems.push(refuse(format!("is part {found}, but {first} is one of {count} parts")));
            } else if let Some(difference) =
                other.differences(job).into_iter().chain(first_part.differences(part)).next()
            {
                problems.push(refuse(format!("is a part of another run than {first}: {difference}")));
            }
        }
        problems.or_ok(())?;
        check_all_once(count, parts.iter().map(|(folder, part, _)| (part.shard.index, folder.as_path())))?;
        let mut parts = parts;
        parts.sort_by_key(|(_, part, _)| part.shard.index);
        let folders = parts.iter().map(|(folder, ..)| (*folder).clone()).collect();
        let (_, part, job) = parts.swap_remove(0);
        Ok(Self { folders, part, job })
    }

    /// The description that is common to all parts.
    pub fn common(&self) -> &Part {
        &self.part
    }

    /// Chooses the ranks and makes the factors of all layers. The result has the same bits as that of an undivided run.
    ///
    /// # Errors
    /// Data problems if the plan differs from that of the parts, or if a part is damaged; errors of the choice of ranks.
    pub fn join(&self, plan: &Plan, inputs: &Inputs) -> Result<Outcome, Problems> {
        let started = Instant::now();
        let job = Job::of_run(plan, inputs);
        let mut problems = Problems::default();
        for difference in job.differences(&self.job) {
            let what = format!("the inputs have changed since the parts were made: {difference}");
            problems.push(Problem::data(what).help("make the parts again"));
        }
        problems.or_ok(())?;
        let files = inputs::files(inputs)?;
        with_threads(plan.threads, || {
            // Most of the time of many small files is spent in opening them.
            let loaded: Vec<Result<_, Problem>> =
                plan.sites.par_iter().map(|site| self.load(site, &job)).collect();
            let finished = loaded.into_iter().collect::<Result<Vec<_>, _>>().map_err(damaged)?;
            assemble(plan, files, finished, started)
        })
    }

    /// Reads the decomposed layers of a site.
    fn load<'a>(&self, planned: &'a PlannedSite, job: &Job) -> Result<FinishedSite<'a>, Problem> {
        let mut paths = self.folders.iter().map(|folder| PartialRun::layers_in(folder, &planned.name));
        let path = paths.find(|path| path.exists()).ok_or_else(|| {
            Problem::data("no part contains the layers of this site").in_tensor(&planned.name)
        })?;
        let foreign = || Problem::data("contains layers of another run").in_file(&path);
        site::load(planned, &path, job)?.ok_or_else(foreign)
    }
}

fn read(folder: &PathBuf) -> Result<(&PathBuf, Part, Job), Problem> {
    let open = |name: &str| Source::open(&folder.join(name), Access::Read);
    Ok((folder, Part::read(&open(PART)?)?, Job::read(&open(JOB)?).map_err(damaged)?))
}

/// The problem of a damaged file of a part.
fn damaged(problem: Problem) -> Problem {
    problem.help("remove this part, make it again by the same command with --shard, and give all of them")
}
