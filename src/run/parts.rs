//! A run that is divided by sites: each part decomposes the layers of some, and joining them does the rest.
//!
//! Ranks can depend on the spectra of all layers, so a divided run has two phases. A part keeps as many components of each layer as
//! its largest rank needs; joining the parts chooses the ranks and makes the factors, and reads neither activations nor weights
//! for that. A part is a folder: what its run saved ([`PartialRun`]), and `part.json`.

use super::job::Job;
use super::part::{PART, Part};
use super::partial::{JOB, PartialRun};
use super::{Observer, Outcome, Threads};
use super::{assemble, check_unchanged, inputs, rows, site, with_threads, work_side_by_side};
use crate::plan::{Inputs, Plan, Shard};
use crate::report::UnusableSite;
use crate::storage::{Access, Problem, Problems, Source, quoted};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Decomposes the layers of a part, and leaves them in `partial`. Returns the sites of the part whose activations cannot be used, in
/// order of name.
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
    /// The folders among `paths`, and in folders among them, that are parts, whole or not.
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
    /// I/O and data problems of each; data problems if parts are missing, given twice, or of different runs.
    pub fn open(folders: &[PathBuf]) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let parts: Vec<(&PathBuf, Part, Job)> =
            folders.iter().filter_map(|folder| problems.collect(read(folder))).collect();
        problems.or_ok(())?;
        let Some((first, first_part, job)) = parts.first() else {
            return Err(Problem::usage("expected the parts of a run, found none").into());
        };
        let Shard { count, .. } = &first_part.shard;
        let mut problems = Problems::default();
        let mut found: BTreeMap<u64, &PathBuf> = BTreeMap::new();
        let shown = |path: &Path| quoted(&path.to_string_lossy());
        for (folder, part, other) in &parts {
            let refuse = |what: String| Problem::data(what).in_file(folder);
            if part.shard.count != *count {
                problems.push(refuse(format!(
                    "expected one of {count} parts as {}, found part {}",
                    shown(first),
                    part.shard
                )));
            } else if let Some(difference) =
                other.differences(job).into_iter().chain(first_part.differences(part)).next()
            {
                problems
                    .push(refuse(format!("is a part of another run than {}: {difference}", shown(first))));
            } else if let Some(earlier) = found.insert(part.shard.index, folder) {
                problems.push(refuse(format!(
                    "part {} is given twice, also as {}",
                    part.shard,
                    shown(earlier)
                )));
            }
        }
        problems.or_ok(())?;
        let missing = count - found.len() as u64;
        if missing > 0 {
            const SHOWN: usize = 10;
            let names = (0..*count)
                .filter(|index| !found.contains_key(index))
                .take(SHOWN)
                .map(|index| index.to_string());
            let names = names.collect::<Vec<_>>().join(", ");
            let what =
                format!("of its {count} parts, counted from 0, {missing} are missing, such as {names}");
            let help = "make the missing parts by the same command with --shard, and give all of them";
            return Err(Problem::data(what).in_file(first).help(help).into());
        }
        let folders = found.into_values().cloned().collect();
        let (_, part, job) =
            parts.into_iter().next().ok_or_else(|| Problem::usage("expected parts, found none"))?;
        Ok(Self { folders, part, job })
    }

    /// What the parts have in common.
    pub fn common(&self) -> &Part {
        &self.part
    }

    /// Chooses the ranks and makes the factors of all layers. The result has the bits of a run that was not divided.
    ///
    /// # Errors
    /// A usage problem if the plan is not that of the parts; data problems of what the parts hold; what choosing ranks returns.
    pub fn join(&self, plan: &Plan, inputs: &Inputs) -> Result<Outcome, Problems> {
        let started = Instant::now();
        let job = Job::of_run(plan, inputs);
        let mut problems = Problems::default();
        for difference in job.differences(&self.job) {
            let what = format!("the inputs are not those of the parts any more: {difference}");
            problems.push(Problem::data(what).help("make the parts again"));
        }
        problems.or_ok(())?;
        let mut finished = Vec::new();
        for planned in &plan.sites {
            let mut paths = self.folders.iter().map(|folder| PartialRun::layers_in(folder, &planned.name));
            let path = paths.find(|path| path.exists()).ok_or_else(|| {
                damaged(
                    Problem::data("expected the layers of this site in one of the parts, found none")
                        .in_tensor(&planned.name),
                )
            })?;
            let foreign =
                || Problem::data("expected the layers of this run, found other ones").in_file(&path);
            let loaded = site::load(planned, &path, &job).and_then(|site| site.ok_or_else(foreign));
            finished.push(loaded.map_err(damaged)?);
        }
        assemble(plan, inputs::files(inputs)?, finished, started)
    }
}

fn read(folder: &PathBuf) -> Result<(&PathBuf, Part, Job), Problem> {
    let open = |name: &str| Source::open(&folder.join(name), Access::Read);
    Ok((folder, Part::read(&open(PART)?)?, Job::read(&open(JOB)?).map_err(damaged)?))
}

/// What to make of a file of a part that is not what was saved.
fn damaged(problem: Problem) -> Problem {
    Problem::environment(problem.to_string())
        .help("remove this part, make it again by the same command with --shard, and give all of them")
}
