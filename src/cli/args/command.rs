//! The tool, its commands, and the options of all commands.

use super::help::end;
use super::{
    ConvertArgs, DemoArgs, InitArgs, InspectArgs, MergeArgs, MomentsArgs, PlanArgs, ProgressStyle,
    ReportArgs, SlurmArgs, VerifyArgs, When,
};
use clap::{ArgAction, Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// Initialize LoRA adapters from data, offline, on ordinary processors
///
/// Reads a checkpoint and recorded activations, computes the factors of every adapted layer in closed form, and writes a PEFT adapter
/// from which training starts.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, propagate_version = false, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
#[command(after_long_help = end(&["init model --activations activations --out adapter", "demo"]))]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Terminal")]
pub(crate) struct GlobalArgs {
    /// Print the result as one JSON object on stdout, in place of text
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Log files, sites, dampings, fallbacks and times on stderr; -vv logs more details
    #[arg(short, long, action = ArgAction::Count, global = true, hide_short_help = true)]
    pub(crate) verbose: u8,

    /// Print only errors on stderr
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// Colours in help and messages; `auto` follows NO_COLOR, CLICOLOR_FORCE and TERM=dumb
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t, hide_short_help = true)]
    pub(crate) color: When,

    /// Progress on stderr
    #[arg(long, global = true, value_enum, value_name = "HOW", default_value_t, hide_short_help = true)]
    pub(crate) progress: ProgressStyle,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compute an adapter from a checkpoint and activations
    ///
    /// All errors that file headers and options show are reported together, before the computation starts. The same inputs and options
    /// give the same bytes, for any number of threads.
    #[command(after_long_help = end(&[
        "init model --activations activations --out adapter",
        "init model -a tuning/ --source general/ --target q_proj,v_proj --rank 8 -o adapter",
        "init model -a tuning/ --rank 16 --budget --rank-multiple 8 -o adapter",
        "init model --method pissa --target q_proj,v_proj -o adapter",
    ]))]
    Init(Box<InitArgs>),

    /// Run a model on text or data, and record the statistics of its layers (with the Python package)
    ///
    /// This command is in the Python package, whose `cntlora record --help` shows its options. Everything else needs no Python.
    Record {
        /// Model and options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },

    /// Measure the moments of activations, for many runs of init
    ///
    /// Reads every row once and writes the number of rows, their sum, their Gram matrix and the largest values. `init --moments` uses
    /// this file in place of the activations. The command needs no model. Progress is saved: after an interruption, give the same
    /// command again.
    #[command(after_long_help = end(&[
        "moments activations --out target.moments.safetensors",
        "moments activations --shard 3/8 --out parts",
        "init model --moments target.moments.safetensors --out adapter",
    ]))]
    Moments(MomentsArgs),

    /// Add moments files, or join the parts of an adapter
    ///
    /// Moments files are added in the order in which they are given, and parts in the order of their numbers. The same files in the
    /// same order give the same bits. The command refuses rows that two files count, and parts that are missing, doubled or from
    /// different runs.
    ///
    /// From the parts that `cntlora init --shard` wrote, it chooses the ranks and writes the adapter that one `cntlora init` would have
    /// written. Run it in the folder in which `init --shard` was run, because it
    /// opens the model and the activations again.
    #[command(after_long_help = end(&[
        "merge monday.moments.safetensors tuesday.moments.safetensors --out both.moments.safetensors",
        "merge parts --out adapter",
    ]))]
    Merge(MergeArgs),

    /// Show what init would do: layers, memory, work
    ///
    /// Reads file headers only. Takes every option of init. If --out is given, the output folder is checked too.
    #[command(after_long_help = end(&["plan model --activations activations --target q_proj,v_proj"]))]
    Plan(Box<PlanArgs>),

    /// Describe a file or folder
    ///
    /// Describes safetensors and .npy files, checkpoints, activations, adapters, and the JSON that init and plan print. For an adapter
    /// it shows the norm and the singular values of the product of each layer. For other tensors it reads only the headers, unless
    /// --values is given.
    #[command(after_long_help = end(&[
        "inspect adapter",
        "inspect activations/part-00001.safetensors --values",
    ]))]
    Inspect(InspectArgs),

    /// Read an adapter and check it
    #[command(after_long_help = end(&["verify adapter --base model"]))]
    Verify(VerifyArgs),

    /// Write the report of an adapter as an HTML page
    ///
    /// Writes one self-contained file from the report.json that init stores with every adapter: ranks, spectra, activations, sizes, the
    /// layers that were left out, the command and the inputs. `init --report` writes the same page.
    #[command(after_long_help = end(&["report adapter --out report.html"]))]
    Report(ReportArgs),

    /// Convert an adapter to the original base, a smaller rank or another format
    ///
    /// An adapter from a residual start works only with the base that was written with it. Give the adapter that its training started
    /// from as --init: the result is an adapter of twice the rank that computes the same with the original base. --rank cuts the result
    /// to a smaller rank, and the command prints the share of each update that is lost.
    #[command(after_long_help = end(&[
        "convert trained --init adapter --out plain",
        "convert trained --init adapter --rank 16 --out plain",
        "convert trained --rank 8 --out smaller",
        "convert adapter --format kohya --out lora",
        "convert adapter --uniform-rank --format mlx --out mlx",
        "convert lora --format peft --component unet --base model --out adapter",
    ]))]
    Convert(ConvertArgs),

    /// Make a small model and its activations, and compute an adapter for them
    ///
    /// Downloads nothing. Writes the model, its activations and the adapter to DIR/model, DIR/activations, DIR/activations-source and
    /// DIR/adapter, and a page about the run to DIR/report.html.
    #[command(after_long_help = end(&[
        "demo",
        "demo try --force",
    ]))]
    Demo(DemoArgs),

    /// Generate manual pages, shell completions, or a script for a cluster
    #[command(subcommand, after_long_help = end(&[
        "generate man --out man",
        "generate completions bash > cntlora.bash",
    ]))]
    Generate(GenerateCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum GenerateCommand {
    /// Manual pages: one per command with --out, otherwise the main page on stdout
    Man {
        /// Folder to write the pages to
        #[arg(short, long, value_name = "DIR")]
        out: Option<PathBuf>,

        /// Replace existing pages
        #[arg(long, requires = "out")]
        force: bool,
    },
    /// Script that divides a job over a Slurm cluster, on stdout
    ///
    /// The script submits an array job that measures the moments of the activations in parts, and a job that waits for the parts, merges
    /// them and computes the adapter. The moments stay beside the adapter, for more runs of `cntlora init`.
    #[command(after_long_help = end(&["generate slurm model --activations acts --out adapter --parts 8 --cpus 16 -- --rank 8 | sh"]))]
    Slurm(SlurmArgs),
    /// Page of all options, in Markdown, on stdout
    Options,
    /// Shell completions, on stdout
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}
