//! Turns parsed arguments into the task of a command, once. Nothing looks at the arguments after that.
//!
//! Options that contradict each other, or that would have no effect, are refused here. Ranges of numbers are checked by the plan. Opens
//! no file.

use super::args::{
    ConvertArgs, InitArgs, JobArgs, LoadingArgs, MethodArgs, MomentsArgs, PlanArgs, RankArgs, RunArgs,
    SavingArgs, WritingArgs,
};
use super::events::is_stdout;
use super::terminal::Terminal;
use super::{launcher, limits};
use crate::adapter::{Component, Format, Loading, UniformRank, anchor_of, default_base};
use crate::element::Element;
use crate::factors::{Start, Strength};
use crate::initializer::Initializer;
use crate::method::sc_lora::DEFAULT_BETA;
use crate::method::{Options, RankRule};
use crate::moments_file::ENDING;
use crate::plan::{MeasurementRequest, Nonfinite, Rename, Request, Selection, Shard};
use crate::rank::Policy;
use crate::run::{Output, Writing};
use crate::storage::{Problem, Problems, quoted};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

/// The job that `init` does and `plan` shows.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) writing: Writing,
    /// True to replace existing outputs.
    pub(crate) force: bool,
    /// Refused options. They are reported together with what the files show.
    pub(crate) refused: Problems,
}

impl Job {
    /// Keeps to the processors and the memory that the system leaves to this process.
    pub(crate) fn limit(&mut self, terminal: &Terminal) {
        (self.request.threads, self.request.room) = limits::of_run(self.request.threads, terminal);
    }
}

/// The task of `init`.
pub(crate) struct InitTask {
    pub(crate) job: Job,
    /// The adapter. With a shard, its folder is that of the parts.
    pub(crate) output: Output,
    /// The part to compute, if the job is divided.
    pub(crate) shard: Option<Shard>,
    /// File for events; `-` is stdout.
    pub(crate) events: Option<PathBuf>,
    pub(crate) saving: Saving,
    /// True to write nothing.
    pub(crate) dry_run: bool,
}

/// The task of `plan`.
pub(crate) struct PlanTask {
    pub(crate) job: Job,
    pub(crate) output: Option<Output>,
    /// Number of nodes to divide the job over.
    pub(crate) nodes: Option<u64>,
}

/// The task of `moments`.
pub(crate) struct MomentsTask {
    pub(crate) request: MeasurementRequest,
    /// The file to write.
    pub(crate) out: PathBuf,
    /// True to replace an existing file.
    pub(crate) force: bool,
    pub(crate) saving: Saving,
    /// True to write nothing.
    pub(crate) dry_run: bool,
}

/// The task of `convert`.
pub(crate) struct ConvertTask {
    pub(crate) adapter: PathBuf,
    /// The adapter that the training started from.
    pub(crate) init: Option<PathBuf>,
    /// Largest rank of a layer.
    pub(crate) rank: Option<usize>,
    /// Replacements in the names of modules.
    pub(crate) renames: Vec<Rename>,
    pub(crate) output: Output,
    /// The component that the user named.
    pub(crate) component: Option<Component>,
    /// The model whose modules resolve names.
    pub(crate) base: Option<PathBuf>,
    pub(crate) element: Element,
    /// True to replace an existing adapter.
    pub(crate) force: bool,
    /// Refused options. They are reported together with what the files show.
    pub(crate) refused: Problems,
    /// True to write nothing.
    pub(crate) dry_run: bool,
}

/// How progress is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Saving {
    /// Time between two savings.
    pub(crate) every: Duration,
    /// True to discard the progress of an earlier run.
    pub(crate) restart: bool,
}

/// Resolves the arguments of `init`. `json` tells whether the result goes to stdout as JSON.
///
/// # Errors
/// A usage problem if the launcher does not tell the part for `--shard auto`.
pub(crate) fn init(args: InitArgs, json: bool) -> Result<InitTask, Problem> {
    let InitArgs { job: mut args, out, shard, dry } = args;
    let shard = shard.map(launcher::shard).transpose()?;
    let (page, events) = (args.output.report.take(), args.events.take());
    let saving = saving(&args.saving);
    let mut job = job(args);
    if json && events.as_deref().is_some_and(is_stdout) {
        let problem = Problem::usage("--json and --events - both write to stdout");
        job.refused.push(problem.help("remove --json: the last event holds the report"));
    }
    if shard.is_some() && page.is_some() {
        let problem =
            Problem::usage("--report has no effect with --shard: the page is about all parts together");
        job.refused
            .push(problem.help("remove --report, and give it to the `cntlora merge` that joins the parts"));
    }
    let output = Output { page, ..output(&out, job.request.method.start, &job.writing) };
    Ok(InitTask { job, output, shard, events, saving, dry_run: dry.dry_run })
}

