//! The arguments, as clap reads them. Opens nothing and checks nothing that needs a file.

mod files;
mod values;
mod work;

pub use files::{ConvertArgs, DemoArgs, InspectArgs, ReportArgs, VerifyArgs};
pub use values::*;

use super::byte_size::ByteSize;
use clap::{ArgAction, Args, Parser, Subcommand, builder::NonEmptyStringValueParser};
use cntlora::plan::Rename;
use std::num::NonZeroUsize;
use std::path::PathBuf;
pub use work::{MergeArgs, MomentsArgs, SavedProgressArgs, ShardArg, SlurmArgs};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    data was refused
  2    the command or its options cannot be carried out
  3    reading, writing or the environment failed
  4    a bug of this program
  130  interrupted";

/// The end of `--help`.
fn end(examples: &str) -> String {
    format!("Examples:\n{examples}\n\n{EXIT_CODES}")
}

/// The end of `-h`, which shows the common options only, so that it fits one screen.
fn short_end(command: &str, words: &str) -> String {
    format!(
        "Example: cntlora {command} {words}\nAll options, more examples and the exit codes: cntlora {command} --help"
    )
}

/// Initialize LoRA adapters from data, offline, on ordinary processors
///
/// Reads a checkpoint and recorded activations, computes the factors of every adapted layer in closed form, and
/// writes a PEFT adapter from which training starts.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, propagate_version = false, max_term_width = 100)]
#[command(
    after_help = "Example: cntlora init model --activations activations --out adapter\nExit codes: cntlora --help"
)]
#[command(after_long_help = end("  cntlora demo\n  cntlora init model --activations activations --out adapter"))]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Terminal")]
pub struct GlobalArgs {
    /// Print one JSON object instead of text on stdout
    ///
    /// The report of init and demo, the plan of plan, what moments and merge wrote, the verification of verify, the inspection of inspect,
    /// what convert did.
    #[arg(long, global = true)]
    pub json: bool,

    /// Say more on stderr; twice for details, three times for everything
    #[arg(short, long, action = ArgAction::Count, global = true, hide_short_help = true)]
    pub verbose: u8,

