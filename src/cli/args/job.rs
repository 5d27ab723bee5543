//! The options of init and plan.

use super::words;
use super::{DryRunArgs, SavingArgs, ShardArg};
use crate::adapter::{BaseFormat, Component, Format};
use crate::constraint::{ChannelScale, Coupling, Norm, Shrinkage};
use crate::element::Element;
use crate::factors::Start;
use crate::method::Method;
use crate::plan::{Nonfinite, Rename};
use crate::simd::Precision;
use crate::storage::Access;
use bytesize::ByteSize;
use clap::{Args, builder::NonEmptyStringValueParser};
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Folder to write the adapter to
    ///
    /// With --shard, the folder of the parts.
    #[arg(short, long, value_name = "DIR", help_heading = "Output", display_order = 0)]
    pub(crate) out: PathBuf,

    /// Compute only part I of N of the layers, counted from 0, into the folder --out
    ///
    /// Parts have about the same work, and layers of one site stay in one part. When all parts exist, `cntlora merge` chooses the ranks
    /// and writes the adapter. `auto` takes the part from the launcher, as for `cntlora moments`.
    #[arg(long, value_name = "I/N", help_heading = "Running", hide_short_help = true)]
    pub(crate) shard: Option<ShardArg>,

    #[command(flatten)]
    pub(crate) dry: DryRunArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Show how the job divides over this many nodes
    ///
    /// Shows memory, work and bytes of the busiest node, and its time at the measured speed of this machine.
    #[arg(long, value_name = "N", help_heading = "Running", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) nodes: Option<u64>,

    /// Folder that init would write the adapter to
    #[arg(short, long, value_name = "DIR", help_heading = "Output", display_order = 0)]
    pub(crate) out: Option<PathBuf>,
}

/// The arguments that init and plan share.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// Checkpoint: a folder, or one .safetensors file
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) inputs: InputArgs,
    #[command(flatten)]
    pub(crate) layers: LayerArgs,
    #[command(flatten)]
    pub(crate) method: MethodArgs,
    #[command(flatten)]
    pub(crate) ranks: RankArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) run: RunArgs,

    /// Write events as lines of JSON, for programs; `-` is stdout, in place of the table
    ///
    /// Each line has `event` and `seconds` since the start. The events and their further fields: `started` (schema_version,
    /// tool_version, sites, layers, rows, operations, memory), `site-started` (site, rows), `rows-added` (site, rows), `resumed` (site,
    /// rows), `moments-ready` (site), `layer-decomposed` (module, and the block of an expert or a group), `site-left-out` (site, modules, reason), `warning` (message), and
    /// last `finished` (report, as with --json) or `failed` (error). New events and fields may come within a schema_version.
    #[arg(long, value_name = "FILE", help_heading = "Running", hide_short_help = true)]
    pub(crate) events: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) saving: SavingArgs,

    /// Refuse a run in which the activations of a site cannot be used
    ///
    /// Activations cannot be used if there are no rows, if all rows are equal or zero, or if their squares are too small or too large
    /// for f32. Without --strict the run warns of such sites, leaves their layers out, and lists them at the end and in the report.
    #[arg(long, help_heading = "Running", hide_short_help = true)]
    pub(crate) strict: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct InputArgs {
    /// Fine-tuning activations: .safetensors and .npy files, or folders
    ///
    /// Required by methods that use activations, unless --moments is given. Methods that use only weights take only the names of the
    /// layers from them; with --target they need no activations.
    #[arg(short, long, value_name = "PATH", num_args = 1..)]
    pub(crate) activations: Vec<PathBuf>,

    /// Files of `cntlora moments`, or a folder, instead of activations
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "activations")]
    pub(crate) moments: Vec<PathBuf>,

    /// Pre-training activations of the same sites
    ///
    /// Without them, cntlora assumes that pre-training activations are isotropic. sc-lora needs them beside fine-tuning activations, and
    /// lora-null in their place. Other methods do not use them.
    #[arg(long, value_name = "PATH", num_args = 1.., hide_short_help = true)]
    pub(crate) source: Vec<PathBuf>,

    /// Files of `cntlora moments`, or a folder, instead of pre-training activations
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "source", hide_short_help = true)]
    pub(crate) source_moments: Vec<PathBuf>,

    /// Replacement in module names that gives the checkpoint names; repeatable
    #[arg(long, value_name = "REGEX=TEXT", hide_short_help = true)]
    pub(crate) rename: Vec<Rename>,

    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
}