/// Resolves the arguments of `plan`.
pub(crate) fn plan(args: PlanArgs) -> PlanTask {
    let PlanArgs { job: mut args, nodes, out } = args;
    let page = args.output.report.take();
    let job = job(args);
    let output = out.map(|out| Output { page, ..output(&out, job.request.method.start, &job.writing) });
    PlanTask { job, output, nodes }
}

/// Resolves the arguments of `moments`.
///
/// # Errors
/// A usage problem if the launcher does not tell the part for `--shard auto`.
pub(crate) fn moments(args: MomentsArgs) -> Result<MomentsTask, Problem> {
    let shard = args.shard.map(launcher::shard).transpose()?;
    let out = match shard {
        None => args.out,
        Some(shard) => args.out.join(shard.file_name(ENDING)),
    };
    let request = MeasurementRequest {
        activations: args.activations,
        selection: Selection { targets: Vec::new(), include: args.include, exclude: args.exclude },
        nonfinite: args.reading.nonfinite,
        precision: args.run.precision,
        shard,
        access: args.reading.io,
        threads: threads(&args.run),
        max_memory: args.run.max_memory,
        room: None,
    };
    let (saving, dry_run) = (saving(&args.saving), args.dry.dry_run);
    Ok(MomentsTask { request, out, force: args.force, saving, dry_run })
}

/// Resolves the arguments of `convert`.
pub(crate) fn convert(args: ConvertArgs) -> ConvertTask {
    let ConvertArgs { adapter, init, rank, base, out, writing, adapter_name_rename: renames, force, dry } =
        args;
    let WritingArgs { format, component, .. } = writing;
    let output = Output { folder: out, format, uniform: uniform(&writing), ..Output::default() };
    let (rank, element, dry_run) = (rank.map(usize::from), writing.dtype, dry.dry_run);
    let refused = Problems::default();
    ConvertTask { adapter, init, rank, renames, output, component, base, element, force, refused, dry_run }
}

fn job(args: JobArgs) -> Job {
    let mut refused = Problems::default();
    refuse_without_effect(&args, &mut refused);
    let loading = loading(&args, &mut refused);
    let writing = Writing {
        format: format(&args.output.writing, &mut refused),
        base: args.output.base_out,
        anchored: args.output.anchored == Some(true),
        base_format: args.output.base_format.unwrap_or_default(),
        uniform: uniform(&args.output.writing),
        loading,
    };
    let (inputs, mut layers) = (args.inputs, args.layers);
    layers.exclude.extend(whole_modules(&writing.loading));
    let request = Request {
        model: args.model,
        activations: inputs.activations,
        moments: inputs.moments,
        source: inputs.source,
        source_moments: inputs.source_moments,
        selection: Selection { targets: layers.target, include: layers.include, exclude: layers.exclude },
        renames: inputs.rename,
        adapter_renames: args.output.adapter_name_rename,
        method: options(&args.method, &args.ranks),
        nonfinite: inputs.reading.nonfinite,
        precision: args.run.precision,
        element: args.output.writing.dtype,
        access: inputs.reading.io,
        threads: threads(&args.run),
        max_memory: args.run.max_memory,
        room: None,
        strict: args.strict,
    };
    Job { request, writing, force: args.output.force, refused }
}

fn options(args: &MethodArgs, ranks: &RankArgs) -> Options {
    let defaults = Options::default();
    let policy = match (ranks.energy, ranks.budget) {
        (Some(share), _) => Some(Policy::Energy(share)),
        (None, Some(Some(parameters))) => Some(Policy::Budget(parameters)),
        (None, Some(None)) => Some(Policy::BudgetOfRank(ranks.rank)),
        (None, None) => None,
    };
    // Halves are rounded to the even number, as in PEFT.
    let by_rho = ranks.rho.map(|rho| (ranks.rank as f64 * rho).round_ties_even() as usize);
    let mut builder = Initializer::builder()
        .method(args.method)
        .rank(ranks.rank)
        .min_rank(ranks.min_rank)
        .rank_multiple(ranks.rank_multiple)
        .scale(ranks.scale)
        .seed(args.seed)
        .start(start(args));
    if let Some(policy) = policy {
        builder = builder.ranks(policy);
    }
    if let Some(rank) = ranks.max_rank.or(by_rho) {
        builder = builder.max_rank(rank);
    }
    Options {
        coupling: args.coupling.unwrap_or(defaults.coupling),
        preserve: args.preserve.unwrap_or(defaults.preserve),
        ridge: args.ridge.unwrap_or(defaults.ridge),
        channel_scale: args.channel_scale.unwrap_or(defaults.channel_scale),
        shrinkage: args.shrinkage.unwrap_or(defaults.shrinkage),
        beta: args.method.has_beta().then(|| args.beta.unwrap_or(DEFAULT_BETA)),
        norm: args.norm.unwrap_or(defaults.norm),
        strength: match (args.strength, args.max_shift) {
            (Some(strength), _) => Strength::Fixed(strength),
            (None, Some(share)) => Strength::MaxShift(share),
            (None, None) => defaults.strength,
        },
        ..builder.options()
    }
}

