//! An adapter in parts: making one of them, and joining them all.

use super::args::{InitArgs, JobArgs, MergeArgs};
use super::command_line::command_line;
use super::effects;
use super::events::{Events, is_stdout};
use super::init::{Watching, tell, warn_of_left_out, write};
use super::interrupt::Interruption;
use super::prepare::{
    check_layers, check_output, create_folder, prepare, refuse_existing_part, refuse_occupied,
};
use super::progress::Progress;
use super::resolve;
use super::saved::{self, Outputs};
use super::terminal::Terminal;
use super::threads;
use cntlora::plan::{self, PlannedSite, Shard};
use cntlora::report::UnusableSite;
use cntlora::report::table::count;
use cntlora::run::{Job, Output, Part, Parts, run_part};
use cntlora::storage::{Problem, Problems};
use serde::Serialize;
use std::path::PathBuf;

/// What a part did.
#[derive(Debug, Serialize)]
struct Done {
    path: PathBuf,
    shard: Shard,
    sites: Vec<String>,
    layers: Vec<String>,
    /// Sites that are left out, which are not among the others.
    unusable: Vec<UnusableSite>,
}

/// Decomposes the layers of a part, into a folder of its own in `--out`.
pub fn run(args: &InitArgs, shard: Shard, terminal: &Terminal) -> anyhow::Result<()> {
    effects::check_streams(&args.job, terminal.json())?;
    let folder = args.out.join(shard.file_name(""));
    let check = || refuse_existing_part(&folder, args.job.output.force).map_err(Problems::from);
    let mut problems = Problems::default();
    problems.collect(check());
    problems.collect(refuse_page(&args.job));
    let planned = problems.collect(prepare(None, &args.job));
    let Some((plan, inputs)) = planned else { return Err(problems.into()) };
    check_layers(&resolve::output(&args.out, &args.job), &plan, &inputs, &mut problems);
    problems.or_ok(())?;
    let events_path = args.job.run.events.as_deref();
    events_path.map_or(Ok(()), |path| Events::check(path, &inputs))?;

    threads::warn_of_many(&args.job.run, terminal);
    create_folder(&args.out)?;
    let interruption = Interruption::handle(terminal)?;
    let sites = plan.sites_of(shard);
    let begin = || {
        check()?;
        Ok(events_path.map(Events::open).transpose()?)
    };
    let job = Job::of_run(&plan, &inputs);
    let (run, events) = saved::open(&Outputs::one(&folder), &job, &args.job.progress, begin, terminal)?;
    if let Some(events) = &events {
        events.started(&plan, &sites);
    }
    let progress = Progress::of_sites(terminal, &interruption, &plan, &sites);
    let watching = Watching { progress: &progress, events: events.as_ref() };
    let done = interruption.while_polled(|| run_part(&plan, &inputs, shard, &watching, &run.partial));
    progress.finish();
    let part = Part::new(shard, resolve::request(&args.job), resolve::writing(&args.job));
    let completed = saved::keep(run, done, terminal).and_then(|(run, unusable)| {
        run.partial.complete(&part, &folder)?;
        Ok(unusable)
    });
    let layers =
        |site: &&PlannedSite| site.layers.iter().map(|layer| layer.module.clone()).collect::<Vec<_>>();
    let done = completed.map(|unusable| {
        let is_used = |site: &&&PlannedSite| unusable.iter().all(|other| other.name != site.name);
        let used: Vec<&PlannedSite> = sites.iter().filter(is_used).copied().collect();
        Done {
            path: folder,
            shard,
            sites: used.iter().map(|site| site.name.clone()).collect(),
            layers: used.iter().flat_map(layers).collect(),
            unusable,
        }
    });
    let told = events.map_or(Ok(()), |events| events.end(&done));
    let done = done?;
    told?;
    if events_path.is_some_and(is_stdout) {
        warn_of_left_out(&done.unusable, terminal);
        return Ok(());
    }
    terminal.result(&done, |done| {
        format!(
            "{}: part {shard}, {} at {}\n",
            done.path.display().to_string().escape_debug(),
            count(done.layers.len() as u64, "layer"),
            count(done.sites.len() as u64, "site"),
        )
    })?;
    warn_of_left_out(&done.unusable, terminal);
    Ok(())
}

/// A part knows no rank, and so has nothing to show.
fn refuse_page(job: &JobArgs) -> Result<(), Problem> {
    match job.output.report {
        None => Ok(()),
        Some(_) => Err(Problem::usage("--report is given, but a page is about all parts together")
            .help("give --report to the `cntlora merge` that joins the parts")),
    }
}

/// Joins the parts of an adapter.
pub fn join(args: &MergeArgs, folders: &[PathBuf], terminal: &Terminal) -> anyhow::Result<()> {
    let parts = Parts::open(folders)?;
    let Part { request, writing, .. } = parts.common();
    let output = Output {
        page: args.report.clone(),
        ..resolve::output_of(&args.out, request.method.start, writing.clone())
    };
    let mut problems = Problems::default();
    problems.collect(check_output(&output, request, args.force));
    let planned = problems.collect(plan::plan(request));
    let Some((plan, inputs)) = planned else { return Err(problems.into()) };
    check_layers(&output, &plan, &inputs, &mut problems);
    problems.or_ok(())?;
    Interruption::handle(terminal)?;
    let _locks = Outputs::of(&output).lock()?;
    if !args.force {
        refuse_occupied(&output)?;
    }
    let outcome = parts.join(&plan, &inputs)?;
    let command = command_line(std::env::args_os());
    let report = write(outcome, &command, &output, &plan, &inputs, terminal)?;
    tell(&report, &output, true, terminal)
}
