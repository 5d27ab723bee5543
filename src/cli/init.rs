//! The main job: plans, computes and writes an adapter, and reports what was done.

use super::dry_run;
use super::events::{Events, is_stdout};
use super::interrupt::Interruption;
use super::parts;
use super::plan::{show_notes, summary};
use super::prepare::{prepare, refuse_occupied};
use super::progress::Progress;
use super::provenance::provenance;
use super::rank_hint;
use super::report::page_written;
use super::resolve::InitTask;
use super::saved::{self, Outputs, SavedRun};
use super::terminal::Terminal;
use crate::adapter::{Component, Format, SingleFile, UniformRank};
use crate::plan::{Inputs, Plan, PlannedSite};
use crate::report::format::count;
use crate::report::{Report, UnusableSite, text};
use crate::run::{self, Event, Job, Observer, Outcome, Output, PartialRun, run_resumable};
use crate::storage::{Problem, Problems, quoted, visible};
use std::fmt::Write as _;
use std::path::Path;

/// Computes an adapter, or a part of one.
pub(crate) fn run(mut task: InitTask, terminal: &Terminal) -> anyhow::Result<()> {
    task.job.limit(terminal);
    if task.dry_run {
        return dry_run(&task, terminal);
    }
    let interruption = Interruption::handle(terminal)?;
    match task.shard {
        Some(shard) => parts::run(&task, shard, terminal, &interruption),
        None => execute(&task, terminal.process().command_line(), terminal, &interruption),
    }
}

/// Makes all checks, and prints the plan and the outputs.
fn dry_run(task: &InitTask, terminal: &Terminal) -> anyhow::Result<()> {
    let output = &task.output;
    if let Some(shard) = task.shard {
        return parts::dry_run(task, shard, terminal);
    }
    let (plan, inputs) = prepare(&task.job, Some(output), terminal)?;
    task.check_events(&inputs)?;
    saved::check(&output.folder, &Job::of_run(&plan, &inputs), task.saving)?;
    dry_run::print(&plan, super::plan::render, &output.all(), terminal)
}

/// Computes an adapter. `command` is the command line for the report.
pub(crate) fn execute(
    task: &InitTask,
    command: &str,
    terminal: &Terminal,
    interruption: &Interruption,
) -> anyhow::Result<()> {
    let output = &task.output;
    let (plan, inputs) = prepare(&task.job, Some(output), terminal)?;
    let sites: Vec<_> = plan.sites.iter().collect();
    let check = || if task.job.force { Ok(()) } else { refuse_occupied(output) };
    let session = Session::new(task, (&plan, &inputs), &sites, terminal, interruption)?;
    terminal.note(&summary(&plan));
    show_notes(&plan, terminal);
    let work =
        |observer: &dyn Observer, partial: &PartialRun| run_resumable(&plan, &inputs, observer, partial);
    let (run, events, outcome) = session.hold(&Outputs::of(output), check, work)?;
    let written = outcome.and_then(|outcome| {
        run.partial.begin_writing(&output.all())?;
        write(outcome, command, output, &plan, &inputs, terminal)
    });
    let result = saved::close(run, written, terminal);
    let logged = events.map_or(Ok(()), |events| events.end(&result));
    let report = result?;
    logged?;
    conclude(&report, output, !task.events.as_deref().is_some_and(is_stdout), terminal)
}

impl InitTask {
    /// Checks the path of the events file.
    pub(crate) fn check_events(&self, inputs: &Inputs) -> Result<(), Problem> {
        self.events.as_deref().map_or(Ok(()), |path| Events::check(path, inputs))
    }
}

/// A computation on sites of a plan, whose progress is saved and shown.
pub(crate) struct Session<'a> {
    task: &'a InitTask,
    plan: &'a Plan,
    inputs: &'a Inputs,
    sites: &'a [&'a PlannedSite],
    terminal: &'a Terminal,
    interruption: &'a Interruption,
}

/// The saved progress and the events file of a session, and the outcome of its work.
type Held<T> = (SavedRun, Option<Events>, Result<T, Problems>);