/// The arguments of all commands that read activations.
#[derive(Debug, Args)]
pub(crate) struct ReadingArgs {
    /// How files are read
    #[arg(long, value_name = "HOW", value_parser = words::access(), default_value = "auto", hide_short_help = true)]
    pub(crate) io: Access,

    /// Treatment of rows that hold NaN or infinity
    #[arg(long, value_name = "WHAT", value_parser = words::nonfinite(), default_value = "refuse", hide_short_help = true)]
    pub(crate) nonfinite: Nonfinite,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub(crate) struct LayerArgs {
    /// Names of modules, or their last parts, separated by commas; repeatable
    ///
    /// Works like target_modules of PEFT. Without it, or with `all-linear`, every module that an activation site names gets an adapter.
    /// Required without activations.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    pub(crate) target: Vec<String>,

    /// Only modules whose name matches; repeatable
    #[arg(long, value_name = "REGEX", hide_short_help = true)]
    pub(crate) include: Vec<String>,

    /// No modules whose name matches; repeatable
    #[arg(long, value_name = "REGEX")]
    pub(crate) exclude: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Method")]
pub(crate) struct MethodArgs {
    /// How the adapter is initialized
    #[arg(long, value_name = "METHOD", value_parser = words::method(), default_value = "cntlora", hide_short_help = true)]
    pub(crate) method: Method,

    /// cntlora: relation between fine-tuning and pre-training activations [default: uncorrelated]
    #[arg(long, value_name = "HOW", value_parser = words::coupling(), hide_short_help = true)]
    pub(crate) coupling: Option<Coupling>,

    /// cntlora: weight of keeping outputs for pre-training inputs [default: 0]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true, hide_short_help = true)]
    pub(crate) preserve: Option<f64>,

    /// cntlora, corda: damping, relative to the mean square of a channel, above 0 and at most 1 [default: 0.01]
    #[arg(long, value_name = "RHO", allow_negative_numbers = true, hide_short_help = true)]
    pub(crate) ridge: Option<f64>,

    /// cntlora: mean square of a channel that --ridge and an isotropic source refer to [default: median]
    #[arg(long, value_name = "WHICH", value_parser = words::channel_scale(), hide_short_help = true)]
    pub(crate) channel_scale: Option<ChannelScale>,

    /// cntlora: correction of covariances that come from few rows [default: none]
    #[arg(long, value_name = "HOW", value_parser = words::shrinkage(), hide_short_help = true)]
    pub(crate) shrinkage: Option<Shrinkage>,

    /// sc-lora: weight of the pre-training activations against the fine-tuning ones, from 0 to 1 [default: 0.5]
    ///
    /// With 0 the adapter takes the largest outputs of the fine-tuning activations, with 1 the smallest outputs of the pre-training ones.
    /// The authors of SC-LoRA choose it by task.
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true, hide_short_help = true)]
    pub(crate) beta: Option<f64>,

    /// cntlora: norm in which the update is cut to low rank [default: activations]
    #[arg(long, value_name = "NORM", value_parser = words::norm(), hide_short_help = true)]
    pub(crate) norm: Option<Norm>,

    /// --start update: how far the update may move the hidden states, as a share [default: 0.05]
    ///
    /// The share is in root mean square over the recorded rows. Each layer's output may move by at most this share divided by the square
    /// root of the number of adapted layers that follow one another; layers that read the same input count once. The bound of a layer is
    /// exact on the recorded rows. The shift of the whole model is an estimate for independent shifts, not a bound.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, hide_short_help = true)]
    pub(crate) max_shift: Option<f64>,

