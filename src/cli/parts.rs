//! An adapter in parts: computes one of them, and joins all of them.

use super::args::MergeArgs;
use super::dry_run;
use super::events::is_stdout;
use super::init::{Session, conclude, warn_of_left_out, write};
use super::interrupt::Interruption;
use super::limits;
use super::plan::show_notes;
use super::prepare::{
    check_layers, check_output, create_folder, prepare, refuse_existing_part, refuse_occupied, rounding,
};
use super::resolve::{InitTask, output};
use super::saved::{self, Outputs};
use super::terminal::Terminal;
use crate::plan::{self, Inputs, Plan, PlannedSite, Shard};
use crate::report::UnusableSite;
use crate::report::format::count;
use crate::run::{Job, Output, Part, Parts, run_part};
use crate::storage::{Problems, visible};
use serde::Serialize;
use std::path::PathBuf;

/// The result of a part.
#[derive(Debug, Serialize)]
struct Done {
    path: PathBuf,
    shard: Shard,
    sites: Vec<String>,
    layers: Vec<String>,
    /// Sites that were left out. They are not among `sites`.
    unusable: Vec<UnusableSite>,
}

/// Plans the job, and checks the folder of a part. Returns this folder, and the plan with its inputs.
fn prepare_part(
    task: &InitTask,
    shard: Shard,
    terminal: &Terminal,
) -> Result<(PathBuf, (Plan, Inputs)), Problems> {
    let folder = task.output.folder.join(shard.file_name(""));
    let mut problems = Problems::default();
    problems.collect(refuse_existing_part(&folder, task.job.force));
    match problems.collect(prepare(&task.job, None, terminal)) {
        Some(planned) => problems.or_ok((folder, planned)),
        None => Err(problems),
    }
}

/// Makes all checks, and prints the plan of the whole job and the folder of the part.
pub(crate) fn dry_run(task: &InitTask, shard: Shard, terminal: &Terminal) -> anyhow::Result<()> {
    let (folder, (plan, inputs)) = prepare_part(task, shard, terminal)?;
    task.check_events(&inputs)?;
    saved::check(&folder, &Job::of_run(&plan, &inputs), task.saving)?;
    dry_run::print(&plan, super::plan::render, &[&folder], terminal)
}

/// Decomposes the layers of a part, into a folder of its own in `--out`.
pub(crate) fn run(
    task: &InitTask,
    shard: Shard,
    terminal: &Terminal,
    interruption: &Interruption,
) -> anyhow::Result<()> {
    let InitTask { job, output, .. } = task;
    let (folder, (plan, inputs)) = prepare_part(task, shard, terminal)?;
    let check = || refuse_existing_part(&folder, job.force).map_err(Problems::from);
    show_notes(&plan, terminal);
    let sites = plan.sites_of(shard);
    let session = Session::new(task, (&plan, &inputs), &sites, terminal, interruption)?;
    create_folder(&output.folder)?;
    let (run, events, done) = session.hold(&Outputs::one(&folder), check, |observer, partial| {
        run_part(&plan, &inputs, shard, observer, partial)
    })?;
    let part = Part::new(shard, job.request.clone(), job.writing.clone());
    let completed = saved::keep(run, done, terminal).and_then(|(run, unusable)| {
        run.partial.complete(&part, &folder)?;
        Ok(unusable)
    });
    let done = completed.map(|unusable| {
        let is_used = |site: &&&PlannedSite| unusable.iter().all(|other| other.name != site.name);
        let used: Vec<&PlannedSite> = sites.iter().filter(is_used).copied().collect();
        let layers = used.iter().flat_map(|site| &site.layers);
        Done {
            path: folder,
            shard,
            sites: used.iter().map(|site| site.name.clone()).collect(),
            layers: layers.map(|layer| layer.name.to_string()).collect(),
            unusable,
        }
    });
    let logged = events.map_or(Ok(()), |events| events.end(&done));
    let done = done?;
    logged?;
    if !task.events.as_deref().is_some_and(is_stdout) {
        terminal.result(&done, |done| {
            format!(
                "{}: part {shard}, {} at {}\n",
                visible(&done.path.to_string_lossy()),
                count(done.layers.len() as u64, "layer"),
                count(done.sites.len() as u64, "site"),
            )
        })?;
    }
    warn_of_left_out(&done.unusable, terminal);
    Ok(())
}

/// Joins the parts of an adapter.
pub(crate) fn join(args: MergeArgs, folders: &[PathBuf], terminal: &Terminal) -> anyhow::Result<()> {
    let parts = Parts::open(folders)?;
    let Part { request, writing, .. } = parts.common();
    let output = Output { page: args.report, ..output(&args.out, request.method.start, writing) };
    let mut problems = Problems::default();
    problems.collect(check_output(&output, request, args.force));
    let mut request = request.clone();
    (request.threads, request.room) = limits::of_run(request.threads, terminal);
    let planned = problems.collect(plan::plan(&request));
    let Some((plan, inputs)) = planned else { return Err(problems.into()) };
    check_layers(&output, &plan, &inputs, &mut problems);
    problems.or_ok(())?;
    if let Some(warning) = rounding(&output, &plan) {
        terminal.warning(&warning);
    }
    if args.dry.dry_run {
        return dry_run::print(&plan, super::plan::render, &output.all(), terminal);
    }
    Interruption::handle(terminal)?;
    let _locks = Outputs::of(&output).lock()?;
    if !args.force {
        refuse_occupied(&output)?;
    }
    let outcome = parts.join(&plan, &inputs)?;
    let report = write(outcome, terminal.process().command_line(), &output, &plan, &inputs, terminal)?;
    conclude(&report, &output, true, terminal)
}