/// The given start, or the usual one of the method.
fn start(args: &MethodArgs) -> Start {
    args.start.unwrap_or_else(|| args.method.starts()[0])
}

/// Where an adapter without a page goes.
pub(crate) fn output(folder: &Path, start: Start, writing: &Writing) -> Output {
    let is_residual = start == Start::Residual;
    let base = || writing.base.clone().unwrap_or_else(|| default_base(folder));
    Output {
        folder: folder.into(),
        base: (is_residual && !writing.anchored).then(base),
        base_format: writing.base_format,
        anchor: (is_residual && writing.anchored).then(|| anchor_of(folder)),
        format: writing.format,
        page: None,
        uniform: writing.uniform,
        loading: writing.loading.clone(),
    }
}

fn uniform(args: &WritingArgs) -> Option<UniformRank> {
    let rank = args.uniform_rank?;
    Some(rank.map_or(UniformRank::Largest, |rank| UniformRank::Of(rank.get())))
}

/// The facts about the model for loaders. Refuses what the format or the start does not allow.
fn loading(job: &JobArgs, refused: &mut Problems) -> Loading {
    let LoadingArgs { modules_to_save, task_type, base_name } = &job.output.loading;
    let loading = Loading {
        base_name: base_name.clone(),
        task: task_type.clone(),
        modules_to_save: modules_to_save.iter().cloned().collect(),
        auto_mapping: None,
        keeps_up: job.method.method.keeps_up(),
    };
    let format = job.output.writing.format;
    let (is_peft, has_base) = (format == Format::Peft, matches!(format, Format::Peft | Format::Mlx));
    for (option, given, has_effect) in [
        ("--modules-to-save", !modules_to_save.is_empty(), is_peft),
        ("--task-type", task_type.is_some(), is_peft),
        ("--base-name", base_name.is_some(), has_base),
    ] {
        if given && !has_effect {
            let what = format!(
                "{option} has no effect with this --format: only adapters of PEFT have a place for it"
            );
            refused.push(Problem::usage(what).help(format!("remove {option}")));
        }
    }
    if loading.keeps_up && !is_peft {
        let what = format!(
            "--method {} keeps B as it is during training, and of all formats only that of PEFT has a place for it",
            job.method.method.name()
        );
        refused.push(Problem::usage(what).help("remove --format"));
    }
    if loading.keeps_up && job.output.writing.uniform_rank.is_some() {
        let what = format!(
            "--uniform-rank has no use with --method {}: training keeps B, so that units with zeros in B would do nothing",
            job.method.method.name()
        );
        refused.push(Problem::usage(what).help("remove --uniform-rank"));
    }
    let is_residual = start(&job.method) == Start::Residual;
    let is_anchored = job.output.anchored == Some(true);
    if base_name.is_some() && is_residual && !is_anchored {
        let what = "--base-name would name another base: this adapter works only with the changed base that is written with it";
        refused.push(Problem::usage(what).help("remove --base-name, or give --residual anchor"));
    }
    if loading.saves_modules() && is_residual && is_anchored {
        let what = "PEFT cannot use an adapter and its anchor together with modules that are trained whole";
        let help = "give --residual checkpoint, or remove --modules-to-save and --task-type";
        refused.push(Problem::usage(what).help(help));
    }
    if format == Format::Mlx && is_residual && is_anchored {
        let problem = Problem::usage("mlx-lm loads one adapter, and an adapter with an anchor needs both");
        refused.push(problem.help("give --residual checkpoint, or another --start"));
    }
    let heads = loading.heads_of_task().iter().map(|&head| (head, "--task-type"));
    let saved = modules_to_save.iter().map(|name| (name.as_str(), "--modules-to-save"));
    for (name, option) in
        saved.chain(heads).filter(|(name, _)| job.layers.target.iter().any(|target| target == name))
    {
        let what = format!("{} is in --target, but {option} trains it whole", quoted(name));
        refused.push(Problem::usage(what).help("remove one of the two"));
    }
    loading
}