    /// --start update: factor of the update, in place of --max-shift
    #[arg(
        long,
        value_name = "ETA",
        conflicts_with = "max_shift",
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    pub(crate) strength: Option<f64>,

    /// The model before the first training step [default: by method]
    ///
    /// The default is zero for cntlora, mica, eva, lora, gaussian and orthogonal, and residual for the others.
    #[arg(long, value_name = "WHAT", value_parser = words::start())]
    pub(crate) start: Option<Start>,

    /// Seed of the randomized decompositions and of random factors
    #[arg(long, value_name = "N", default_value_t = 0, hide_short_help = true)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Ranks")]
pub(crate) struct RankArgs {
    /// Rank of every layer; even for a mirrored start
    #[arg(long, value_name = "R", default_value_t = 16)]
    pub(crate) rank: usize,

    /// Smallest rank of each layer that keeps this share of the update's energy
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["rank", "budget"], allow_negative_numbers = true, hide_short_help = true)]
    pub(crate) energy: Option<f64>,

    /// Number of parameters in all, given to the layers where they keep most of the update
    ///
    /// Without a value, as many as --rank would give to all layers.
    #[arg(long, value_name = "PARAMETERS", num_args = 0..=1, require_equals = true)]
    pub(crate) budget: Option<Option<u64>>,

    /// astra, eva: largest rank of a layer, as a multiple of --rank [default: 2]
    #[arg(long, value_name = "RHO", allow_negative_numbers = true, hide_short_help = true)]
    pub(crate) rho: Option<f64>,

    /// Smallest rank of a layer
    #[arg(long, value_name = "R", default_value_t = 0, hide_short_help = true)]
    pub(crate) min_rank: usize,

    /// Largest rank of a layer [default: --rank; 128 with --energy; four times --rank with --budget]
    #[arg(long, value_name = "R", hide_short_help = true)]
    pub(crate) max_rank: Option<usize>,

    /// Ranks are multiples of this number; for a mirrored start they are also even
    #[arg(long, value_name = "N", default_value_t = 1, hide_short_help = true)]
    pub(crate) rank_multiple: usize,

    /// Factor of every adapter product: lora_alpha is this factor times the rank
    #[arg(
        long,
        value_name = "S",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    pub(crate) scale: f64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    #[command(flatten)]
    pub(crate) writing: WritingArgs,

    /// --start residual: where the update is taken out [default: checkpoint]
    #[arg(long = "residual", value_name = "WHERE", value_parser = words::anchored(), hide_short_help = true)]
    pub(crate) anchored: Option<bool>,

    /// --residual checkpoint: folder to write the changed base to [default: DIR/base]
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) base_out: Option<PathBuf>,

    /// --residual checkpoint: number format of the changed weights [default: model]
    #[arg(long = "base-dtype", value_name = "FORMAT", value_parser = words::base_format(), hide_short_help = true)]
    pub(crate) base_format: Option<BaseFormat>,

    #[command(flatten)]
    pub(crate) loading: LoadingArgs,

    /// Replacement in the names of modules in the adapter; repeatable
    ///
    /// For recordings whose names PEFT would not find in the model. The replaced names hold everywhere, also for --target, --exclude and
    /// --rename. Parts of known wrappers, such as `_orig_mod.` and `module.`, are removed before, without this option.
    #[arg(long, value_name = "REGEX=TEXT", hide_short_help = true)]
    pub(crate) adapter_name_rename: Vec<Rename>,

    /// Write a page about the run, as one self-contained HTML file
    ///
    /// With --shard, give it to `cntlora merge` instead.
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,

    /// Replace an existing adapter, base or page
    #[arg(long)]
    pub(crate) force: bool,
}