impl<'a> Session<'a> {
    /// Checks the path of the events file.
    pub(crate) fn new(
        task: &'a InitTask,
        (plan, inputs): (&'a Plan, &'a Inputs),
        sites: &'a [&'a PlannedSite],
        terminal: &'a Terminal,
        interruption: &'a Interruption,
    ) -> Result<Self, Problem> {
        task.check_events(inputs)?;
        Ok(Self { task, plan, inputs, sites, terminal, interruption })
    }

    /// Does the work. It begins with the progress of an earlier run and stops at an interruption. `check` looks at the outputs once
    /// more when they are locked.
    pub(crate) fn hold<T>(
        &self,
        outputs: &Outputs,
        check: impl FnOnce() -> Result<(), Problems>,
        work: impl FnOnce(&dyn Observer, &PartialRun) -> Result<T, Problems>,
    ) -> Result<Held<T>, Problems> {
        let Self { task, plan, inputs, sites, terminal, interruption } = *self;
        let begin = || {
            check()?;
            Ok(task.events.as_deref().map(Events::open).transpose()?)
        };
        let (run, events) = saved::open(outputs, &Job::of_run(plan, inputs), task.saving, begin, terminal)?;
        if let Some(events) = &events {
            events.started(plan, sites);
        }
        let progress = Progress::of_sites(terminal, interruption, plan, sites);
        let observer = Both { progress: &progress, events: events.as_ref() };
        let done = interruption.while_polled(|| work(&observer, &run.partial));
        progress.finish();
        Ok((run, events, done))
    }
}

/// Passes events to the display and to the events file.
struct Both<'a> {
    progress: &'a Progress<'a>,
    events: Option<&'a Events>,
}

impl Observer for Both<'_> {
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

/// Prints the report if `print`, and then the next step.
pub(crate) fn conclude(
    report: &Report,
    output: &Output,
    print: bool,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    if print {
        terminal.result(report, text::render)?;
    }
    warn_of_left_out(&report.unusable, terminal);
    terminal.note(&next_step(output, ranks(report)));
    Ok(())
}

/// Lists all sites that were left out during the run.
pub(crate) fn warn_of_left_out(sites: &[UnusableSite], terminal: &Terminal) {
    if !sites.is_empty() {
        terminal.warning(&left_out(sites));
    }
}

fn left_out(sites: &[UnusableSite]) -> String {
    let modules: usize = sites.iter().map(|site| site.modules.len()).sum();
    let mut words = format!(
        "{} left out, because the activations cannot be used; {} without an adapter:",
        count(sites.len() as u64, "site"),
        count(modules as u64, "module"),
    );
    for UnusableSite { name, modules, reason, remedy } in sites {
        let _ = write!(words, "\n  {}; {}", text::left_out(name, modules, reason), visible(remedy));
    }
    words
}

/// Writes the result of a run. `command` is the command line for the report.
pub(crate) fn write(
    mut outcome: Outcome,
    command: &str,
    output: &Output,
    plan: &Plan,
    inputs: &Inputs,
    terminal: &Terminal,
) -> Result<Report, Problems> {
    outcome.report.command = Some(command.into());
    let provenance = provenance(plan, inputs, &outcome.report)?;
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

/// The least and the largest rank of the layers with an adapter.
fn ranks(report: &Report) -> (usize, usize) {
    let ranks = || report.layers.iter().map(|layer| layer.rank).filter(|rank| *rank > 0);
    (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0))
}

