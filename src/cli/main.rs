//! Parses the arguments and runs the command that they name.

use super::args::{Cli, Command, laid_out};
use super::terminal::{self, Terminal};
use super::{convert, demo, exit, generate, init, inspect, moments, plan, report, resolve, verify};
use clap::{CommandFactory, FromArgMatches};
use std::process::ExitCode;

/// Runs the tool on the arguments of this process.
pub fn main() -> ExitCode {
    exit::announce_panics();
    std::panic::catch_unwind(parse_and_run).unwrap_or(exit::BUG.into())
}

fn parse_and_run() -> ExitCode {
    let all = std::env::args_os().any(|word| word == "--help");
    let description = laid_out(Cli::command(), all).color(terminal::colours_of_help(std::env::args_os()));
    let parsed = description.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return exit::of_arguments(&error),
    };
    let terminal = Terminal::new(&cli.global);
    match run(cli.command, &terminal) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::of_error(&error, &terminal),
    }
}

fn run(command: Command, terminal: &Terminal) -> anyhow::Result<()> {
    match command {
        Command::Init(args) => init::run(resolve::init(*args, terminal.json())?, terminal),
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
