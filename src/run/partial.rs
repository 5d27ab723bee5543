//! The folder with the progress of an unfinished run.
//!
//! | file | holds |
//! |---|---|
//! | `lock` | nothing; it is locked while a run uses the folder |
//! | `job.json` | the inputs and options of the run (`job`) |
//! | `writing` | the paths of the outputs, each followed by a zero byte, once the run writes them; so the run may replace them later |
//! | `<site>.….moments.safetensors` | the sums of a site that is being measured (`saved_sums`) |
//! | `<site>.many.moments.safetensors` | the sums of many measured sites, of which this is the first (`many_sums`) |
//! | `<site>.layers.safetensors` | the decomposed layers of a finished site (`saved_layers`) |
//!
//! `<site>` stands for the first digits of the hash of a site's name. Every file is written atomically. Checksums detect damage.

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
const MANY: &str = ".many.moments.safetensors";
const LAYERS: &str = ".layers.safetensors";

/// The kinds of sums of a site in a run: of both sides, or of pairs.
pub(super) const TARGET: &str = "target";
pub(super) const SOURCE: &str = "source";
pub(super) const PAIRS: &str = "pairs";

/// Number of digits of the hash of a site's name.
const DIGITS: usize = 16;

/// Saved progress in a folder that no other run uses at the same time.
#[derive(Debug)]
pub struct PartialRun {
    folder: PathBuf,
    /// Locked until this is dropped, or the process ends.
    _lock: File,
    job: Job,
    /// Identifies the sums of the job, and is computed once.
    sums: String,
    /// The differences from the job that started the progress.
    differences: Vec<String>,
    interval: Duration,
}

impl PartialRun {
    /// Returns whether the folder contains the progress of a run.
    pub fn is_there(folder: &Path) -> bool {
        folder.join(JOB).is_file()
    }

    /// Returns whether the folder contains the progress of a run that started to write this output. The same run may replace it.
    pub fn is_writing(folder: &Path, output: &Path) -> bool {
        let (true, Ok(written), Ok(output)) =
            (Self::is_there(folder), fs::read(folder.join(WRITING)), fs::canonicalize(output))
        else {
            return false;
        };
        let mut written = written.split(|byte| *byte == 0).filter(|path| !path.is_empty());
        written.any(|path| fs::canonicalize(OsStr::from_bytes(path)).is_ok_and(|path| path == output))
    }

    /// Opens the folder to start a job, or to continue an earlier run. Progress is saved when a site is finished, and after a block of
    /// rows if `interval` has passed since the last save.
    ///
    /// If the method, the model or the selection of layers differs from the earlier job, the run uses the saved sums, and the saved
    /// layers that do not depend on the differences. With `restart`, the progress of an earlier run is removed.
    ///
    /// # Errors
    /// Saved progress from other recordings, or with another way to add rows, is refused with usage problems that list the differences.
    /// An I/O problem if another run uses the folder, or it cannot be written; a data problem if the saved job is invalid.
    pub fn open(folder: &Path, job: &Job, interval: Duration, restart: bool) -> Result<Self, Problems> {
        let failed = |doing| move |error: io::Error| Problem::io(doing, &error).in_file(folder);
        step(Step::CreateFolder, folder)
            .and_then(|()| fs::create_dir_all(folder))
            .map_err(failed("cannot create the folder for the progress of this run"))?;
        let lock = lock(folder)?;
        let mut partial = Self {
            folder: folder.into(),
            _lock: lock,
            job: job.clone(),
            sums: job.of_sums(),
            differences: Vec::new(),
            interval,
        };
        partial.remove_files(is_unfinished)?;
        let path = folder.join(JOB);
        if !path.exists() {
            // A finished run can have left it behind.
            partial.remove_files(|name| name == WRITING)?;
        }
        if restart {
            // The run still owns outputs that it started to write.
            partial.remove_files(|name| is_ours(name) && ![LOCK, WRITING].contains(&name))?;
        }
        if path.exists() {
            let earlier = earlier(folder, job)?;
            if *job != earlier {
                partial.differences = job.differences(&earlier);
                // Only the job that started to write an output may replace it without --force.
                partial.remove_files(|name| name == WRITING)?;
                write_atomically(&path, job.text().as_bytes())?;
            }
        } else {
            partial.refuse_strangers()?;
            write_atomically(&path, job.text().as_bytes())?;
        }
        Ok(partial)
    }

