//! The main job: plan, run, write, and say what happened.

use super::args::InitArgs;
use super::interrupt::Interruption;
use super::plan::summary;
use super::prepare::{create_parent, prepare, refuse_occupied};
use super::progress::Progress;
use super::provenance::provenance;
use super::resolve::{self, Output};
use super::saved;
use super::terminal::Terminal;
use cntlora::adapter::{Adapter, other_modules, write_peft, write_residual_base};
use cntlora::factors::Factors;
use cntlora::plan::{Inputs, Plan};
use cntlora::report::text;
use cntlora::run::{Job, PartialRun, run_resumable};
use cntlora::storage::{Problem, Problems, quoted};
use std::collections::BTreeMap;
use std::path::Path;

/// Computes an adapter; an interruption leaves nothing half-written.
pub fn run(args: &InitArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let output = resolve::output(&args.out, &args.job);
    let mut outputs: Vec<_> = output.folders().into_iter().map(Path::to_path_buf).collect();
    outputs.push(PartialRun::folder_of(&output.folder));
    execute(args, terminal, &Interruption::handle(outputs, terminal)?)
}

/// Computes an adapter.
pub fn execute(args: &InitArgs, terminal: &Terminal, interruption: &Interruption) -> anyhow::Result<()> {
    let output = resolve::output(&args.out, &args.job);
    let (plan, inputs) = prepare(Some(&output), &args.job)?;
    terminal.note(&summary(&plan));

    let check = || if output.force { Ok(()) } else { refuse_occupied(&output) };
    let job = Job::of_run(&plan, &inputs);
    let partial = saved::open(&output.folder, &job, &args.job.progress, check, terminal)?;
    let rows = plan.sites.iter().map(|site| site.rows_to_read).fold(0, u64::saturating_add);
    let progress = Progress::new(terminal, interruption, rows);
    let outcome = interruption.while_polled(|| run_resumable(&plan, &inputs, &progress, &partial));
    progress.finish();
    let written = outcome.and_then(|outcome| {
        let provenance = provenance(&plan, &inputs, &outcome.report);
        write(outcome.adapter, &output, &plan, &inputs, &provenance, terminal)?;
        Ok(outcome.report)
    });
    let report = saved::close(partial, written)?;
    terminal.result(&report, |report| text::render(report, output.element))?;
    terminal.note(&next_step(&output, report.layers.iter().map(|layer| layer.rank).max().unwrap_or(0)));
    Ok(())
}

/// Writes the changed base, if there is one, and then the adapter, whose presence says that all is there.
fn write(
    mut adapter: Adapter,
    output: &Output,
    plan: &Plan,
    inputs: &Inputs,
    provenance: &serde_json::Map<String, serde_json::Value>,
    terminal: &Terminal,
) -> Result<(), Problems> {
    if adapter.layers.is_empty() {
        return Err(Problem::data("every layer got rank 0, so there is no adapter to write")
            .help("raise --min-rank, --energy or --budget")
            .into());
    }
    adapter.base = as_given(&plan.model);
    create_parent(&output.folder)?;
    if let Some(base) = &output.base {
        create_parent(base)?;
        let factors = by_tensor(&adapter, plan);
        let left_out =
            write_residual_base(base, &inputs.checkpoint, &factors, adapter.scale, output.element)?;
        if !left_out.is_empty() {
            let names: Vec<String> = left_out.iter().map(|name| quoted(name)).collect();
            terminal.warning(&format!("not copied to the changed base: {}", names.join(", ")));
        }
        adapter.base = as_given(base);
    }
    let tensors = plan.layers().map(|layer| layer.tensor.as_str()).collect();
    let others = other_modules(&inputs.checkpoint, &tensors);
    write_peft(&output.folder, &adapter, output.element, provenance, &others)
}

/// The factors by the name of the weight that they belong to.
fn by_tensor<'a>(adapter: &'a Adapter, plan: &Plan) -> BTreeMap<String, &'a Factors> {
    plan.layers()
        .filter_map(|layer| Some((layer.tensor.clone(), adapter.layers.get(&layer.module)?)))
        .collect()
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
    format!(
        "\nTrain from it, on {model}:\n\n    from peft import PeftModel\n    \
         model = PeftModel.from_pretrained(model, {}, is_trainable=True)\n\n\
         A server with a limit on ranks, such as vLLM's --max-lora-rank, has to allow {largest_rank}.",
        quoted(&as_given(&output.folder))
    )
}