/// How to train from the adapter. `ranks` are the least and the largest rank that were computed.
fn next_step(output: &Output, (least, largest): (usize, usize)) -> String {
    let path = |path: &Path| quoted(&path.display().to_string());
    let model = match &output.base {
        Some(base) => format!("a model loaded from {}", path(base)),
        None => "the model".into(),
    };
    let folder = path(&output.folder);
    if output.format == Format::SingleFile(SingleFile::Kohya, Component::Transformer) {
        return format!(
            "\nThe adapter is in {folder}. diffusers does not read the names of transformers in this format: for diffusers, write it \
             with --format diffusers"
        );
    }
    if let Format::SingleFile(..) = output.format {
        return format!("\nLoad it on {model}: for diffusers, pipe.load_lora_weights({folder})");
    }
    if output.format == Format::Mlx {
        return format!(
            "\nTrain from it with mlx-lm, with --config {} and --resume-adapter-file {}",
            path(&output.folder.join("adapter_config.json")),
            path(&output.folder.join("adapters.safetensors")),
        );
    }
    let anchor = match &output.anchor {
        Some(anchor) => format!(
            "    model.load_adapter({}, \"anchor\")\n    \
             model.base_model.set_adapter([\"default\", \"anchor\"])\n\n\
             Freeze the parameters with \".anchor.\" in their names, and train the others.\n",
            path(anchor)
        ),
        None => String::new(),
    };
    let frozen = match output.loading.keeps_up {
        true => {
            "\nPEFT 0.21 keeps B as it is and trains A, because the configuration has \"init_lora_weights\": \"mica\". It decomposes each \
             weight when it loads the adapter, which low_cpu_mem_usage=True avoids. In other programs, freeze the parameters with \
             \"lora_B\" or \"lora_embedding_B\" in their names.\n"
        }
        false => "",
    };
    let ranks = match output.uniform {
        Some(UniformRank::Of(rank)) => rank_hint::server(rank),
        None if least < largest => format!("{}\n{}", rank_hint::server(largest), rank_hint::ONE_RANK),
        _ => rank_hint::server(largest),
    };
    format!(
        "\nTrain from it, on {model}:\n\n    from peft import PeftModel\n    \
         model = PeftModel.from_pretrained(model, {folder}, is_trainable=True)\n{anchor}{frozen}\n\
         {ranks}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Loading;
    use expect_test::expect;

    #[test]
    fn the_next_step_fits_the_output() {
        let output = |base: Option<&str>, anchor: Option<&str>, format| Output {
            folder: "out".into(),
            base: base.map(Into::into),
            anchor: anchor.map(Into::into),
            format,
            ..Output::default()
        };
        let steps = [
            output(None, None, Format::Peft),
            output(Some("out/base"), None, Format::Peft),
            output(None, Some("out/anchor"), Format::Peft),
            output(None, None, Format::SingleFile(SingleFile::Kohya, Component::Unet)),
            output(None, None, Format::Mlx),
            output(None, None, Format::SingleFile(SingleFile::Kohya, Component::Transformer)),
            Output {
                loading: Loading { keeps_up: true, ..Loading::default() },
                ..output(None, None, Format::Peft)
            },
        ];
        expect![[r#"

            Train from it, on the model:

                from peft import PeftModel
                model = PeftModel.from_pretrained(model, "out", is_trainable=True)

            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 16.
            ----

            Train from it, on a model loaded from "out/base":

                from peft import PeftModel
                model = PeftModel.from_pretrained(model, "out", is_trainable=True)

            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 16.
            ----

            Train from it, on the model:

                from peft import PeftModel
                model = PeftModel.from_pretrained(model, "out", is_trainable=True)
                model.load_adapter("out/anchor", "anchor")
                model.base_model.set_adapter(["default", "anchor"])

            Freeze the parameters with ".anchor." in their names, and train the others.

            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 16.
            ----

            Load it on the model: for diffusers, pipe.load_lora_weights("out")
            ----

            Train from it with mlx-lm, with --config "out/adapter_config.json" and --resume-adapter-file "out/adapters.safetensors"
            ----

            The adapter is in "out". diffusers does not read the names of transformers in this format: for diffusers, write it with --format diffusers
            ----

            Train from it, on the model:

                from peft import PeftModel
                model = PeftModel.from_pretrained(model, "out", is_trainable=True)

            PEFT 0.21 keeps B as it is and trains A, because the configuration has "init_lora_weights": "mica". It decomposes each weight when it loads the adapter, which low_cpu_mem_usage=True avoids. In other programs, freeze the parameters with "lora_B" or "lora_embedding_B" in their names.

            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 16."#]]
        .assert_eq(&steps.map(|output| next_step(&output, (16, 16))).join("\n----\n"));
    }

    /// The hint names the limit that a server takes, and the option for programs that take one rank.
    #[test]
    fn ranks_have_a_hint() {
        let output = |uniform| Output { folder: "out".into(), uniform, ..Output::default() };
        let of = |uniform, ranks| {
            let step = next_step(&output(uniform), ranks);
            step.split_once("is_trainable=True)\n\n").unwrap().1.to_owned() + "\n----\n"
        };
        let hints = [
            of(None, (2, 11)),
            of(Some(UniformRank::Of(11)), (2, 8)),
            of(Some(UniformRank::Largest), (2, 11)),
            of(None, (600, 600)),
        ];
        expect![[r#"
            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 11: the next limit that vLLM takes is 16.
            llama.cpp and mlx-lm take one rank and one scale for all layers: for them, give --uniform-rank.
            ----
            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 11: the next limit that vLLM takes is 16.
            ----
            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 11: the next limit that vLLM takes is 16.
            ----
            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 600, but vLLM takes at most 512.
            ----
        "#]]
        .assert_eq(&hints.concat());
    }

    #[test]
    fn sites_that_were_left_out_are_listed() {
        let site = UnusableSite {
            name: "in".into(),
            modules: vec!["q".into(), "k".into()],
            reason: "all rows are zero".into(),
            remedy: "record other rows".into(),
        };
        expect![[r#"
            1 site left out, because the activations cannot be used; 2 modules without an adapter:
              q, k: site in: all rows are zero; record other rows"#]]
        .assert_eq(&left_out(&[site]));
    }
}