    /// Checks that a job can continue the progress in a folder, if there is some. Writes nothing.
    ///
    /// # Errors
    /// As [`open`](Self::open), for progress of another run.
    pub fn check(folder: &Path, job: &Job) -> Result<(), Problems> {
        if Self::is_there(folder) { earlier(folder, job).map(drop) } else { Ok(()) }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The differences from the job that started the progress, in words.
    pub fn differences(&self) -> &[String] {
        &self.differences
    }

    /// Returns whether the folder contains saved sums or layers.
    ///
    /// # Errors
    /// An I/O problem if the folder cannot be listed.
    pub fn has_progress(&self) -> Result<bool, Problem> {
        Ok(names(&self.folder)?.iter().any(|name| name.ends_with(SUMS) || name.ends_with(LAYERS)))
    }

    /// Records that the run starts to write these outputs, files or folders. See [`is_writing`](Self::is_writing).
    ///
    /// # Errors
    /// I/O problems of writing.
    pub fn begin_writing(&self, outputs: &[&Path]) -> Result<(), Problem> {
        let path = self.folder.join(WRITING);
        let mut paths = Vec::new();
        for output in outputs {
            let output = std::path::absolute(output)
                .map_err(|error| Problem::io("cannot make the path absolute", &error).in_file(output))?;
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
        // The job file is removed after its progress, and the lock last, so that no other run can start before.
        self.remove_files(|name| is_ours(name) && ![LOCK, JOB, WRITING].contains(&name))?;
        self.remove_files(|name| name == JOB)?;
        self.remove_files(|name| name == WRITING)?;
        self.remove_files(|name| name == LOCK)?;
        // Other files stay, and then the folder stays as well.
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }

    /// Turns the folder into the output of a part of a run at `to`. A complete part at `to` is replaced.
    ///
    /// # Errors
    /// I/O problems of writing and renaming; a usage problem if `to` exists and is not a part.
    pub fn complete(self, part: &Part, to: &Path) -> Result<(), Problem> {
        write_atomically(&self.folder.join(PART), part.text()?.as_bytes())?;
        if to.join(PART).is_file() {
            remove_files(to, is_ours)?;
        }
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => {
                Problem::usage("already exists, and is not a part of a run")
                    .in_file(to)
                    .help("choose another folder for the parts")
            }
            _ => Problem::io("cannot rename the progress folder to this name", &error).in_file(to),
        };
        step(Step::Rename, to).and_then(|()| fs::rename(&self.folder, to)).map_err(failed)?;
        remove_files(to, |name| name == LOCK)
    }

    /// The path of the layers of a finished site in a folder.
    pub(super) fn layers_in(folder: &Path, site: &str) -> PathBuf {
        folder.join(format!("{}{LAYERS}", digits(site)))
    }

    /// The saved sums of a site. `kind` distinguishes several sums of the same site.
    pub(super) fn sums(&self, site: &str, kind: &str) -> SavedSums {
        let path = self.folder.join(format!("{}.{kind}{SUMS}", digits(site)));
        SavedSums { path, job: self.sums.clone(), interval: self.interval }
    }

    /// Identifies the sums of the job.
    pub(super) fn of_sums(&self) -> &str {
        &self.sums
    }

    /// The interval between saves.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// The path of the saved sums of many sites, of which this is the first.
    pub(super) fn many_sums_path(&self, first: &str) -> PathBuf {
        self.folder.join(format!("{}{MANY}", digits(first)))
    }

    /// The files with the saved sums of many sites, sorted.
    pub(super) fn many_sums(&self) -> Result<Vec<PathBuf>, Problem> {
        let mut names = names(&self.folder)?;
        names.retain(|name| name.ends_with(MANY) && is_ours(name));
        names.sort();
        Ok(names.into_iter().map(|name| self.folder.join(name)).collect())
    }

    /// The path of the layers of a finished site.
    pub(super) fn layers(&self, site: &str) -> PathBuf {
        Self::layers_in(&self.folder, site)
    }

    /// The job of this progress.
    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    /// Removes the sums of a site after its layers are saved.
    pub(super) fn forget_sums(&self, site: &str) -> Result<(), Problem> {
        // The folder of a run with many sites is not listed for each of them.
        [TARGET, SOURCE, PAIRS].iter().try_for_each(|kind| remove_file(&self.sums(site, kind).path))
    }

    fn remove_files(&self, unwanted: impl Fn(&str) -> bool) -> Result<(), Problem> {
        remove_files(&self.folder, unwanted)
    }

    /// Refuses a folder that contains other files.
    fn refuse_strangers(&self) -> Result<(), Problem> {
        match names(&self.folder)?.into_iter().find(|name| ![LOCK, WRITING].contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => Err(Problem::usage(format!(
                "this folder is needed for the progress of the run, but it contains other files, such as {}",
                crate::storage::quoted(&name)
            ))
            .in_file(&self.folder)
            .help("move them away, or choose another name for the output")),
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
    names(folder)?.iter().filter(|name| unwanted(name)).try_for_each(|name| remove_file(&folder.join(name)))
}

/// Removes a file, if it is there.
fn remove_file(path: &Path) -> Result<(), Problem> {
    match step(Step::Remove, path).and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Problem::io("cannot remove the file", &error).in_file(path))
        }
        _ => Ok(()),
    }
}

