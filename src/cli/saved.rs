//! Outputs that one process works on at a time, and runs whose progress outlives an interruption, as commands see them.

use super::args::SavedProgressArgs;
use super::interrupt::remove_unfinished;
use super::prepare::create_parent;
use super::terminal::Terminal;
use cntlora::run::{Job, Output, OutputLock, PartialRun, progress_folder};
use cntlora::storage::{Category, Problem, Problems, quoted};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a command writes.
pub struct Outputs {
    /// A file or a folder. The progress is kept beside it.
    main: PathBuf,
    /// Files and folders elsewhere, which have locks of their own.
    elsewhere: Vec<PathBuf>,
    /// Folders below `main`.
    below: Vec<PathBuf>,
}

impl Outputs {
    /// One file or folder.
    pub fn one(path: &Path) -> Self {
        Self { main: path.into(), elsewhere: Vec::new(), below: Vec::new() }
    }

    /// Those of an adapter.
    pub fn of(output: &Output) -> Self {
        let elsewhere: Vec<PathBuf> = output.elsewhere().into_iter().map(Path::to_path_buf).collect();
        let below = output.changed_folders().into_iter();
        let below = below.filter(|folder| *folder != output.folder && !elsewhere.contains(folder)).collect();
        Self { main: output.folder.clone(), elsewhere, below }
    }

    /// Locks them, and removes what a process that was killed left unfinished of them.
    pub fn lock(&self) -> Result<Vec<OutputLock>, Problem> {
        create_parent(&self.main)?;
        let mut locks = vec![OutputLock::take(&self.main)?];
        self.lock_others(&mut locks)?;
        Ok(locks)
    }

    /// Locks all but the first, and removes what a process that was killed left unfinished, once all are locked.
    fn lock_others(&self, locks: &mut Vec<OutputLock>) -> Result<(), Problem> {
        for path in &self.elsewhere {
            create_parent(path)?;
            locks.push(OutputLock::take(path)?);
        }
        let all = [&self.main].into_iter().chain(&self.elsewhere).chain(&self.below);
        all.for_each(|output| remove_unfinished(output));
        Ok(())
    }
}

/// A run whose outputs are locked, and whose progress is saved.
pub struct SavedRun {
    pub partial: PartialRun,
    _locks: Vec<OutputLock>,
}

/// Opens the folder for the progress of a run that writes to `outputs`. From then on no other run writes there: `check` looks once more
/// whether they may be written, and begins what must not be begun twice.
pub fn open<T>(
    outputs: &Outputs,
    job: &Job,
    args: &SavedProgressArgs,
    check: impl FnOnce() -> Result<T, Problems>,
    terminal: &Terminal,
) -> Result<(SavedRun, T), Problems> {
    create_parent(&outputs.main)?;
    let folder = progress_folder(&outputs.main);
    let resumes = PartialRun::is_there(&folder) && !args.restart;
    let partial = PartialRun::open(&folder, job, Duration::from_secs(args.checkpoint_every), args.restart)?;
    let mut locks = Vec::new();
    let begun = OutputLock::of_other_name(&outputs.main)
        .and_then(|lock| {
            locks.push(lock);
            outputs.lock_others(&mut locks)
        })
        .map_err(Problems::from)
        .and_then(|()| check());
    let begun = match begun {
        Ok(begun) => begun,
        Err(problems) => {
            if !resumes {
                partial.discard()?;
            }
            return Err(problems);
        }
    };
    if resumes {
        let folder = quoted(&folder.display().to_string());
        terminal.note(&format!("Going on from the progress in {folder}; --restart begins anew"));
        if !partial.differences().is_empty() {
            let differences = partial.differences().join("; ");
            terminal.note(&format!("Layers that depend on it are decomposed again: {differences}"));
        }
    }
    Ok((SavedRun { partial, _locks: locks }, begun))
}

/// Throws the progress away when a run has ended, unless there is something to go on from.
pub fn close<T>(run: SavedRun, result: Result<T, Problems>, terminal: &Terminal) -> Result<T, Problems> {
    let value = match result {
        Ok(value) => value,
        Err(problems) => return Err(failed(run, problems, terminal)),
    };
    run.partial.discard()?;
    Ok(value)
}

/// As [`close`], but leaves the progress of a success, which is the output.
pub fn keep<T>(
    run: SavedRun,
    result: Result<T, Problems>,
    terminal: &Terminal,
) -> Result<(SavedRun, T), Problems> {
    match result {
        Ok(value) => Ok((run, value)),
        Err(problems) => Err(failed(run, problems, terminal)),
    }
}

fn failed(run: SavedRun, mut problems: Problems, terminal: &Terminal) -> Problems {
    let SavedRun { partial, _locks } = run;
    match problems.category() {
        Category::Interrupted => {
            let problem = Problem::interrupted("stopped before it was finished; the progress is saved here");
            problem.in_file(partial.folder()).help("give the same command again to go on").into()
        }
        Category::Io => {
            let goes_on = |problem: Problem| {
                match problem.next_step() {
                Some(_) => problem,
                None => problem.help(
                    "what was saved before is kept: give the same command again, when this is mended, to go on",
                ),
            }
            };
            Problems(problems.0.into_iter().map(goes_on).collect())
        }
        Category::Data | Category::Usage => {
            let is_of_use =
                partial.has_progress().unwrap_or(true) && !problems.0.iter().any(Problem::is_change);
            if is_of_use {
                let folder = quoted(&partial.folder().display().to_string());
                terminal.note(&format!(
                    "The progress is kept in {folder}: a run of the same activations goes on from it; for others give --restart"
                ));
            } else {
                problems.collect(partial.discard());
            }
            problems
        }
    }
}
