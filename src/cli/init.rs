//! The main job: plan, run, write, and say what happened.

use super::args::InitArgs;
use super::command_line::command_line;
use super::events::{Events, is_stdout};
use super::interrupt::Interruption;
use super::plan::summary;
use super::prepare::{create_parent, prepare, refuse_occupied};
use super::progress::Progress;
use super::provenance::provenance;
use super::report::write_page;
use super::resolve::{self, Output, default_base};
use super::saved;
use super::terminal::Terminal;
use super::threads;
use cntlora::adapter::{
    AdaptedWeight, Adapter, Format, other_modules, remove_anchor, remove_residual_base, retire,
    stage_residual_base, write_adapter,
};
use cntlora::plan::{Inputs, Plan, PlannedLayer};
use cntlora::report::{REPORT_FILE, Report, text};
use cntlora::run::{Event, Job, Observer, Outcome, PartialRun, run_resumable};
use cntlora::storage::{Problem, Problems, quoted};
use std::path::Path;

/// Computes an adapter; an interruption leaves nothing half-written.
pub fn run(args: &InitArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let output = resolve::output(&args.out, &args.job);
    let mut outputs: Vec<_> = output.folders().into_iter().map(Path::to_path_buf).collect();
    outputs.push(PartialRun::folder_of(&output.folder));
    execute(args, &command_line(std::env::args_os()), terminal, &Interruption::handle(outputs, terminal)?)
}

/// Computes an adapter. `command` is the command line, for the record.
pub fn execute(
    args: &InitArgs,
    command: &str,
    terminal: &Terminal,
    interruption: &Interruption,
) -> anyhow::Result<()> {
    let output = resolve::output(&args.out, &args.job);
    resolve::check_streams(&args.job, terminal.json())?;
    let (plan, inputs) = prepare(Some(&output), &args.job)?;
    threads::warn_of_many(&args.job.run, terminal);
    terminal.note(&summary(&plan));
    let sites: Vec<_> = plan.sites.iter().collect();
    let events_path = args.job.run.events.as_deref();
    let events = events_path.map(Events::open).transpose()?;
    if let Some(events) = &events {
        events.started(&plan, &sites);
    }
    let progress = Progress::of_sites(terminal, interruption, &plan, &sites);
    let check = || if output.force { Ok(()) } else { refuse_occupied(&output) };
    let job = Job::of_run(&plan, &inputs);
    let partial = saved::open(&output.folder, &job, &args.job.progress, check, terminal)?;
    let watching = Watching { progress: &progress, events: events.as_ref() };
    let outcome = interruption.while_polled(|| run_resumable(&plan, &inputs, &watching, &partial));
    progress.finish();
    let written = outcome.and_then(|outcome| {
        partial.begin_writing()?;
        write(outcome, command, &output, &plan, &inputs, terminal)
    });
    let result = saved::close(partial, written);
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
    terminal.note(&next_step(output, report.layers.iter().map(|layer| layer.rank).max().unwrap_or(0)));
    Ok(())
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

/// Writes the changed base, if there is one, the adapter, whose presence says that all is there, and the page. `command` is for the
/// record.
pub fn write(
    outcome: Outcome,
    command: &str,
    output: &Output,
    plan: &Plan,
    inputs: &Inputs,
    terminal: &Terminal,
) -> Result<Report, Problems> {
    let Outcome { mut adapter, mut report } = outcome;
    report.command = Some(command.into());
    if adapter.layers.is_empty() {
        return Err(Problem::data("every layer got rank 0, so there is no adapter to write")
            .help("raise --min-rank, --energy or --budget")
            .into());
    }
    adapter.base = as_given(&plan.model);
    create_parent(&output.folder)?;
    if let Some(base) = &output.base {
        create_parent(base)?;
        let weights = adapted_weights(&adapter, plan);
        let staged = stage_residual_base(base, &inputs.checkpoint, &weights, adapter.scale, plan.element)?;
        // On the new base, an old adapter would mean something else.
        retire(&output.folder)?;
        let left_out = staged.commit()?;
        if !left_out.is_empty() {
            let names: Vec<String> = left_out.iter().map(|name| quoted(name)).collect();
            terminal.warning(&format!("not copied to the changed base: {}", names.join(", ")));
        }
        adapter.base = as_given(base);
    }
    if let Some(anchor) = &output.anchor {
        create_parent(anchor)?;
    }
    let tensors = plan.layers().flat_map(|layer| &layer.weight).map(|piece| piece.tensor.as_str()).collect();
    let others = other_modules(&inputs.checkpoint, &tensors);
    let default_base = default_base(&output.folder);
    if output.base.as_ref() != Some(&default_base) {
        // The base of an adapter that is replaced goes with it.
        retire(&output.folder)?;
        remove_residual_base(&default_base)?;
    }
    if output.anchor.is_none() {
        remove_anchor(&resolve::anchor(&output.folder))?;
    }
    let mut provenance = provenance(plan, inputs, &report);
    if output.anchor.is_some() {
        provenance.insert("residual".into(), "anchor".into());
    }
    // Numbers and words of our own always become JSON.
    let json = serde_json::to_vec_pretty(&report).map_err(|error| Problem::data(error.to_string()))?;
    let beside = [(REPORT_FILE, json.as_slice())];
    let write = |folder: &Path, adapter: &Adapter, beside: &[(&str, &[u8])]| {
        write_adapter(folder, adapter, plan.element, &provenance, &others, beside, output.format)
    };
    if let Some(anchor) = &output.anchor {
        write(anchor, &adapter.negated(), &[])?;
    }
    write(&output.folder, &adapter, &beside)?;
    if let Some(page) = &output.page {
        write_page(page, &report, terminal)?;
    }
    Ok(report)
}

/// The weights that the adapter belongs to, and their factors.
fn adapted_weights(adapter: &Adapter, plan: &Plan) -> Vec<AdaptedWeight> {
    let adapted = |layer: &PlannedLayer| {
        let factors = layer.shape.of_stored_weight(adapter.layers.get(&layer.module)?);
        Some(AdaptedWeight { pieces: layer.weight.clone(), factors })
    };
    plan.layers().filter_map(adapted).collect()
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