fn digits(site: &str) -> String {
    let mut hashing = Hashing::default();
    hashing.update(site.as_bytes());
    let mut digits = hashing.finish();
    digits.truncate(DIGITS);
    digits
}

/// Returns whether a file name is one of this module's names.
fn is_ours(name: &str) -> bool {
    let of_a_site = || {
        let digits = name.bytes().take_while(u8::is_ascii_hexdigit).count();
        digits == DIGITS && (name.ends_with(SUMS) || name.ends_with(LAYERS))
    };
    [LOCK, JOB, WRITING, PART].contains(&name) || is_unfinished(name) || of_a_site()
}

/// The job whose progress is in a folder, if `job` can continue it.
fn earlier(folder: &Path, job: &Job) -> Result<Job, Problems> {
    let earlier = Job::read(&Source::open(&folder.join(JOB), Access::Read)?)?;
    let differences = job.obstacles(&earlier);
    if differences.is_empty() {
        return Ok(earlier);
    }
    let problem = |difference: &String| {
        Problem::usage(format!("contains the progress of another run: {difference}"))
            .in_file(folder)
            .help("give the options and inputs of that run to continue it, or --restart to start again")
    };
    Err(Problems(differences.iter().map(problem).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Nonfinite, Request, Shard};
    use crate::run::Writing;
    use crate::storage::faults::{self, Faults};
    use crate::storage::shown;
    use crate::storage::{Category, snapshot};
    use expect_test::expect;

    const INTERVAL: Duration = Duration::from_secs(1);

    fn open(folder: &Path, job: &Job, restart: bool) -> Result<PartialRun, Problems> {
        PartialRun::open(folder, job, INTERVAL, restart)
    }

    #[test]
    fn second_run_in_a_folder_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("out.partial");
        let job = Job::example(1);
        let first = open(&folder, &job, false).unwrap();
        let refusals =
            [false, true].map(|restart| shown(&open(&folder, &job, restart).unwrap_err(), parent.path()));
        assert_eq!(refusals[0], refusals[1]);
        expect![[r#"
            Io: out.partial: another run is using this output
                help: wait until it ends, or choose another name for the output
        "#]]
        .assert_eq(&refusals[0]);
        drop(first);
        let second = open(&folder, &job, false).unwrap();
        second.discard().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn progress_of_another_job_is_refused_unless_restarted() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("out.partial");
        let partial = open(&folder, &Job::example(1), false).unwrap();
        fs::write(partial.layers("site"), "progress").unwrap();
        fs::write(folder.join(".job.json.tmpAb12cd"), "left by a kill").unwrap();
        drop(partial);
        assert!(PartialRun::is_there(&folder));
        let problems = open(&folder, &Job::example(2), false).unwrap_err();
        expect![[r#"
            Usage: out.partial: contains the progress of another run: inputs.activations.a.npy.bytes was 1 and is now 2
                help: give the options and inputs of that run to continue it, or --restart to start again
        "#]].assert_eq(&shown(&problems, parent.path()));

        let partial = open(&folder, &Job::example(1), false).unwrap();
        assert!(partial.layers("site").exists(), "the same job continues");
        assert!(!folder.join(".job.json.tmpAb12cd").exists());
        drop(partial);
        let partial = open(&folder, &Job::example(2), true).unwrap();
        assert!(!partial.layers("site").exists());
        drop(partial);
        assert!(open(&folder, &Job::example(2), false).is_ok());
    }

    /// A run owns the outputs that it started to write, until it is finished.
    #[test]
    fn started_outputs_belong_to_the_run() {
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
        assert!(own(&out), "the output is still incomplete");
        fs::remove_file(folder.join(JOB)).unwrap();
        assert!(!own(&out));
        drop(open(&folder, &Job::example(1), false).unwrap());
        assert!(!own(&out), "the run is finished");
    }

    /// A run that skips rows can use the sums of a run that refuses them, but not vice versa.
    #[test]
    fn run_that_skips_rows_continues_one_that_refuses_them() {
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
        expect![[r#"
            Usage: out.partial: contains the progress of another run: options.nonfinite was "skip-rows" and is now "refuse"
                help: give the options and inputs of that run to continue it, or --restart to start again
        "#]].assert_eq(&shown(&problems, parent.path()));
    }

    #[test]
    fn failures_of_the_last_steps_name_the_file() {
        let parent = faults::folder();
        let [folder, to] = ["out.partial", "out"].map(|name| parent.path().join(name));
        let partial = open(&folder, &Job::example(1), false).unwrap();
        let mut texts = snapshot(partial.begin_writing(&[Path::new("")]).unwrap_err());
        let of = |counts| Faults { counts, ..Faults::after(0, false, io::ErrorKind::PermissionDenied) };
        let remove = of(|step| step == Step::Remove);
        texts += &snapshot(faults::inject(remove, parent.path(), || partial.discard()).0.unwrap_err());

        let request = Request::new("model".into(), vec!["acts".into()]);
        let part = Part::new(Shard::new(0, 2).unwrap(), request, Writing::default());
        let partial = open(&folder, &Job::example(1), false).unwrap();
        let complete = || partial.complete(&part, &to);
        // The file in the folder is renamed first.
        let rename = Faults { pass: 1, ..of(|step| step == Step::Rename) };
        texts += &snapshot(faults::inject(rename, parent.path(), complete).0.unwrap_err());
        expect![[r#"
            : cannot make the path absolute: cannot make an empty path absolute
            FOLDER/out.partial/job.json: cannot remove the file: permission denied
            FOLDER/out: cannot rename the progress folder to this name: permission denied
        "#]]
        .assert_eq(&texts);
    }

    #[test]
    fn other_files_are_refused_and_never_removed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("out.partial");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("notes"), "mine").unwrap();
        let problems = open(&folder, &Job::example(1), false).unwrap_err();
        expect![[r#"
            Usage: out.partial: this folder is needed for the progress of the run, but it contains other files, such as "notes"
                help: move them away, or choose another name for the output
        "#]].assert_eq(&shown(&problems, parent.path()));
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
    fn file_in_place_of_the_folder_and_damaged_job_are_reported() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("out.partial");
        fs::write(&folder, "").unwrap();
        assert_eq!(open(&folder, &Job::example(1), false).unwrap_err().category(), Category::Io);
        fs::remove_file(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(JOB), "{").unwrap();
        let problems = open(&folder, &Job::example(1), false).unwrap_err();
        expect![[r#"
            Data: out.partial/job.json: invalid job file: EOF while parsing an object at line 1 column 1
                help: give --restart to start again
        "#]]
        .assert_eq(&shown(&problems, parent.path()));
        assert!(open(&folder, &Job::example(1), true).is_ok());
    }
}
