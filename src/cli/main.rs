//! Parses the arguments and runs the command that they name.

use super::args::{Cli, Command, laid_out};
use super::interrupt::Interruption;
use super::terminal::{self, Process, Terminal};
use super::variables::{self, Completed};
use super::{convert, demo, exit, generate, init, inspect, moments, plan, report, resolve, verify};
use crate::storage::Problem;
use clap::{CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::panic::catch_unwind;
use std::process::ExitCode;

/// Runs the tool on the arguments of this process.
pub fn main() -> ExitCode {
    exit::exit_if_aborted();
    exit::announce_panics();
    let words: Vec<OsString> = std::env::args_os().collect();
    catch_unwind(|| parse_and_run(&words, None)).unwrap_or(exit::BUG).into()
}

/// Runs the tool inside another process, and returns its exit code. `words` are the name of the program and the arguments.
///
/// It prints on stdout and stderr of the process. It handles no signals and never ends the process: another thread passes interrupts on
/// with [`Interruption::interrupt`].
///
/// Never panics.
pub fn main_with(words: &[OsString], interruption: &Interruption) -> u8 {
    let interruption = interruption.clone();
    exit::catch_announced(|| parse_and_run(words, Some(interruption))).unwrap_or(exit::BUG)
}

/// Parses the words, runs the command, and returns the exit code. `interruption` is given if another thread passes interrupts on.
fn parse_and_run(words: &[OsString], interruption: Option<Interruption>) -> u8 {
    let colours = terminal::colours_of_help(words.iter().cloned());
    let Completed { words: completed, used, unknown } = match variables::complete(words) {
        Ok(completed) => completed,
        Err(problem) => return exit::of_variable(&problem),
    };
    let all = words.iter().any(|word| word == "--help");
    let description = laid_out(Cli::command(), all).color(colours);
    let parsed =
        description.try_get_matches_from(completed).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            return exit::of_arguments(&error, variables::origin_of_argument(&error, &used).as_deref());
        }
    };
    let terminal = Terminal::new(&cli.global, Process::new(words, used, interruption));
    if let Some(warning) = variables::warning(&unknown) {
        terminal.warning(&warning);
    }
    match run(cli.command, &terminal) {
        Ok(()) => 0,
        Err(error) => exit::of_error(&error, &terminal),
    }
}

fn run(command: Command, terminal: &Terminal) -> anyhow::Result<()> {
    match command {
        Command::Init(args) => init::run(resolve::init(*args, terminal.json())?, terminal),
        Command::Record { .. } => Err(needs_python().into()),
        Command::Moments(args) => moments::run(resolve::moments(args)?, terminal),
        Command::Merge(args) => moments::merge(args, terminal),
        Command::Plan(args) => plan::run(&resolve::plan(*args), terminal),
        Command::Inspect(args) => inspect::run(&args, terminal),
        Command::Verify(args) => verify::run(&args, terminal),
        Command::Report(args) => report::run(&args, terminal),
        Command::Convert(args) => convert::run(&resolve::convert(args), terminal),
        Command::Demo(args) => demo::run(&args, terminal),
        Command::Generate(command) => generate::run(&command, terminal),
    }
}

/// The error for a command that only the Python package has.
fn needs_python() -> Problem {
    Problem::usage("`cntlora record` runs a model, so it needs the Python package")
        .help("install the package with `pip install ./python` in the folder of the project, and give the same command again")
}
