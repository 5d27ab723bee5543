//! A run that is divided by sites: each part decomposes the layers of some, and joining them does the rest.
//!
//! Ranks can depend on the spectra of all layers, so a divided run has two phases. A part keeps as many components of each layer as
//! its largest rank needs; joining the parts chooses the ranks and makes the factors, and reads neither activations nor weights
//! for that. A part is a folder: what its run saved ([`PartialRun`]), and `part.json`.

use super::job::Job;
use super::partial::{JOB, PartialRun, damaged};
use super::{Observer, Outcome, Threads, assemble, check_unchanged, site, with_threads, work_side_by_side};
use crate::adapter::Format;
use crate::plan::{Inputs, Plan, Request, Shard};
use crate::storage::{Access, Problem, Problems, Source, quoted};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The file that makes a folder a part.
pub(super) const PART: &str = "part.json";

const FORMAT: &str = "adapter-part";
const VERSION: u64 = 1;

/// What `part.json` says: which part it is, and how the whole goes on from there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    format: String,
    version: u64,
    /// Which part.
    pub shard: Shard,
    /// What was asked for, of all parts alike.
    pub request: Request,
    /// How the adapter is written, when the parts are joined.
    pub writing: Writing,
}

/// How an adapter is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writing {
    /// In which format.
    pub format: Format,
    /// Folder for the changed base, if one was named.
    pub base: Option<PathBuf>,
    /// Whether a second adapter takes the update away, in place of a changed base.
    pub anchored: bool,
}

impl Part {
    /// What a part says of itself.
    pub fn new(shard: Shard, request: Request, writing: Writing) -> Self {
        Self { format: FORMAT.into(), version: VERSION, shard, request, writing }
    }

    /// Reads `part.json`.
    ///
    /// # Errors
    /// An I/O problem if it cannot be read; a data problem if it is another file, or of a newer version.
    pub fn read(source: &Source) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        struct Kind {
            format: String,
            version: u64,
        }
        let refused = |what: String| Problem::data(what).in_file(source.path());
        let malformed =
            |error: serde_json::Error| refused(format!("expected the description of a part: {error}"));
        let bytes = source.read_vec(0, source.length())?;
        let kind: Kind = serde_json::from_slice(&bytes).map_err(malformed)?;
        if (kind.format.as_str(), kind.version) != (FORMAT, VERSION) {
            let (format, version) = (quoted(&kind.format), kind.version);
            let what =
                format!("expected version {VERSION} of \"{FORMAT}\", found version {version} of {format}");
            return Err(refused(what).help("join parts with the version of cntlora that made them"));
        }
        let part: Self = serde_json::from_slice(&bytes).map_err(malformed)?;
        match Shard::new(part.shard.index, part.shard.count) {
            Some(_) => Ok(part),
            None => Err(refused(format!("expected a part I/N with I below N, found {}", part.shard))),
        }
    }

    /// As it is written.
    ///
    /// # Errors
    /// A usage problem for paths that are not UTF-8.
    pub(super) fn text(&self) -> Result<String, Problem> {
        serde_json::to_string_pretty(self).map_err(|error| {
            Problem::usage(format!("a part cannot be described: {error}")).help("give paths of UTF-8 text")
        })
    }
}

/// Decomposes the layers of a part, and leaves them in `partial`.
///
/// # Errors
/// As [`run_resumable`](super::run_resumable).
pub fn run_part(
    plan: &Plan,
    inputs: &Inputs,
    shard: Shard,
    observer: &dyn Observer,
    partial: &PartialRun,
) -> Result<(), Problems> {
    let work =
        |planned, threads| site::finish(plan, planned, inputs, threads, observer, Some(partial)).map(drop);
    with_threads(plan.threads, || {
        work_side_by_side(&plan.sites_of(shard), |site| site.is_narrow(), Threads::of(plan), work)
    })?;
    check_unchanged(inputs)
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
        let Some((first, Part { shard: Shard { count, .. }, .. }, job)) = parts.first() else {
            return Err(Problem::usage("expected the parts of a run, found none").into());
        };
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
            } else if let Some(difference) = other.differences(job).first() {
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
        let identity = job.identity();
        let mut finished = Vec::new();
        for planned in &plan.sites {
            let mut paths = self.folders.iter().map(|folder| PartialRun::layers_in(folder, &planned.name));
            let path = paths.find(|path| path.exists()).ok_or_else(|| {
                damaged(
                    Problem::data("expected the layers of this site in one of the parts, found none")
                        .in_tensor(&planned.name),
                )
            })?;
            finished.push(site::load(planned, &path, &identity)?);
        }
        assemble(plan, inputs, finished, started)
    }
}

fn read(folder: &PathBuf) -> Result<(&PathBuf, Part, Job), Problem> {
    let open = |name: &str| Source::open(&folder.join(name), Access::Read);
    Ok((folder, Part::read(&open(PART)?)?, Job::read(&open(JOB)?)?))
}