/// Expressions for the modules that are trained whole, and the modules in them. As in PEFT, a name is the end of a module's name, without
/// regard to dots.
fn whole_modules(loading: &Loading) -> impl Iterator<Item = String> {
    let names =
        loading.modules_to_save.iter().map(String::as_str).chain(loading.heads_of_task().iter().copied());
    let names: Vec<String> = names.map(|name| format!(r"{}(?:\.|$)", regex::escape(name))).collect();
    names.into_iter()
}

fn format(args: &WritingArgs, refused: &mut Problems) -> Format {
    match (args.format, args.component) {
        (Format::SingleFile(format, _), component) => {
            Format::SingleFile(format, component.unwrap_or(Component::Unet))
        }
        (format @ (Format::Peft | Format::Mlx), component) => {
            if component.is_some() {
                let name = if format == Format::Peft { "peft" } else { "mlx" };
                let problem = Problem::usage(format!("--component has no effect with --format {name}"));
                refused.push(problem.help("remove --component, or give --format diffusers or kohya"));
            }
            format
        }
    }
}

/// The given number of threads, or the number that the machine allows this process.
fn threads(args: &RunArgs) -> usize {
    args.threads.or_else(|| available_parallelism().ok()).map_or(1, NonZeroUsize::get)
}

fn saving(args: &SavingArgs) -> Saving {
    Saving { every: Duration::from_secs(args.checkpoint_every), restart: args.restart }
}

/// Refuses options that contradict each other, or that would have no effect.
fn refuse_without_effect(job: &JobArgs, refused: &mut Problems) {
    let (args, output) = (&job.method, &job.output);
    let (method, start) = (args.method, start(args));
    for (option, given, needed) in [
        ("--base-out", output.base_out.is_some(), Start::Residual),
        ("--base-dtype", output.base_format.is_some(), Start::Residual),
        ("--residual", output.anchored.is_some(), Start::Residual),
        ("--strength", args.strength.is_some(), Start::Update),
        ("--max-shift", args.max_shift.is_some(), Start::Update),
    ] {
        if given && start != needed {
            let what = format!(
                "{option} has no effect with --start {}: it needs --start {}",
                start.name(),
                needed.name()
            );
            let help = match method.starts().contains(&needed) {
                true => format!("remove {option}, or give --start {}", needed.name()),
                false => format!("remove {option}; --method {} does not have this start", method.name()),
            };
            refused.push(Problem::usage(what).help(help));
        }
    }
    let has_constraints = method.has_constraints();
    let shares_ranks = matches!(method.rank_rule(), RankRule::Shared | RankRule::Proportional);
    for (option, given, has_effect) in [
        ("--coupling", args.coupling.is_some(), has_constraints),
        ("--preserve", args.preserve.is_some(), has_constraints),
        ("--norm", args.norm.is_some(), has_constraints),
        ("--beta", args.beta.is_some(), method.has_beta()),
        ("--ridge", args.ridge.is_some(), method.has_ridge()),
        ("--channel-scale", args.channel_scale.is_some(), has_constraints),
        ("--shrinkage", args.shrinkage.is_some(), has_constraints),
        ("--rho", job.ranks.rho.is_some(), shares_ranks),
        ("--max-rank", job.ranks.max_rank.is_some(), !shares_ranks),
    ] {
        if given && !has_effect {
            let what = format!("{option} has no effect with --method {}", method.name());
            refused.push(Problem::usage(what).help(format!("remove {option}")));
        }
    }
    for (option, given) in
        [("--base-out", output.base_out.is_some()), ("--base-dtype", output.base_format.is_some())]
    {
        if given && output.anchored == Some(true) {
            let what =
                format!("{option} has no effect with --residual anchor, which keeps the base as it is");
            refused
                .push(Problem::usage(what).help(format!("remove {option}, or give --residual checkpoint")));
        }
    }
    let inputs = &job.inputs;
    let reads_rows = inputs.moments.is_empty() || !inputs.source.is_empty();
    if inputs.reading.nonfinite == Nonfinite::SkipRows && !reads_rows {
        let problem = Problem::usage("--nonfinite has no effect with --moments: no rows are read");
        refused.push(problem.help("give --nonfinite to the `cntlora moments` that measures the moments"));
    }
    if let Some(rho) = job.ranks.rho.filter(|rho| !(*rho >= 1.0 && rho.is_finite())) {
        let problem = Problem::usage(format!("--rho is {rho}, but must be at least 1"));
        refused.push(problem.help("with --rho 1 every layer gets --rank"));
    }
}

#[cfg(test)]
mod tests;