    /// Say nothing on stderr but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// When help and messages are coloured; `auto` honours NO_COLOR, CLICOLOR_FORCE and TERM=dumb
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t, hide_short_help = true)]
    pub color: When,

    /// How progress is shown on stderr
    #[arg(long, global = true, value_enum, value_name = "HOW", default_value_t, hide_short_help = true)]
    pub progress: ProgressStyle,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compute an adapter from a checkpoint and activations
    ///
    /// Everything that headers and options can tell is checked, and reported together, before any heavy work. The
    /// same inputs and options give the same bytes, whatever the number of threads.
    #[command(after_help = short_end("init", "model --activations activations --out adapter"), after_long_help = end(
        "  cntlora init model --activations activations --out adapter\n  \
           cntlora init model -a tuning/ --source general/ --target q_proj,v_proj --rank 8 -o adapter\n  \
           cntlora init model -a tuning/ --rank 16 --budget --rank-multiple 8 -o adapter\n  \
           cntlora init model --method pissa --target q_proj,v_proj -o adapter"
    ))]
    Init(InitArgs),

    /// Measure the moments of activations, for many runs of init
    ///
    /// Reads every row once and writes their count, sum, Gram matrix and largest values, from which init --moments goes on without the
    /// activations. Needs no model. Progress is saved: give the same command again after an interruption.
    #[command(after_help = short_end("moments", "activations --out target.moments.safetensors"), after_long_help = end(
        "  cntlora moments activations --out target.moments.safetensors\n  \
           cntlora moments activations --shard 3/8 --out parts\n  \
           cntlora init model --moments target.moments.safetensors --out adapter"
    ))]
    Moments(MomentsArgs),

    /// Add moments files up, or join the parts of an adapter
    ///
    /// Sums are added in the order in which the files are given, and parts in their own: the same files in the same order give the same
    /// bits. Rows that are counted in two of the files are refused, and so are parts that are missing, doubled or of different runs.
    ///
    /// Of the parts that `cntlora init --shard` left, this chooses the ranks and writes the adapter that init alone would have written.
    /// Give it in the folder where they were made, since it looks at the model and the activations again.
    #[command(after_help = short_end("merge", "monday.moments.safetensors tuesday.moments.safetensors --out both.moments.safetensors"), after_long_help = end(
        "  cntlora merge monday.moments.safetensors tuesday.moments.safetensors --out both.moments.safetensors\n  \
           cntlora merge parts --out adapter"
    ))]
    Merge(MergeArgs),

    /// Show what init would do, from headers alone: layers, memory, work
    ///
    /// Takes every option of init, so that one word of its command line has to change; --out is checked when given.
    #[command(after_help = short_end("plan", "model --activations activations --target q_proj,v_proj"), after_long_help = end("  cntlora plan model --activations activations --target q_proj,v_proj"))]
    Plan(PlanArgs),

    /// Say in words what a file or folder holds
    ///
    /// Understands safetensors and .npy files, checkpoint, activation and adapter folders, and the JSON of init
    /// and plan. Of adapters it shows what each layer adds: norm and singular values of the product. Of other tensors it reads
    /// headers only, unless asked for their --values.
    #[command(after_help = short_end("inspect", "adapter"), after_long_help = end(
        "  cntlora inspect adapter\n  cntlora inspect activations/part-00001.safetensors --values"
    ))]
    Inspect(InspectArgs),

    /// Read an adapter again and check it
    #[command(after_help = short_end("verify", "adapter --base model"), after_long_help = end("  cntlora verify adapter --base model"))]
    Verify(VerifyArgs),

    /// Make a page of the report of an adapter
    ///
    /// One self-contained HTML file, from the report.json that init leaves beside every adapter: ranks, spectra, activations,
    /// sizes, what was left out, the command and the inputs. init --report writes the same.
    #[command(after_help = short_end("report", "adapter --out report.html"), after_long_help = end("  cntlora report adapter --out report.html"))]
    Report(ReportArgs),

    /// Make a trained adapter fit the original base, or cut one to smaller rank
    ///
    /// An adapter from a residual start belongs to the base that was written with it. With the adapter that its training
    /// started from, --init, it becomes an adapter of twice the rank for the original base, which computes the same. --rank
    /// cuts the result, and tells what is lost.
    #[command(after_help = short_end("convert", "trained --init adapter --out plain"), after_long_help = end(
        "  cntlora convert trained --init adapter --out plain\n  \
           cntlora convert trained --init adapter --rank 16 --out plain\n  \
           cntlora convert trained --rank 8 --out smaller\n  \
           cntlora convert adapter --format kohya --out lora"
    ))]
    Convert(ConvertArgs),

    /// Make a small model and its activations, and compute an adapter for them
    ///
    /// Nothing is downloaded: the model, the activations that follow from it, and the adapter are made on the spot,
    /// in DIR/model, DIR/activations, DIR/activations-source and DIR/adapter, and a page about it in DIR/report.html.
    #[command(after_help = short_end("demo", "try"), after_long_help = end("  cntlora demo\n  cntlora demo try --force"))]
    Demo(DemoArgs),

    /// Generate manual pages, shell completions, or a script for a cluster
    #[command(subcommand, after_help = short_end("generate", "man --out man"), after_long_help = end(
        "  cntlora generate man --out man\n  cntlora generate completions bash > cntlora.bash"
    ))]
    Generate(GenerateCommand),
}

#[derive(Debug, Args)]
pub struct InitArgs {
    #[command(flatten)]
    pub job: JobArgs,
    /// Folder to write the adapter to
    ///
    /// With --shard, the folder for the parts.
    #[arg(short, long, value_name = "DIR", help_heading = "Output", display_order = 0)]
    pub out: PathBuf,

    /// Compute only part I of N of the layers, counted from 0, into the folder --out
    ///
    /// Layers are divided by their work, and those of one site stay together. `cntlora merge` joins the parts when all are there: it
    /// chooses the ranks and writes the adapter. `auto` asks the launcher, as for `cntlora moments`.
    #[arg(long, value_name = "I/N", help_heading = "Running", hide_short_help = true)]
    pub shard: Option<ShardArg>,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub job: JobArgs,
    /// Show how the job divides over this many nodes
    ///
    /// Shows memory, work and bytes of the busiest node, and its time at the rate of this one.
    #[arg(long, value_name = "N", help_heading = "Running", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub nodes: Option<u64>,

    /// Folder that init would write the adapter to
    #[arg(short, long, value_name = "DIR", help_heading = "Output", display_order = 0)]
    pub out: Option<PathBuf>,
}

