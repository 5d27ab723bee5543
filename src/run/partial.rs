//! The folder in which an unfinished run keeps its progress: who works in it, for which job, and how it goes away.
//!
//! | file | holds |
//! |---|---|
//! | `lock` | nothing; it is locked while a run works in the folder |
//! | `job.json` | the inputs and options of the run (`job`) |
//! | `writing` | the paths of the outputs, each with a zero byte behind it, once they are being written: what is there is this run's own |
//! | `<site>.….moments.safetensors` | the sums of a site that is being measured, and how far they go (`saved_sums`) |
//! | `<site>.layers.safetensors` | the decomposed layers of a finished site (`saved_layers`) |
//!
//! `<site>` stands for the first digits of the hash of a site's name. Every file is written atomically, and hashes tell whether it is
//! still what was written.

use super::job::Job;
use super::lock::{LOCK, lock};
use super::part::{PART, Part};
use super::saved_sums::SavedSums;
use crate::storage::faults::{Step, step};
use crate::storage::{Access, Hashing, Problem, Problems, Source, is_unfinished, write_atomically};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const JOB: &str = "job.json";
const WRITING: &str = "writing";
const SUMS: &str = ".moments.safetensors";
const LAYERS: &str = ".layers.safetensors";

/// How many digits of a hash stand for the name of a site.
const DIGITS: usize = 16;

/// Progress that outlives the process, in a folder of its own that no other run works in meanwhile.
#[derive(Debug)]
pub struct PartialRun {
    folder: PathBuf,
    /// Locked until it is dropped, also by the end of the process.
    _lock: File,
    job: Job,
    /// How the job differs from the one that the progress was begun for.
    differences: Vec<String>,
    interval: Duration,
}

impl PartialRun {
    /// Whether the folder holds the progress of some run.
    pub fn is_there(folder: &Path) -> bool {
        folder.join(JOB).is_file()
    }

    /// Whether the folder holds the progress of a run that began to write this output. What is there of it may be replaced by the same
    /// run.
    pub fn is_writing(folder: &Path, output: &Path) -> bool {
        let (true, Ok(written), Ok(output)) =
            (Self::is_there(folder), fs::read(folder.join(WRITING)), fs::canonicalize(output))
        else {
            return false;
        };
        let mut written = written.split(|byte| *byte == 0).filter(|path| !path.is_empty());
        written.any(|path| fs::canonicalize(OsStr::from_bytes(path)).is_ok_and(|path| path == output))
    }

