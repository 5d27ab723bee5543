//! The main job: plan, run, write, and say what happened.

use super::args::InitArgs;
use super::command_line::command_line;
use super::effects;
use super::events::{Events, is_stdout};
use super::interrupt::Interruption;
use super::plan::summary;
use super::prepare::{prepare, refuse_occupied};
use super::progress::Progress;
use super::provenance::provenance;
use super::report::page_written;
use super::resolve;
use super::saved::{self, Outputs};
use super::terminal::Terminal;
use super::threads;
use cntlora::adapter::Format;
use cntlora::plan::{Inputs, Plan};
use cntlora::report::table::count;
use cntlora::report::{Report, UnusableSite, text};
use cntlora::run::{self, Event, Job, Observer, Outcome, Output, run_resumable};
use cntlora::storage::{Problems, quoted};
use std::fmt::Write as _;
use std::path::Path;

/// Computes an adapter; an interruption leaves nothing half-written.
pub fn run(args: &InitArgs, terminal: &Terminal) -> anyhow::Result<()> {
    execute(args, &command_line(std::env::args_os()), terminal, &Interruption::handle(terminal)?)
}

/// Computes an adapter. `command` is the command line, for the record.
pub fn execute(
    args: &InitArgs,
    command: &str,
    terminal: &Terminal,
    interruption: &Interruption,
) -> anyhow::Result<()> {
    let output = resolve::output(&args.out, &args.job);
    effects::check_streams(&args.job, terminal.json())?;
    let (plan, inputs) = prepare(Some(&output), &args.job)?;
    let events_path = args.job.run.events.as_deref();
    events_path.map_or(Ok(()), |path| Events::check(path, &inputs))?;
    threads::warn_of_many(&args.job.run, terminal);
    terminal.note(&summary(&plan));
    let sites: Vec<_> = plan.sites.iter().collect();
    let begin = || {
        if !args.job.output.force {
            refuse_occupied(&output)?;
        }
        Ok(events_path.map(Events::open).transpose()?)
    };
    let job = Job::of_run(&plan, &inputs);
    let (run, events) = saved::open(&Outputs::of(&output), &job, &args.job.progress, begin, terminal)?;
    if let Some(events) = &events {
        events.started(&plan, &sites);
    }
    let progress = Progress::of_sites(terminal, interruption, &plan, &sites);
    let watching = Watching { progress: &progress, events: events.as_ref() };
    let outcome = interruption.while_polled(|| run_resumable(&plan, &inputs, &watching, &run.partial));
    progress.finish();
    let written = outcome.and_then(|outcome| {
        run.partial.begin_writing(&output.all())?;
        write(outcome, command, &output, &plan, &inputs, terminal)
    });
    let result = saved::close(run, written, terminal);
    let told = events.map_or(Ok(()), |events| events.end(&result));
    let report = result?;
    told?;
    tell(&report, &output, !events_path.is_some_and(is_stdout), terminal)
}

/// Says what to do next, after printing the report if stdout is for it.
pub fn tell(report: &Report, output: &Output, print: bool, terminal: &Terminal) -> anyhow::Result<()> {
    if print {
        terminal.result(report, text::render)?;
    }
    warn_of_left_out(&report.unusable, terminal);
    terminal.note(&next_step(output, report.layers.iter().map(|layer| layer.rank).max().unwrap_or(0)));
    Ok(())
}

/// Names all sites together that were left out while the run went on.
pub fn warn_of_left_out(sites: &[UnusableSite], terminal: &Terminal) {
    if sites.is_empty() {
        return;
    }
    let modules: usize = sites.iter().map(|site| site.modules.len()).sum();
    let mut words = format!(
        "{} left out, because the activations cannot be used; {} without an adapter:",
        count(sites.len() as u64, "site"),
        count(modules as u64, "module"),
    );
    for UnusableSite { name, modules, reason, remedy } in sites {
        let _ = write!(words, "\n  {}; {}", text::left_out(name, modules, reason), remedy.escape_debug());
    }
    terminal.warning(&words);
}

/// Those who are told what happens.
pub struct Watching<'a> {
    pub progress: &'a Progress<'a>,
    pub events: Option<&'a Events>,
}

impl Observer for Watching<'_> {
    fn event(&self, event: Event<'_>) {
        if let Some(events) = self.events {
            events.event(event.clone());
        }
        self.progress.event(event);
    }

    fn stop_requested(&self) -> bool {
        self.progress.stop_requested()
    }
}

/// Writes what a run gave, and says what was left out. `command` is for the record.
pub fn write(
    mut outcome: Outcome,
    command: &str,
    output: &Output,
    plan: &Plan,
    inputs: &Inputs,
    terminal: &Terminal,
) -> Result<Report, Problems> {
    outcome.report.command = Some(command.into());
    let provenance = provenance(plan, inputs, &outcome.report);
    let left_out = run::write(&mut outcome, provenance, output, plan, inputs)?;
    if !left_out.is_empty() {
        let names: Vec<String> = left_out.iter().map(|name| quoted(name)).collect();
        terminal.warning(&format!("not copied to the changed base: {}", names.join(", ")));
    }
    if let Some(page) = &output.page {
        terminal.note(&page_written(page));
    }
    Ok(outcome.report)
}

fn as_given(path: &Path) -> String {
    path.display().to_string()
}

/// What a user types next.
fn next_step(output: &Output, largest_rank: usize) -> String {
    let model = match &output.base {
        Some(base) => format!("a model loaded from {}", quoted(&as_given(base))),
        None => "the model".into(),
    };
    if let Format::SingleFile(..) = output.format {
        return format!(
            "\nLoad it on {model}: for diffusers, pipe.load_lora_weights({})",
            quoted(&as_given(&output.folder))
        );
    }
    let anchor = match &output.anchor {
        Some(anchor) => format!(
            "    model.load_adapter({}, \"anchor\")\n    \
             model.base_model.set_adapter([\"default\", \"anchor\"])\n\n\
             Freeze the parameters with \".anchor.\" in their names, and train the others.\n",
            quoted(&as_given(anchor))
        ),
        None => String::new(),
    };
    format!(
        "\nTrain from it, on {model}:\n\n    from peft import PeftModel\n    \
         model = PeftModel.from_pretrained(model, {}, is_trainable=True)\n{anchor}\n\
         A server with a limit on ranks, such as vLLM's --max-lora-rank, has to allow {largest_rank}.",
        quoted(&as_given(&output.folder))
    )
}
