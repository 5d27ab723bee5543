//! Locks on outputs, and runs whose progress is saved.

use super::prepare::create_parent;
use super::resolve::Saving;
use super::terminal::Terminal;
use crate::run::{Job, Output, OutputLock, PartialRun, progress_folder};
use crate::storage::{Category, Problem, Problems, quoted, remove_unfinished};
use std::path::{Path, PathBuf};

/// The outputs of a command.
pub(crate) struct Outputs {
    /// A file or a folder. The progress is saved beside it.
    main: PathBuf,
    /// Other files and folders. Each has its own lock.
    elsewhere: Vec<PathBuf>,
    /// Folders below `main`.
    below: Vec<PathBuf>,
}

impl Outputs {
    /// One file or folder.
    pub(crate) fn one(path: &Path) -> Self {
        Self { main: path.into(), elsewhere: Vec::new(), below: Vec::new() }
    }

    /// The outputs of an adapter.
    pub(crate) fn of(output: &Output) -> Self {
        let elsewhere: Vec<PathBuf> = output.elsewhere().into_iter().map(Path::to_path_buf).collect();
        let below = output.changed_folders().into_iter();
        let below = below.filter(|folder| *folder != output.folder && !elsewhere.contains(folder)).collect();
        Self { main: output.folder.clone(), elsewhere, below }
    }

    /// Locks the outputs, and removes unfinished files of a process that was killed.
    pub(crate) fn lock(&self) -> Result<Vec<OutputLock>, Problem> {
        create_parent(&self.main)?;
        let mut locks = vec![OutputLock::take(&self.main)?];
        self.lock_others(&mut locks)?;
        Ok(locks)
    }

    /// Locks all but the main output, and then removes unfinished files of a process that was killed.
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

/// Checks that a run that writes to `main` could continue the progress beside it. Writes nothing.
pub(crate) fn check(main: &Path, job: &Job, saving: Saving) -> Result<(), Problems> {
    if saving.restart { Ok(()) } else { PartialRun::check(&progress_folder(main), job) }
}

/// A run whose outputs are locked, and whose progress is saved.
pub(crate) struct SavedRun {
    pub(crate) partial: PartialRun,
    _locks: Vec<OutputLock>,
}

/// Opens the progress folder of a run that writes to `outputs`, and locks them. `check` then checks the outputs again, and may begin
/// work that only one process may do.
pub(crate) fn open<T>(
    outputs: &Outputs,
    job: &Job,
    saving: Saving,
    check: impl FnOnce() -> Result<T, Problems>,
    terminal: &Terminal,
) -> Result<(SavedRun, T), Problems> {
    create_parent(&outputs.main)?;
    let folder = progress_folder(&outputs.main);
    let resumes = PartialRun::is_there(&folder) && !saving.restart;
    let partial = PartialRun::open(&folder, job, saving.every, saving.restart)?;
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
        terminal.note(&format!("Continuing from the progress in {folder}; --restart starts again"));
        if !partial.differences().is_empty() {
            let differences = partial.differences().join("; ");
            terminal
                .note(&format!("Decomposing again the layers that depend on these changes: {differences}"));
        }
    }
    Ok((SavedRun { partial, _locks: locks }, begun))
}

/// Discards the progress of a run that has ended, unless a later run can continue from it.
pub(crate) fn close<T>(
    run: SavedRun,
    result: Result<T, Problems>,
    terminal: &Terminal,
) -> Result<T, Problems> {
    let (run, value) = keep(run, result, terminal)?;
    run.partial.discard()?;
    Ok(value)
}

/// Like [`close`], but keeps the progress of a successful run, because it is the output.
pub(crate) fn keep<T>(
    run: SavedRun,
    result: Result<T, Problems>,
    terminal: &Terminal,
) -> Result<(SavedRun, T), Problems> {
    let mut problems = match result {
        Ok(value) => return Ok((run, value)),
        Err(problems) => problems,
    };
    let SavedRun { partial, _locks } = run;
    let category = problems.category();
    if matches!(category, Category::Data | Category::Usage) {
        if problems.0.iter().any(|problem| is_within(problem, partial.folder())) {
            // The progress itself is damaged. The message says how to go on.
            return Err(problems);
        }
        if partial.has_progress().unwrap_or(true) && !problems.0.iter().any(Problem::is_change) {
            let folder = quoted(&partial.folder().display().to_string());
            terminal.note(&format!(
                "The progress is kept in {folder}: a run with the same activations continues from it; for other activations give --restart"
            ));
        } else {
            problems.collect(partial.discard());
        }
        return Err(problems);
    }
    Err(with_way_to_continue(problems, partial.folder()))
}

fn is_within(problem: &Problem, folder: &Path) -> bool {
    problem.file().is_some_and(|file| file.starts_with(folder))
}

/// An interruption or an I/O error, with help to continue from the progress in `folder`.
fn with_way_to_continue(problems: Problems, folder: &Path) -> Problems {
    if problems.category() == Category::Interrupted {
        let problem = Problem::interrupted("interrupted; the progress is saved here");
        return problem.in_file(folder).help("give the same command again to continue").into();
    }
    let help = "the saved progress is kept: correct this and give the same command again to continue";
    let with_help = |problem: Problem| match problem.next_step() {
        Some(_) => problem,
        None => problem.help(help),
    };
    Problems(problems.0.into_iter().map(with_help).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn help_says_how_to_continue() {
        let shown = |problem: Problem| {
            let problems = with_way_to_continue(problem.into(), Path::new("out.partial"));
            format!("{problems}; help: {}", problems.0[0].next_step().unwrap())
        };
        let all = [
            Problem::interrupted("stopped"),
            Problem::environment("the disk is full"),
            Problem::environment("cannot open").help("check the path"),
        ];
        expect![[r#"
            out.partial: interrupted; the progress is saved here; help: give the same command again to continue
            the disk is full; help: the saved progress is kept: correct this and give the same command again to continue
            cannot open; help: check the path"#]].assert_eq(&all.map(shown).join("\n"));
    }
}