    /// Opens the folder to begin a job, or to continue it where an earlier run stopped. Progress is saved after a block of rows
    /// if `interval` has passed since the last time, and when a site is finished.
    ///
    /// A job may have another method, model or selection of layers than the earlier one. It then uses the saved sums, and those
    /// saved layers that do not depend on what differs. With `restart`, the progress of an earlier run is thrown away.
    ///
    /// # Errors
    /// A usage problem that names what differs if the progress is of other recordings, or rows are added in another way; an I/O problem
    /// if another run works in the folder, or it cannot be written to; a data problem if it cannot be understood.
    pub fn open(folder: &Path, job: &Job, interval: Duration, restart: bool) -> Result<Self, Problems> {
        let failed = |doing| move |error: io::Error| Problem::io(doing, &error).in_file(folder);
        step(Step::CreateFolder, folder)
            .and_then(|()| fs::create_dir_all(folder))
            .map_err(failed("cannot make the folder for the progress of this run"))?;
        let lock = lock(folder)?;
        let mut partial =
            Self { folder: folder.into(), _lock: lock, job: job.clone(), differences: Vec::new(), interval };
        partial.remove_files(is_unfinished)?;
        let path = folder.join(JOB);
        if !path.exists() {
            // A run that has ended may have left it.
            partial.remove_files(|name| name == WRITING)?;
        }
        if restart {
            // What was being written is still this output's own.
            partial.remove_files(|name| is_ours(name) && ![LOCK, WRITING].contains(&name))?;
        }
        if path.exists() {
            let earlier = Job::read(&Source::open(&path, Access::Read)?)?;
            let differences = job.obstacles(&earlier);
            if !differences.is_empty() {
                let problem = |difference: &String| {
                    Problem::usage(format!("holds the progress of another run: {difference}"))
                        .in_file(folder)
                        .help("give the options and inputs of that run to continue it, or --restart to begin anew")
                };
                return Err(Problems(differences.iter().map(problem).collect()));
            }
            if *job != earlier {
                partial.differences = job.differences(&earlier);
                // Only the job that began to write an output may replace it without being told to.
                partial.remove_files(|name| name == WRITING)?;
                write_atomically(&path, job.text().as_bytes())?;
            }
        } else {
            partial.refuse_strangers()?;
            write_atomically(&path, job.text().as_bytes())?;
        }
        Ok(partial)
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How the job differs from the one that the progress was begun for, in words.
    pub fn differences(&self) -> &[String] {
        &self.differences
    }

    /// Whether there is anything to go on from.
    ///
    /// # Errors
    /// An I/O problem if the folder cannot be listed.
    pub fn has_progress(&self) -> Result<bool, Problem> {
        Ok(names(&self.folder)?.iter().any(|name| name.ends_with(SUMS) || name.ends_with(LAYERS)))
    }

    /// Says that these outputs, files or folders, are going to be written: [`is_writing`](Self::is_writing).
    ///
    /// # Errors
    /// I/O problems of writing.
    pub fn begin_writing(&self, outputs: &[&Path]) -> Result<(), Problem> {
        let path = self.folder.join(WRITING);
        let mut paths = Vec::new();
        for output in outputs {
            let output = std::path::absolute(output)
                .map_err(|error| Problem::io("cannot find out where it is", &error).in_file(output))?;
            paths.extend_from_slice(output.as_os_str().as_bytes());
            paths.push(0);
        }
        write_atomically(&path, &paths)
    }

    /// Removes the progress, after the output is complete.
    ///
    /// # Errors
    /// An I/O problem if a file cannot be removed.
    pub fn discard(self) -> Result<(), Problem> {
        // The job stays as long as there is something of it, and the lock to the end: until then no other run can begin.
        self.remove_files(|name| is_ours(name) && ![LOCK, JOB, WRITING].contains(&name))?;
        self.remove_files(|name| name == JOB)?;
        self.remove_files(|name| name == WRITING)?;
        self.remove_files(|name| name == LOCK)?;
        // What is not ours stays, and keeps the folder.
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }

    /// Makes the folder the output of a part of a run, `to`, which is absent or complete, and replaced if it is there.
    ///
    /// # Errors
    /// I/O problems of writing and renaming; a usage problem if something other than a part is in its place.
    pub fn complete(self, part: &Part, to: &Path) -> Result<(), Problem> {
        write_atomically(&self.folder.join(PART), part.text()?.as_bytes())?;
        if to.join(PART).is_file() {
            remove_files(to, is_ours)?;
        }
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => {
                Problem::usage("expected a part of a run or nothing, found something else")
                    .in_file(to)
                    .help("choose another folder for the parts")
            }
            _ => Problem::io("cannot rename to it", &error).in_file(to),
        };
        step(Step::Rename, to).and_then(|()| fs::rename(&self.folder, to)).map_err(failed)?;
        remove_files(to, |name| name == LOCK)
    }

    /// Where the layers of a finished site are kept in a folder.
    pub(super) fn layers_in(folder: &Path, site: &str) -> PathBuf {
        folder.join(format!("{}{LAYERS}", digits(site)))
    }

    /// Where the sums of a site are kept. `kind` tells those of the same site from each other.
    pub(super) fn sums(&self, site: &str, kind: &str) -> SavedSums {
        let path = self.folder.join(format!("{}.{kind}{SUMS}", digits(site)));
        SavedSums { path, job: self.job.of_sums(), interval: self.interval }
    }

