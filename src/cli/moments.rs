//! The commands moments and merge.

use super::args::MergeArgs;
use super::dry_run;
use super::interrupt::Interruption;
use super::limits;
use super::parts;
use super::prepare::{check_output_file, refuse_existing};
use super::progress::Progress;
use super::resolve::MomentsTask;
use super::saved::{self, Outputs};
use super::terminal::Terminal;
use crate::moments_file::{Content, MomentsSet, stage};
use crate::plan::{Measurement, Shard, plan_measurement};
use crate::report::format::{bytes, count};
use crate::report::table::{Align, Table};
use crate::run::{Job, Parts, measure};
use crate::storage::{Access, Problem, Problems, quoted, visible};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Measures the moments of activations.
pub(crate) fn run(task: MomentsTask, terminal: &Terminal) -> anyhow::Result<()> {
    let MomentsTask { mut request, out, force, saving, dry_run } = task;
    (request.threads, request.room) = limits::of_run(request.threads, terminal);
    let mut problems = Problems::default();
    problems.collect(check_output_file(&out, force, &request.activations));
    let planned = problems.collect(plan_measurement(&request));
    let Some((measurement, set)) = planned else { return Err(problems.into()) };
    problems.or_ok(())?;
    terminal.note(&announcement(&measurement));
    for site in &measurement.empty {
        terminal.warning(&format!("site {} is left out, because it has no rows", quoted(site)));
    }

    let job = Job::of_measurement(&measurement, &set);
    if dry_run {
        saved::check(&out, &job, saving)?;
        return dry_run::print(&measurement, render_measurement, &[&out], terminal);
    }
    let interruption = Interruption::handle(terminal)?;
    let progress = Progress::of_measurement(terminal, &interruption, &measurement);
    let check = || refuse_existing(&out, force).map_err(Into::into);
    let (run, ()) = saved::open(&Outputs::one(&out), &job, saving, check, terminal)?;
    let content = interruption.while_polled(|| measure(&measurement, &set, &out, &progress, &run.partial));
    progress.finish();
    let content = saved::close(run, content, terminal)?;
    terminal.result(&Summary::of(&out, &content), Summary::render)?;
    Ok(())
}

/// Adds moments files, or joins the parts of an adapter.
pub(crate) fn merge(args: MergeArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let folders = Parts::folders(&args.files);
    if !folders.is_empty() {
        return parts::join(args, &folders, terminal);
    }
    let mut problems = Problems::default();
    if args.report.is_some() {
        problems.push(
            Problem::usage(
                "--report has no effect: only adapters have a report, and these files are moments",
            )
            .help("remove --report"),
        );
    }
    problems.collect(check_output_file(&args.out, args.force, &args.files));
    let set = problems.collect(MomentsSet::open(&args.files, Access::Auto));
    let Some(set) = set else { return Err(problems.into()) };
    problems.or_ok(())?;
    if args.dry.dry_run {
        let summary = Summary::of(&args.out, set.content());
        return dry_run::print(&summary, Summary::render, &[&args.out], terminal);
    }
    Interruption::handle(terminal)?;
    let _locks = Outputs::one(&args.out).lock()?;
    refuse_existing(&args.out, args.force)?;
    let staged = stage(&args.out, set.content(), &|site| set.sums(site))?;
    set.check_unchanged()?;
    staged.commit()?;
    terminal.result(&Summary::of(&args.out, set.content()), Summary::render)?;
    Ok(())
}

/// A table of the sites of a measurement.
fn render_measurement(measurement: &Measurement) -> String {
    let mut table = Table::new([("site", Align::Left), ("width", Align::Right), ("rows", Align::Right)]);
    for site in &measurement.sites {
        table.row([visible(&site.name), site.width.to_string(), site.rows_to_read().to_string()]);
    }
    table.render()
}

/// The sites, bytes and memory of a measurement.
fn announcement(measurement: &Measurement) -> String {
    format!(
        "{}, {} of activations to read, about {} of memory",
        count(measurement.sites.len() as u64, "site"),
        bytes(measurement.sites.iter().map(|site| site.bytes).fold(0, u64::saturating_add)),
        bytes(measurement.peak_memory),
    )
}

/// The content of a moments file.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    path: PathBuf,
    precision: &'static str,
    /// The part, if the measurement is divided.
    part: Option<Shard>,
    sites: Vec<SiteSummary>,
    sources: Vec<SourceSummary>,
}

#[derive(Debug, Serialize)]
struct SiteSummary {
    name: String,
    width: usize,
    /// True if tokens were counted, not rows.
    counts: bool,
    rows: u64,
    skipped_rows: u64,
    modules: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SourceSummary {
    path: String,
    bytes: u64,
}

impl Summary {
    /// The content of the file at this path.
    pub(crate) fn of(path: &Path, content: &Content) -> Self {
        let rows = content.rows_of_sites();
        let sites = content.sites.iter().map(|(name, site)| SiteSummary {
            name: name.clone(),
            width: site.width,
            counts: site.counts,
            rows: rows.get(name.as_str()).map_or(0, |rows| rows.saturating_sub(site.skipped_rows)),
            skipped_rows: site.skipped_rows,
            modules: site.modules.clone(),
        });
        let sources = content
            .sources
            .iter()
            .map(|source| SourceSummary { path: source.path.clone(), bytes: source.bytes });
        let part = content.part.as_ref().map(|part| Shard { index: part.index, count: part.count });
        Self {
            path: path.into(),
            part,
            precision: content.precision.name(),
            sites: sites.collect(),
            sources: sources.collect(),
        }
    }

    /// A table of the sites, and a line about the file.
    pub(crate) fn render(&self) -> String {
        let mut table = Table::new([
            ("site", Align::Left),
            ("width", Align::Right),
            ("rows", Align::Right),
            ("skipped", Align::Right),
        ]);
        for site in &self.sites {
            let name = visible(&site.name);
            let rows = match site.counts {
                true => count(site.rows, "token"),
                false => site.rows.to_string(),
            };
            table.row([name, site.width.to_string(), rows, site.skipped_rows.to_string()]);
        }
        format!(
            "{}\n{}: {}moments of {} in precision {}, from {} of {}\n",
            table.render(),
            visible(&self.path.to_string_lossy()),
            self.part.map(|part| format!("part {part}, ")).unwrap_or_default(),
            count(self.sites.len() as u64, "site"),
            self.precision,
            count(self.sources.len() as u64, "file"),
            bytes(self.sources.iter().map(|source| source.bytes).fold(0, u64::saturating_add)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn sites_are_shown_as_a_table() {
        let site = |name: &str, counts, rows, skipped_rows| SiteSummary {
            name: name.into(),
            width: 24,
            counts,
            rows,
            skipped_rows,
            modules: vec!["q".into()],
        };
        let summary = Summary {
            path: "m.moments.safetensors".into(),
            precision: "f32",
            part: Some(Shard { index: 1, count: 2 }),
            sites: vec![
                site("attention", false, 1300, 0),
                site("mlp", false, 1298, 2),
                site("wte", true, 26, 0),
            ],
            sources: vec![SourceSummary { path: "a.safetensors".into(), bytes: 1600 }],
        };
        expect![[r#"
            site       width       rows  skipped
            attention     24       1300        0
            mlp           24       1298        2
            wte           24  26 tokens        0

            m.moments.safetensors: part 1/2, moments of 3 sites in precision f32, from 1 file of 1.6 kB
        "#]]
        .assert_eq(&summary.render());
    }
}
