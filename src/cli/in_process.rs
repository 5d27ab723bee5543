//! An adapter for a model in memory: the engine of `init`, inside the program that trains it.

use super::args::{Cli, Command};
use super::prepare::{check_layers, check_output};
use super::provenance::provenance;
use super::resolve::{self, InitTask};
use crate::factors::Start;
use crate::moments_file::{Collected, MomentsSet};
use crate::plan::{self, Inputs, Plan, Recording};
use crate::report::Report;
use crate::run::{self, Observer, Output, run};
use crate::storage::{Access, Checkpoint, Problem, Problems, Source};
use clap::parser::ValueSource;
use clap::{Arg, CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The moments of one kind of activations.
pub enum MomentsInput {
    /// In memory.
    Collected(Arc<Collected>),
    /// Moments files, or folders of them.
    Files(Vec<PathBuf>),
}

/// The inputs of a run inside another program.
pub struct Loaded {
    /// The weights, in the form of a safetensors file. Its path takes the place of the model in the record of the adapter.
    pub weights: Source,
    /// The `config.json` of the model, if there is one.
    pub config: Option<String>,
    /// Moments of fine-tuning activations.
    pub target: Option<MomentsInput>,
    /// Moments of pre-training activations.
    pub source: Option<MomentsInput>,
}

/// Options that have no effect here, and the next step.
const WITHOUT_EFFECT: [(&str, &str); 26] = [
    ("activations", RECORDED),
    ("source", RECORDED),
    ("moments", RECORDED),
    ("source_moments", RECORDED),
    ("nonfinite", "give it where the inputs of the layers are recorded"),
    ("io", NO_FILES),
    ("checkpoint_every", NO_FILES),
    ("restart", NO_FILES),
    ("format", IN_PLACE),
    ("component", IN_PLACE),
    ("anchored", IN_PLACE),
    ("base_out", IN_PLACE),
    ("base_format", IN_PLACE),
    ("adapter_name_rename", IN_PLACE),
    ("uniform_rank", CONFIGURED),
    ("modules_to_save", CONFIGURED),
    ("task_type", CONFIGURED),
    ("base_name", CONFIGURED),
    ("shard", "run `cntlora init --shard` on files to divide the work"),
    ("dry_run", "give the same options to `cntlora plan` and the files of the model"),
    ("events", PROGRESS),
    ("progress", PROGRESS),
    ("json", "the report is returned"),
    ("verbose", MESSAGES),
    ("quiet", MESSAGES),
    ("color", MESSAGES),
];
const RECORDED: &str = "give the recorded statistics, or their files";
const NO_FILES: &str = "the inputs are in memory";
const IN_PLACE: &str = "the factors go to the model in memory";
const CONFIGURED: &str = "the model keeps its LoraConfig";
const PROGRESS: &str = "give a function that shows the progress";
const MESSAGES: &str = "the program shows the warnings";

/// Computes an adapter, and writes it to a folder. `options` are the options of `init` in the words of its command line.
///
/// `planned` is called before the computation. No progress is saved. A residual start leaves the weights as they are: the caller
/// subtracts the update.
///
/// # Errors
/// Problems of the options, the inputs and the computation, as in `cntlora init`.
pub fn initialize(
    options: &[String],
    loaded: Loaded,
    out: &Path,
    planned: &dyn Fn(&Plan),
    observer: &dyn Observer,
) -> Result<Report, Problems> {
    let mut task = task_of(options, loaded.weights.path(), out)?;
    let mut problems = std::mem::take(&mut task.job.refused);
    let request = &mut task.job.request;
    let method = request.method.method;
    let (reads, only_source) = (method.reads_activations(), method.reads_only_source());
    let target = open(loaded.target, !reads, &mut request.moments, &mut problems);
    let source = open(loaded.source, !reads, &mut request.source_moments, &mut problems);
    if reads && !only_source && request.moments.is_empty() {
        let problem = Problem::usage(format!("the method {} needs the inputs of the layers", method.name()));
        problems.push(problem.help(RECORDED));
    }
    let checkpoint = problems.collect(Checkpoint::in_memory(loaded.weights, loaded.config.as_deref()));
    // The changed base is in memory. The limits of its files are also those of its weights.
    let output = Output { base: None, anchor: None, page: task.output.page.take(), ..task.output };
    problems.collect(check_output(&output, request, task.job.force));
    let Some(checkpoint) = checkpoint.filter(|_| problems.0.is_empty()) else { return Err(problems) };
    let (plan, inputs) = plan::plan_opened(request, Inputs { checkpoint, target, source })?;
    let base = (request.method.start == Start::Residual).then(|| out.to_owned());
    let output = Output { base, ..output };
    check_layers(&output, &plan, &inputs, &mut problems);
    problems.or_ok(())?;
    let output = Output { base: None, ..output };
    planned(&plan);
    let mut outcome = run(&plan, &inputs, observer)?;
    let record = provenance(&plan, &inputs, &outcome.report)?;
    run::write(&mut outcome, record, &output, &plan, &inputs)?;
    Ok(outcome.report)
}

/// Opens moments. With `all`, also sites without rows count. The plan looks at `paths` to see that there are moments.
fn open(
    input: Option<MomentsInput>,
    all: bool,
    paths: &mut Vec<PathBuf>,
    problems: &mut Problems,
) -> Option<Recording> {
    let set = match input? {
        MomentsInput::Collected(collected) => {
            *paths = vec![Collected::NAME.into()];
            MomentsSet::in_memory(collected, all)
        }
        MomentsInput::Files(files) => {
            let set = MomentsSet::open(&files, Access::Auto);
            *paths = files;
            set
        }
    };
    problems.collect(set).map(Recording::Moments)
}

/// The task that the options describe.
fn task_of(options: &[String], model: &Path, out: &Path) -> Result<InitTask, Problems> {
    let mut words: Vec<OsString> = vec!["cntlora".into(), "init".into(), model.into()];
    words.extend(options.iter().map(Into::into));
    words.extend(["--out".into(), out.into()]);
    let command = Cli::command();
    let matches = command.clone().try_get_matches_from(words).map_err(|error| refused_words(&error))?;
    let mut problems = Problems::default();
    let init = matches.subcommand_matches("init");
    let arguments = command.find_subcommand("init").into_iter().chain([&command]);
    let arguments: Vec<&Arg> = arguments.flat_map(clap::Command::get_arguments).collect();
    for (id, help) in WITHOUT_EFFECT {
        let is_given = init.and_then(|init| init.value_source(id)) == Some(ValueSource::CommandLine);
        let long =
            arguments.iter().find(|argument| argument.get_id() == id).and_then(|found| found.get_long());
        if is_given {
            let what = format!("--{} has no effect inside a program", long.unwrap_or(id));
            problems.push(Problem::usage(what).help(help));
        }
    }
    problems.or_ok(())?;
    match Cli::from_arg_matches(&matches).map_err(|error| refused_words(&error))?.command {
        Command::Init(args) => Ok(resolve::init(*args, false)?),
        other => unreachable!("the words begin with init, not {other:?}"),
    }
}

/// The problem of words that the command line does not have. Its help is the tip of the command line.
fn refused_words(error: &clap::Error) -> Problem {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let mut paragraphs = text.split("\n\n").map(str::trim);
    let what = paragraphs.next().unwrap_or_default();
    let tip = paragraphs.find_map(|paragraph| paragraph.strip_prefix("tip: "));
    let problem = Problem::usage(what.lines().map(str::trim).collect::<Vec<_>>().join(" "));
    match tip {
        Some(tip) => problem.help(tip.lines().next().unwrap_or_default()),
        None => problem,
    }
}
