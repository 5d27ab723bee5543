//! Runs whose progress outlives an interruption, as commands see them.

use super::args::SavedProgressArgs;
use super::interrupt::remove_unfinished;
use super::prepare::create_parent;
use super::terminal::Terminal;
use cntlora::run::{Job, PartialRun};
use cntlora::storage::{Category, Problem, Problems, quoted};
use std::path::Path;
use std::time::Duration;

/// Opens the folder for the progress of a run that writes to `output`. From then on no other run writes there: `check` looks once more
/// whether the output may be written, and what a killed run left unfinished of it goes.
pub fn open(
    output: &Path,
    job: &Job,
    args: &SavedProgressArgs,
    check: impl FnOnce() -> Result<(), Problems>,
    terminal: &Terminal,
) -> Result<PartialRun, Problems> {
    create_parent(output)?;
    let folder = PartialRun::folder_of(output);
    let resumes = PartialRun::is_there(&folder) && !args.restart;
    let partial = PartialRun::open(&folder, job, Duration::from_secs(args.checkpoint_every), args.restart)?;
    if let Err(problems) = check() {
        if !resumes {
            partial.discard()?;
        }
        return Err(problems);
    }
    if resumes {
        let folder = quoted(&folder.display().to_string());
        terminal.note(&format!("Going on from the progress in {folder}; --restart begins anew"));
    }
    remove_unfinished(output);
    Ok(partial)
}

/// Throws the progress away when a run has ended, unless it can go on: unless it was interrupted, or its environment failed.
pub fn close<T>(partial: PartialRun, result: Result<T, Problems>) -> Result<T, Problems> {
    let value = match result {
        Ok(value) => value,
        Err(problems) => return Err(failed(partial, problems)),
    };
    partial.discard()?;
    Ok(value)
}

/// As [`close`], but leaves the progress of a success, which is the output.
pub fn keep(partial: PartialRun, result: Result<(), Problems>) -> Result<PartialRun, Problems> {
    match result {
        Ok(()) => Ok(partial),
        Err(problems) => Err(failed(partial, problems)),
    }
}

fn failed(partial: PartialRun, mut problems: Problems) -> Problems {
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
            problems.collect(partial.discard());
            problems
        }
    }
}
