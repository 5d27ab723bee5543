//! The arguments of measuring, merging and dividing work.

use super::{ReadingArgs, RunArgs};
use clap::Args;
use cntlora::plan::Shard;
use std::num::NonZeroU32;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct MomentsArgs {
    /// Activations: .safetensors and .npy files, and folders of them
    #[arg(value_name = "PATH", required = true)]
    pub activations: Vec<PathBuf>,

    /// File to write the moments to
    ///
    /// With --shard, the folder for the parts.
    #[arg(short, long, value_name = "FILE", help_heading = "Output", display_order = 0)]
    pub out: PathBuf,

    /// Only sites in whose name, or the name of a module that reads them, this is found; repeatable
    #[arg(long, value_name = "REGEX", help_heading = "Input", hide_short_help = true)]
    pub include: Vec<String>,

    /// No sites in whose name, or the names of all modules that read them, this is found; repeatable
    #[arg(long, value_name = "REGEX", help_heading = "Input", hide_short_help = true)]
    pub exclude: Vec<String>,

    #[command(flatten)]
    pub reading: ReadingArgs,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub progress: SavedProgressArgs,

    /// Measure only part I of N, counted from 0, into the folder --out
    ///
    /// `auto` asks the launcher. Parts are cut by rows, where blocks of rows end, and have about the same work. `cntlora merge` and `init --moments` take the
    /// folder when all parts are there. `auto` knows the variables of Slurm array jobs and steps, Open MPI, and MPICH and other
    /// launchers that set PMI_RANK; without any, it is 0/1.
    #[arg(long, value_name = "I/N", help_heading = "Running")]
    pub shard: Option<ShardArg>,

    /// Replace a file that is already there
    #[arg(long, help_heading = "Output")]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Moments files, or parts of an adapter, or folders of either
    ///
    /// As `cntlora moments`, `cntlora merge` or `cntlora init --shard` wrote them.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// File to write the sum to, or folder to write the adapter to
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,

    /// Write a page about the adapter: one self-contained HTML file
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,

    /// Replace what is already there
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Interruptions")]
pub struct SavedProgressArgs {
    /// How often progress is saved
    ///
    /// It is saved beside the output, in OUT.partial. 0 saves after every block of rows.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, hide_short_help = true)]
    pub checkpoint_every: u64,

    /// Begin anew, and throw away what an unfinished run left
    #[arg(long, hide_short_help = true)]
    pub restart: bool,
}

#[derive(Debug, Args)]
pub struct SlurmArgs {
    /// Checkpoint: a folder, or one .safetensors file
    pub model: PathBuf,

    /// Fine-tuning activations, as for init
    #[arg(short, long, value_name = "PATH", num_args = 1.., required = true)]
    pub activations: Vec<PathBuf>,

    /// Pre-training activations, as for init
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub source: Vec<PathBuf>,

    /// Folder to write the adapter to; parts and moments go beside it
    #[arg(short, long, value_name = "DIR")]
    pub out: PathBuf,

    /// How many parts the measurement has
    #[arg(long, value_name = "N")]
    pub parts: NonZeroU32,

    /// Processors of each task
    #[arg(long, value_name = "N", default_value = "1")]
    pub cpus: NonZeroU32,

    /// An option of sbatch for all jobs, such as --sbatch=--partition=cpu; repeatable
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub sbatch: Vec<String>,

    /// Options of `cntlora init`
    #[arg(last = true, value_name = "OPTIONS")]
    pub options: Vec<String>,
}

/// Which part of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardArg {
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