    /// Where the layers of a finished site are kept.
    pub(super) fn layers(&self, site: &str) -> PathBuf {
        Self::layers_in(&self.folder, site)
    }

    /// The job that the progress is of.
    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    /// Removes the sums of a site, once its layers are saved.
    pub(super) fn forget_sums(&self, site: &str) -> Result<(), Problem> {
        let digits = digits(site);
        self.remove_files(|name| name.starts_with(&digits) && name.ends_with(SUMS))
    }

    fn remove_files(&self, unwanted: impl Fn(&str) -> bool) -> Result<(), Problem> {
        remove_files(&self.folder, unwanted)
    }

    /// A folder that holds something else is not ours to fill.
    fn refuse_strangers(&self) -> Result<(), Problem> {
        match names(&self.folder)?.into_iter().find(|name| ![LOCK, WRITING].contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => Err(Problem::usage(format!(
                "the progress of this run is kept in this folder, but it holds something else, {}",
                crate::storage::quoted(&name)
            ))
            .in_file(&self.folder)
            .help("move it away, or choose another name for the output")),
        }
    }
}

fn names(folder: &Path) -> Result<Vec<String>, Problem> {
    let failed = |error: io::Error| Problem::io("cannot list the folder", &error).in_file(folder);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

fn remove_files(folder: &Path, unwanted: impl Fn(&str) -> bool) -> Result<(), Problem> {
    for name in names(folder)?.iter().filter(|name| unwanted(name)) {
        let path = folder.join(name);
        match step(Step::Remove, &path).and_then(|()| fs::remove_file(&path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Problem::io("cannot remove it", &error).in_file(&path));
            }
            _ => {}
        }
    }
    Ok(())
}

fn digits(site: &str) -> String {
    let mut hashing = Hashing::default();
    hashing.update(site.as_bytes());
    let mut digits = hashing.finish();
    digits.truncate(DIGITS);
    digits
}

