//! The command-line tool: arguments → plan → run → files. Holds no mathematics.

mod args;
mod byte_size;
mod command_line;
mod convert;
mod demo;
mod demo_model;
mod effects;
mod events;
mod exit;
mod generate;
mod init;
mod inspect;
mod interrupt;
mod launcher;
mod moments;
mod options_page;
mod parts;
mod plan;
mod prepare;
mod progress;
mod provenance;
mod rate;
mod report;
mod resolve;
mod saved;
mod slurm;
mod terminal;
mod threads;
mod verify;

use args::{Cli, Command};
use clap::{CommandFactory, FromArgMatches};
use std::process::ExitCode;
use terminal::Terminal;

/// Runs the tool on the arguments of this process.
pub fn main() -> ExitCode {
    exit::announce_panics();
    std::panic::catch_unwind(parse_and_run).unwrap_or(exit::BUG.into())
}

fn parse_and_run() -> ExitCode {
    let description = Cli::command().color(terminal::colours_of_help(std::env::args_os()));
    let parsed = description.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return exit::of_arguments(&error),
    };
    let terminal = Terminal::new(&cli.global);
    match run(&cli.command, &terminal) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::of_error(&error, &terminal),
    }
}

fn run(command: &Command, terminal: &Terminal) -> anyhow::Result<()> {
    match command {
        Command::Init(args) => match args.shard {
            Some(shard) => parts::run(args, launcher::shard(shard)?, terminal),
            None => init::run(args, terminal),
        },
        Command::Moments(args) => moments::run(args, terminal),
        Command::Merge(args) => moments::merge(args, terminal),
        Command::Plan(args) => plan::run(args, terminal),
        Command::Inspect(args) => inspect::run(args, terminal),
        Command::Verify(args) => verify::run(args, terminal),
        Command::Report(args) => report::run(args, terminal),
        Command::Convert(args) => convert::run(args, terminal),
        Command::Demo(args) => demo::run(args, terminal),
        Command::Generate(command) => generate::run(command, terminal),
    }
}