/// The facts about the model for the loaders of PEFT.
#[derive(Debug, Args)]
pub(crate) struct LoadingArgs {
    /// Modules that are trained whole, such as a new head, separated by commas; repeatable
    ///
    /// Works like modules_to_save of PEFT. These modules get no factors. The adapter holds their tensors as the checkpoint has them, because PEFT
    /// loads them from there.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new(), hide_short_help = true)]
    pub(crate) modules_to_save: Vec<String>,

    /// Task of the model, which `AutoPeftModelFor…` classes and PEFT read
    ///
    /// For SEQ_CLS, TOKEN_CLS and QUESTION_ANS, PEFT trains the head whole, and so the adapter holds it as with --modules-to-save. Without a task,
    /// the adapter names the class of the model, and `AutoPeftModel` loads it.
    #[arg(long, value_name = "TASK", value_parser = words::task(), hide_short_help = true)]
    pub(crate) task_type: Option<String>,

    /// Name of the base in the adapter, such as one on the Hub, in place of its path
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new(), hide_short_help = true)]
    pub(crate) base_name: Option<String>,
}

/// How an adapter is written.
#[derive(Debug, Args)]
pub(crate) struct WritingArgs {
    /// Number format of the factors
    #[arg(long, value_name = "FORMAT", value_parser = words::element(), default_value = "f32", hide_short_help = true)]
    pub(crate) dtype: Element,

    /// Format of the adapter
    #[arg(long, value_name = "FORMAT", value_parser = words::format(), default_value = "peft", hide_short_help = true)]
    pub(crate) format: Format,

    /// --format diffusers or kohya: the part of the pipeline that the model is [default: unet; of convert: as in the adapter]
    #[arg(long, value_name = "PART", value_parser = words::component(), hide_short_help = true)]
    pub(crate) component: Option<Component>,

    /// Pad all factors with zeros to one rank; without a value, the largest rank of a layer
    ///
    /// The products stay the same. For programs that take one rank and one scale for all layers, such as llama.cpp and mlx-lm. Training does
    /// not change the zeros, so each layer keeps its own rank.
    #[arg(long, value_name = "R", num_args = 0..=1, require_equals = true, hide_short_help = true)]
    pub(crate) uniform_rank: Option<Option<NonZeroUsize>>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Running")]
pub(crate) struct RunArgs {
    /// Number of threads [default: all]
    ///
    /// More threads than processors slow each other down. At most four for each processor are used.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Largest memory to use, such as 2GiB or 500MB [default: no limit]
    ///
    /// With less memory the run works on fewer sites at the same time. If that is not enough, the run is refused with the size that it
    /// needs. Limits of the system (ulimit -v and -d, control groups) have the same effect. With a limit, several sites wider than 2048
    /// are processed at the same time, one for every four threads, as many as fit; without a limit, one after the other.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(crate) max_memory: Option<u64>,

    /// Arithmetic of the activation statistics
    #[arg(long, value_name = "WHAT", value_parser = words::precision(), default_value = "f32", hide_short_help = true)]
    pub(crate) precision: Precision,
}

/// A number of bytes that is not zero.
fn bytes(text: &str) -> Result<u64, String> {
    let size = text.parse().ok().filter(|ByteSize(bytes)| (1..u64::MAX).contains(bytes));
    size.map(|ByteSize(bytes)| bytes)
        .ok_or_else(|| "expected a number of bytes such as 2GiB, 500MB or 1000000".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        for (text, size) in [
            ("1000000", 1_000_000),
            ("2GiB", 2 << 30),
            ("2Gi", 2 << 30),
            ("1.5GB", 1_500_000_000),
            ("500M", 500_000_000),
            ("3k", 3000),
            ("64KiB", 65536),
        ] {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "GiB", "-1", "1e9", "0", "0.1", "1.2.3G", "99999999T", "∞"] {
            let refusal = bytes(text).unwrap_err();
            expect!["expected a number of bytes such as 2GiB, 500MB or 1000000"].assert_eq(&refusal);
        }
    }
}
