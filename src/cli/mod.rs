//! The command-line tool. It parses arguments, plans, runs and writes files; the mathematics is in the library.
//!
//! `main` runs the tool, also inside another process. `variables` completes the command line by environment variables. `args` parses
//! arguments, and `resolve` turns them into the task of a command. The commands are in the files of their names: `init` and `parts`, `plan`,
//! `moments`, `inspect`, `verify`, `report`, `convert`, `demo` and `generate`. They share the checks of `prepare`, the saved progress of
//! `saved`, the results of `dry_run`, and the output of `terminal`, `progress` and `events`. `exit` has the exit codes.

mod args;
mod command_line;
mod convert;
mod demo;
mod demo_model;
mod dry_run;
mod events;
mod exit;
mod generate;
mod in_process;
mod init;
mod inspect;
mod interrupt;
mod launcher;
mod limits;
mod main;
mod moments;
mod options_page;
mod parts;
mod plan;
mod prepare;
mod progress;
mod provenance;
mod rank_hint;
mod rate;
mod report;
mod resolve;
mod saved;
mod slurm;
mod terminal;
mod variables;
mod verify;

pub use exit::message;
pub use in_process::{Loaded, MomentsInput, initialize};
pub use interrupt::Interruption;
pub use main::{main, main_with};