/// The arguments that init and plan share.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// Checkpoint: a folder, or one .safetensors file
    pub model: PathBuf,
    #[command(flatten)]
    pub inputs: InputArgs,
    #[command(flatten)]
    pub layers: LayerArgs,
    #[command(flatten)]
    pub method: MethodArgs,
    #[command(flatten)]
    pub ranks: RankArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub progress: SavedProgressArgs,

    /// Refuse a run in which the activations of a site cannot be used, instead of leaving its layers out
    ///
    /// Activations cannot be used if there are no rows, if all are equal or zero, or if their squares are too small or too large for
    /// f32. Without --strict the run warns of such sites, goes on, and names them at the end and in the report.
    #[arg(long, help_heading = "Running", hide_short_help = true)]
    pub strict: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub struct InputArgs {
    /// Fine-tuning activations: .safetensors and .npy files, or folders
    ///
    /// Required by methods that look at activations, unless --moments is given. Methods that look at weights alone take only the names
    /// of layers from them, and need none if --target has those.
    #[arg(short, long, value_name = "PATH", num_args = 1..)]
    pub activations: Vec<PathBuf>,

    /// Files of `cntlora moments`, or a folder, instead of activations
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "activations")]
    pub moments: Vec<PathBuf>,

    /// Pre-training activations of the same sites
    ///
    /// Without them, the tool assumes that pre-training activations are isotropic.
    #[arg(long, value_name = "PATH", num_args = 1.., hide_short_help = true)]
    pub source: Vec<PathBuf>,

    /// Files of `cntlora moments`, or a folder, instead of pre-training activations
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "source", hide_short_help = true)]
    pub source_moments: Vec<PathBuf>,

    /// How module names become checkpoint names, where they differ; repeatable
    #[arg(long, value_name = "REGEX=REPLACEMENT", hide_short_help = true)]
    pub rename: Vec<Rename>,

    #[command(flatten)]
    pub reading: ReadingArgs,
}

/// The arguments that all commands that read activations share.
#[derive(Debug, Args)]
pub struct ReadingArgs {
    /// How files are read
    #[arg(long, value_enum, value_name = "HOW", default_value_t, hide_short_help = true)]
    pub io: Io,

    /// Treatment of rows that hold NaN or infinity
    #[arg(long, value_enum, value_name = "WHAT", default_value_t, hide_short_help = true)]
    pub nonfinite: Nonfinite,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub struct LayerArgs {
    /// Names of modules, or their last parts, separated by commas
    ///
    /// As PEFT's target_modules; repeatable. Without it, every module that an activation site names; `all-linear` says the same.
    /// Required without activations.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    pub target: Vec<String>,

    /// Only modules in whose name this is found; repeatable
    #[arg(long, value_name = "REGEX", hide_short_help = true)]
    pub include: Vec<String>,

    /// No modules in whose name this is found; repeatable
    #[arg(long, value_name = "REGEX")]
    pub exclude: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Method")]
pub struct MethodArgs {
    /// How the adapter is initialized
    #[arg(long, value_enum, value_name = "METHOD", default_value_t, hide_short_help = true)]
    pub method: Method,

    /// cntlora: how fine-tuning and pre-training activations correspond [default: uncorrelated]
    #[arg(long, value_enum, value_name = "HOW", hide_short_help = true)]
    pub coupling: Option<Coupling>,

    /// cntlora: weight of leaving pre-training inputs alone [default: 0]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true, hide_short_help = true)]
    pub preserve: Option<f64>,

    /// cntlora, corda: damping, relative to the mean square of a channel, from above 0 to 1 [default: 0.01]
    #[arg(long, value_name = "RHO", allow_negative_numbers = true, hide_short_help = true)]
    pub ridge: Option<f64>,

    /// cntlora: the mean square of a channel that --ridge and an isotropic source are relative to [default: median]
    #[arg(long, value_enum, value_name = "WHICH", hide_short_help = true)]
    pub channel_scale: Option<ChannelScale>,

    /// cntlora: correction of covariances that come from few rows [default: none]
    #[arg(long, value_enum, value_name = "HOW", hide_short_help = true)]
    pub shrinkage: Option<Shrinkage>,

    /// cntlora: norm in which the update is cut to low rank [default: activations]
    #[arg(long, value_enum, value_name = "NORM", hide_short_help = true)]
    pub norm: Option<Norm>,

    /// With --start update: about how far the update may move the model, as a share of its hidden states [default: 0.05]
    ///
    /// In root mean square over the recorded rows. Each layer's output may move by at most this share divided by the root of the number
    /// of adapted layers that follow one another; layers that read the same input count once. The bound of a layer is exact on the
    /// recorded rows. The shift of the model is an estimate for shifts that do not depend on each other, and no bound.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, hide_short_help = true)]
    pub max_shift: Option<f64>,

    /// With --start update: how much of the update is taken, in place of --max-shift
    #[arg(
        long,
        value_name = "ETA",
        conflicts_with = "max_shift",
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    pub strength: Option<f64>,

    /// The model before the first training step [default: by method]
    ///
    /// The default is mirrored for cntlora, residual for pissa, milora, olora and corda, and zero for the others.
    #[arg(long, value_enum, value_name = "WHAT")]
    pub start: Option<Start>,

    /// Seed of the randomized decompositions, and of random factors
    #[arg(long, value_name = "N", default_value_t = 0, hide_short_help = true)]
    pub seed: u64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Ranks")]
pub struct RankArgs {
    /// Rank of every layer; even for a mirrored start
    #[arg(long, value_name = "R", default_value_t = 16)]
    pub rank: usize,

    /// The least rank of each layer that keeps this share of the update's energy
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["rank", "budget"], allow_negative_numbers = true, hide_short_help = true)]
    pub energy: Option<f64>,

    /// Parameters in all, spent where they keep most of the update
    ///
    /// Without a value, as many as --rank would spend on all layers.
    #[arg(long, value_name = "PARAMETERS", num_args = 0..=1, require_equals = true)]
    pub budget: Option<Option<u64>>,

    /// eva: ranks are shared out among layers, and none gets more than this many times --rank [default: 2]
    #[arg(long, value_name = "RHO", allow_negative_numbers = true, hide_short_help = true)]
    pub rho: Option<f64>,

    /// Least rank of a layer
    #[arg(long, value_name = "R", default_value_t = 0, hide_short_help = true)]
    pub min_rank: usize,

    /// Largest rank of a layer [default: --rank; 128 with --energy; four times --rank with --budget]
    #[arg(long, value_name = "R", hide_short_help = true)]
    pub max_rank: Option<usize>,

    /// Ranks are multiples of this; for a mirrored start they are also even
    #[arg(long, value_name = "N", default_value_t = 1, hide_short_help = true)]
    pub rank_multiple: usize,

    /// Factor of every adapter product: lora_alpha is this times the rank
    #[arg(
        long,
        value_name = "S",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    pub scale: f64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Number format of the factors
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t, hide_short_help = true)]
    pub dtype: Dtype,

    /// How the adapter is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t, hide_short_help = true)]
    pub format: Format,

    /// With --format diffusers or kohya: the part of the pipeline that the model is [default: unet]
    #[arg(long, value_enum, value_name = "PART", hide_short_help = true)]
    pub component: Option<Component>,

    /// With --start residual: where the base gets its part without the update [default: checkpoint]
    #[arg(long, value_enum, value_name = "WHERE", hide_short_help = true)]
    pub residual: Option<Residual>,

    /// With --residual checkpoint: folder to write the changed base to [default: DIR/base]
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub base_out: Option<PathBuf>,

    /// Write a page about the run, as one self-contained HTML file
    ///
    /// Of parts, `cntlora merge` writes it.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,

    /// Replace an adapter, base or page that is already there
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Running")]
pub struct RunArgs {
    /// Number of threads [default: all]
    ///
    /// More threads than processors slow each other down.
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// Memory to use at most, such as 2GiB or 500MB [default: no limit]
    ///
    /// The run then works on fewer sites side by side. If that is not enough, it is refused, with the size that it needs.
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,

