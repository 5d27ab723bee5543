//! How many threads work.

use super::args::RunArgs;
use super::terminal::Terminal;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

/// As many as asked for, or as the machine allows this process.
pub fn of(run: &RunArgs) -> usize {
    run.threads.or_else(|| available_parallelism().ok()).map_or(1, NonZeroUsize::get)
}

/// Warns of more threads than processors. They are not refused: the result is the same, and whoever asks for them may know more.
pub fn warn_of_many(run: &RunArgs, terminal: &Terminal) {
    if let (Some(asked), Ok(available)) = (run.threads, available_parallelism())
        && asked > available
    {
        terminal.warning(&format!(
            "--threads {asked} is more than the processors that this process may use, {available}: threads will wait for each other"
        ));
    }
}
