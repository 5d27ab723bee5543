//! The command line as clap parses it. [`resolve`](super::resolve) turns the arguments into the task of a command.
//!
//! `command` is the tool and its commands, `job` the options of init and plan, `work` those of moments, merge and generate slurm, and
//! `files` those of the other commands. `words` lists the words that options take, and `help` lays out `-h` and `--help`.

mod command;
mod files;
mod help;
mod job;
mod words;
mod work;

pub(crate) use command::{Cli, Command, GenerateCommand, GlobalArgs};
pub(crate) use files::{ConvertArgs, DemoArgs, InspectArgs, ReportArgs, VerifyArgs};
pub(crate) use help::laid_out;
pub(crate) use job::{
    InitArgs, JobArgs, LoadingArgs, MethodArgs, PlanArgs, RankArgs, ReadingArgs, RunArgs, WritingArgs,
};
pub(crate) use words::{ProgressStyle, When};
pub(crate) use work::{DryRunArgs, MergeArgs, MomentsArgs, SavingArgs, ShardArg, SlurmArgs};