    /// Arithmetic of the activation statistics
    #[arg(long, value_enum, value_name = "WHAT", default_value_t, hide_short_help = true)]
    pub precision: Precision,

    /// Write what happens as lines of JSON, for programs
    ///
    /// Only init does so. `-` is stdout, in place of the table. Each line has `event` and `seconds` since the start. The events and their further fields: `started` (schema_version,
    /// tool_version, sites, layers, rows, operations, memory), `site-started` (site, rows), `rows-added` (site, rows),
    /// `moments-ready` (site), `layer-decomposed` (module), `site-left-out` (site, modules, reason), `warning` (message), and last
    /// `finished` (report, as with --json) or `failed` (error). New events and fields may come within a schema_version.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub events: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum GenerateCommand {
    /// Manual pages: one per command into a folder, or the first one on stdout
    Man {
        /// Folder to write the pages to
        #[arg(short, long, value_name = "DIR")]
        out: Option<PathBuf>,

        /// Replace pages that are already there
        #[arg(long, requires = "out")]
        force: bool,
    },
    /// Script that divides a job over a Slurm cluster, on stdout
    ///
    /// It submits an array job that measures the moments of the activations in parts, and a job that waits for the parts, merges them
    /// and computes the adapter. The moments are left beside the adapter, for further runs of `cntlora init`.
    #[command(after_help = short_end("generate slurm", "model --activations acts --out adapter --parts 8 --cpus 16 -- --rank 8"), after_long_help = end(
        "  cntlora generate slurm model --activations acts --out adapter --parts 8 --cpus 16 -- --rank 8 | sh"
    ))]
    Slurm(SlurmArgs),
    /// Page of all options, in Markdown, on stdout
    Options,
    /// Completions of a shell, on stdout
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// What an `init` with these options has been given.
#[cfg(test)]
pub fn init_args(options: &str) -> InitArgs {
    use clap::Parser;
    let words = "cntlora init model --activations acts --out out".split(' ');
    match Cli::try_parse_from(words.chain(options.split_whitespace())).unwrap().command {
        Command::Init(args) => args,
        other => panic!("expected init, found {other:?}"),
    }
}
