//! An adapter in parts: making one of them, and joining them all.

use super::args::{InitArgs, MergeArgs};
use super::command_line::command_line;
use super::init::{tell, write};
use super::interrupt::Interruption;
use super::prepare::{check_output, create_folder, prepare, refuse_existing_part};
use super::progress::Progress;
use super::resolve;
use super::saved;
use super::terminal::Terminal;
use cntlora::plan::{self, PlannedSite, Shard};
use cntlora::report::table::count;
use cntlora::run::{Job, Part, PartialRun, Parts, run_part};
use cntlora::storage::Problems;
use serde::Serialize;
use std::path::PathBuf;

/// What a part did.
#[derive(Debug, Serialize)]
struct Done {
    path: PathBuf,
    shard: Shard,
    sites: Vec<String>,
    layers: Vec<String>,
}

/// Decomposes the layers of a part, into a folder of its own in `--out`.
pub fn run(args: &InitArgs, shard: Shard, terminal: &Terminal) -> anyhow::Result<()> {
    let folder = args.out.join(shard.file_name(""));
    let check = || refuse_existing_part(&folder, args.job.output.force).map_err(Problems::from);
    let mut problems = Problems::default();
    problems.collect(check());
    let planned = problems.collect(prepare(None, &args.job));
    let Some((plan, inputs)) = planned else { return Err(problems.into()) };
    problems.or_ok(())?;

    create_folder(&args.out)?;
    let interruption = Interruption::handle(vec![PartialRun::folder_of(&folder)], terminal)?;
    let sites = plan.sites_of(shard);
    let progress = Progress::of_sites(terminal, &interruption, &plan, &sites);
    let job = Job::of_run(&plan, &inputs);
    let partial = saved::open(&folder, &job, &args.job.progress, check, terminal)?;
    let done = interruption.while_polled(|| run_part(&plan, &inputs, shard, &progress, &partial));
    progress.finish();
    let partial = saved::keep(partial, done)?;
    let part = Part::new(shard, resolve::request(&args.job), resolve::writing(&args.job));
    partial.complete(&part, &folder)?;
    let layers =
        |site: &&PlannedSite| site.layers.iter().map(|layer| layer.module.clone()).collect::<Vec<_>>();
    let done = Done {
        path: folder,
        shard,
        sites: sites.iter().map(|site| site.name.clone()).collect(),
        layers: sites.iter().flat_map(layers).collect(),
    };
    terminal.result(&done, |done| {
        format!(
            "{}: part {shard}, {} at {}\n",
            done.path.display().to_string().escape_debug(),
            count(done.layers.len() as u64, "layer"),
            count(done.sites.len() as u64, "site"),
        )
    })?;
    Ok(())
}

/// Joins the parts of an adapter.
pub fn join(args: &MergeArgs, folders: &[PathBuf], terminal: &Terminal) -> anyhow::Result<()> {
    let parts = Parts::open(folders)?;
    let Part { request, writing, .. } = parts.common();
    let output = resolve::output_of(&args.out, request.method.start, writing.clone(), args.force);
    let mut problems = Problems::default();
    problems.collect(check_output(&output, request));
    let planned = problems.collect(plan::plan(request));
    let Some((plan, inputs)) = planned else { return Err(problems.into()) };
    problems.or_ok(())?;
    Interruption::handle(output.folders().into_iter().map(Into::into).collect(), terminal)?;
    let outcome = parts.join(&plan, &inputs)?;
    let command = command_line(std::env::args_os());
    let report = write(outcome, &command, &output, &plan, &inputs, terminal)?;
    tell(&report, &output, true, terminal)
}
