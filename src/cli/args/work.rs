//! The options of moments, merge and generate slurm.

use super::{ReadingArgs, RunArgs};
use crate::plan::Shard;
use clap::Args;
use std::num::NonZeroU32;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct MomentsArgs {
    /// Activations: .safetensors and .npy files, and folders of them
    #[arg(value_name = "PATH", required = true)]
    pub(crate) activations: Vec<PathBuf>,

    /// File to write the moments to
    ///
    /// With --shard, the folder of the parts.
    #[arg(short, long, value_name = "FILE", help_heading = "Output", display_order = 0)]
    pub(crate) out: PathBuf,

    /// Only sites whose name, or the name of a module that reads them, matches; repeatable
    #[arg(long, value_name = "REGEX", help_heading = "Input", hide_short_help = true)]
    pub(crate) include: Vec<String>,

    /// No sites whose name, or the names of all modules that read them, match; repeatable
    #[arg(long, value_name = "REGEX", help_heading = "Input", hide_short_help = true)]
    pub(crate) exclude: Vec<String>,

    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) saving: SavingArgs,

    /// Measure only part I of N, counted from 0, into the folder --out
    ///
    /// Parts are cut by rows, at the ends of blocks of rows, and have about the same work. When all parts exist, give the folder to
    /// `cntlora merge` or `init --moments`. `auto` takes the part from the launcher: from the variables of Slurm array jobs and steps, of
    /// Open MPI, and of MPICH and other launchers that set PMI_RANK. Without any of them, the part is 0/1.
    #[arg(long, value_name = "I/N", help_heading = "Running")]
    pub(crate) shard: Option<ShardArg>,

    /// Replace an existing file
    #[arg(long, help_heading = "Output")]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) dry: DryRunArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DryRunArgs {
    /// Check everything and print what the command would write, but write nothing
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// Moments files, or parts of an adapter, or folders of either
    ///
    /// Files that `cntlora moments`, `cntlora merge` or `cntlora init --shard` wrote.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// File to write the sum to, or folder to write the adapter to
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: PathBuf,

    /// Write a page about the adapter, as one self-contained HTML file
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,

    /// Replace an existing file, adapter or page
    #[arg(long)]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) dry: DryRunArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Interruptions")]
pub(crate) struct SavingArgs {
    /// Seconds between two saves of the progress
    ///
    /// The progress is saved beside the output, in OUT.partial. With 0 it is saved after every block of rows.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, hide_short_help = true)]
    pub(crate) checkpoint_every: u64,

    /// Discard the progress of an unfinished run and start again
    #[arg(long, hide_short_help = true)]
    pub(crate) restart: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SlurmArgs {
    /// Checkpoint: a folder, or one .safetensors file
    pub(crate) model: PathBuf,

    /// Fine-tuning activations, as for init
    #[arg(short, long, value_name = "PATH", num_args = 1.., required = true)]
    pub(crate) activations: Vec<PathBuf>,

    /// Pre-training activations, as for init
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub(crate) source: Vec<PathBuf>,

    /// Folder to write the adapter to; parts and moments go beside it
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Number of parts of the measurement
    #[arg(long, value_name = "N")]
    pub(crate) parts: NonZeroU32,

    /// Processors of each task
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) cpus: NonZeroU32,

    /// An option of sbatch for all jobs, such as --sbatch=--partition=cpu; repeatable
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub(crate) sbatch: Vec<String>,

    /// Options of `cntlora init`
    #[arg(last = true, value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
}

/// A part of a job, or `auto` for the part that the launcher gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShardArg {
    Auto,
    Of(Shard),
}

impl std::str::FromStr for ShardArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Of).map_err(|error: String| format!("{error}, or auto")),
        }
    }
}
