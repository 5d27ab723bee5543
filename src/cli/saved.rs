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

/// Throws the progress away where it is of no more use, which is unless the run was interrupted, or its environment failed.
pub fn close<T>(partial: PartialRun, result: Result<T, Problems>) -> Result<T, Problems> {
    match result {
        Err(problems) if problems.category() == Category::Interrupted => {
            let problem = Problem::interrupted("stopped before it was finished; the progress is saved here");
            let help = "give the same command again to go on";
            Err(problem.in_file(partial.folder()).help(help).into())
        }
        Err(problems) if problems.category() == Category::Io => Err(problems),
        Err(mut problems) => {
            problems.collect(partial.discard());
            Err(problems)
        }
        Ok(value) => {
            partial.discard()?;
            Ok(value)
        }
    }
}