/// Whether a file name is one that this module gives.
fn is_ours(name: &str) -> bool {
    let of_a_site = || {
        let digits = name.bytes().take_while(u8::is_ascii_hexdigit).count();
        digits == DIGITS && (name.ends_with(SUMS) || name.ends_with(LAYERS))
    };
    [LOCK, JOB, WRITING, PART].contains(&name) || is_unfinished(name) || of_a_site()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Nonfinite;
    use crate::storage::Category;

    const INTERVAL: Duration = Duration::from_secs(1);

    fn open(folder: &Path, job: &Job, restart: bool) -> Result<PartialRun, Problems> {
        PartialRun::open(folder, job, INTERVAL, restart)
    }

    #[test]
    fn two_runs_do_not_share_a_folder() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("out.partial");
        let job = Job::example(1);
        let first = open(&folder, &job, false).unwrap();
        for restart in [false, true] {
            let problems = open(&folder, &job, restart).unwrap_err();
            assert_eq!(problems.category(), Category::Io);
            assert!(problems.to_string().contains("out.partial: another run is at work"), "{problems}");
        }
        drop(first);
        let second = open(&folder, &job, false).unwrap();
        second.discard().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn other_jobs_are_refused_by_what_differs_unless_the_run_begins_anew() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("out.partial");
        let partial = open(&folder, &Job::example(1), false).unwrap();
        fs::write(partial.layers("site"), "progress").unwrap();
        fs::write(folder.join(".job.json.tmpAb12cd"), "left by a kill").unwrap();
        drop(partial);
        assert!(PartialRun::is_there(&folder));
        let problems = open(&folder, &Job::example(2), false).unwrap_err();
        assert_eq!((problems.0.len(), problems.category()), (1, Category::Usage));
        let words = "out.partial: holds the progress of another run: inputs.activations.a.npy.bytes was 1, and is 2 now";
        assert!(problems.to_string().contains(words), "{problems}");

        let partial = open(&folder, &Job::example(1), false).unwrap();
        assert!(partial.layers("site").exists(), "the same job goes on");
        assert!(!folder.join(".job.json.tmpAb12cd").exists());
        drop(partial);
        let partial = open(&folder, &Job::example(2), true).unwrap();
        assert!(!partial.layers("site").exists());
        drop(partial);
        assert!(open(&folder, &Job::example(2), false).is_ok());
    }

    /// Only what the run began to write is its own, from then on and until it has ended.
    #[test]
    fn outputs_that_are_being_written_are_known() {
        let parent = tempfile::tempdir().unwrap();
        let [folder, out, other] = ["out.partial", "out", "other"].map(|name| parent.path().join(name));
        let own = |output: &Path| PartialRun::is_writing(&folder, output);
        fs::create_dir(&out).unwrap();
        fs::create_dir(&other).unwrap();
        let partial = open(&folder, &Job::example(1), false).unwrap();
        assert!(!own(&out));
        partial.begin_writing(&[&parent.path().join("other/../out"), &parent.path().join("absent")]).unwrap();
        assert!(own(&out) && !own(&other) && !own(&parent.path().join("absent")));
        drop(partial);
        drop(open(&folder, &Job::example(1), false).unwrap());
        assert!(own(&out));
        drop(open(&folder, &Job::example(2), true).unwrap());
        assert!(own(&out), "what is there is none the less half written");
        fs::remove_file(folder.join(JOB)).unwrap();
        assert!(!own(&out));
        drop(open(&folder, &Job::example(1), false).unwrap());
        assert!(!own(&out), "it is of a run that has ended");
    }

    /// Sums of rows that were all finite are good for a run that leaves others out, but not the other way round.
    #[test]
    fn a_run_that_skips_rows_goes_on_from_one_that_refused_them() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("out.partial");
        let [refuse, skip] = [Nonfinite::Refuse, Nonfinite::SkipRows].map(Job::example_of);
        let partial = open(&folder, &refuse, false).unwrap();
        assert!(!partial.has_progress().unwrap());
        fs::write(partial.layers("site"), "progress").unwrap();
        assert!(partial.has_progress().unwrap());
        let identity = partial.job().of_sums();
        drop(partial);
        assert_eq!(open(&folder, &skip, false).unwrap().job().of_sums(), identity);
        let problems = open(&folder, &refuse, false).unwrap_err();
        assert!(
            problems.to_string().contains("nonfinite was \"skip-rows\", and is \"refuse\" now"),
            "{problems}"
        );
    }

    #[test]
    fn files_of_others_are_neither_mixed_with_nor_removed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("out.partial");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("notes"), "mine").unwrap();
        let problems = open(&folder, &Job::example(1), false).unwrap_err();
        assert!(problems.to_string().contains("it holds something else, \"notes\""), "{problems}");
        fs::rename(folder.join("notes"), parent.path().join("notes")).unwrap();
        let partial = open(&folder, &Job::example(1), false).unwrap();
        fs::write(folder.join("notes"), "mine").unwrap();
        fs::write(folder.join("mine.layers.safetensors"), "mine").unwrap();
        fs::write(partial.layers("site"), "ours").unwrap();
        partial.discard().unwrap();
        let mut left: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["mine.layers.safetensors", "notes"]);
    }

    #[test]
    fn a_file_in_the_way_and_a_damaged_job_are_told() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("out.partial");
        fs::write(&folder, "").unwrap();
        assert_eq!(open(&folder, &Job::example(1), false).unwrap_err().category(), Category::Io);
        fs::remove_file(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(JOB), "{").unwrap();
        let problems = open(&folder, &Job::example(1), false).unwrap_err();
        assert!(problems.to_string().contains("job.json: cannot be understood"), "{problems}");
        assert!(open(&folder, &Job::example(1), true).is_ok());
    }
}
