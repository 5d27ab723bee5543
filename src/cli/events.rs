//! Events of a run as lines of JSON, for programs.
//!
//! Each line is an object with `event` and `seconds`, the time since the start. The help of `--events` lists the events and their fields.
//! New events and fields may come within a `schema_version`; existing ones keep their meaning. The last line of a run that was not
//! interrupted is `finished` or `failed`.

use crate::plan::{Inputs, Plan, PlannedSite, Recording};
use crate::run::{Event, Observer};
use crate::storage::{Problem, Problems, is_same_file, visible};
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Version of the format.
const SCHEMA_VERSION: u32 = 1;

/// Writes lines to a file or to stdout.
pub(crate) struct Events {
    started: Instant,
    path: PathBuf,
    out: Mutex<Out>,
}

struct Out {
    to: Box<dyn Write + Send>,
    /// The first failure. The run continues, and ends with this error.
    failure: Option<io::Error>,
}

#[derive(Serialize)]
struct Line<T> {
    seconds: f64,
    #[serde(flatten)]
    event: T,
}

/// The first and the last event, which the library does not send. `R` is the report.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Frame<R> {
    Started {
        schema_version: u32,
        tool_version: &'static str,
        sites: usize,
        layers: usize,
        rows: u64,
        operations: f64,
        memory: u64,
    },
    Finished {
        report: R,
    },
    Failed {
        error: String,
    },
}

/// Returns whether the path stands for stdout.
pub(crate) fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

impl Events {
    /// Refuses to replace a file that does not look like an events file, or that is an input.
    pub(crate) fn check(path: &Path, inputs: &Inputs) -> Result<(), Problem> {
        refuse_other_files(path)?;
        let recordings = inputs.target.iter().chain(&inputs.source).flat_map(Recording::files);
        let mut files = inputs.checkpoint.files().iter().map(|(file, _)| file).chain(recordings);
        match files.any(|file| is_same_file(path, file.path())) {
            true => Err(Problem::usage("the events file is an input")
                .in_file(path)
                .help("give --events a new name, or - for stdout")),
            false => Ok(()),
        }
    }

    /// Creates the file, or uses stdout for `-`. The events file of an earlier run is replaced.
    pub(crate) fn open(path: &Path) -> Result<Self, Problem> {
        refuse_other_files(path)?;
        let to: Box<dyn Write + Send> = match is_stdout(path) {
            true => Box::new(io::stdout()),
            false => Box::new(File::create(path).map_err(|error| {
                Problem::io("cannot write events", &error)
                    .in_file(path)
                    .help("give --events a writable file, or - for stdout")
            })?),
        };
        let out = Mutex::new(Out { to, failure: None });
        Ok(Self { started: Instant::now(), path: path.into(), out })
    }

    /// Writes the first event of a run on these sites of a plan.
    pub(crate) fn started(&self, plan: &Plan, sites: &[&PlannedSite]) {
        let work = sites.iter().map(|site| plan.site_work(site));
        self.write(Frame::<()>::Started {
            schema_version: SCHEMA_VERSION,
            tool_version: env!("CARGO_PKG_VERSION"),
            sites: sites.len(),
            layers: sites.iter().map(|site| site.layers.len()).sum(),
            rows: sites
                .iter()
                .map(|site| site.rows.saturating_add(site.source_rows.unwrap_or(0)))
                .fold(0, u64::saturating_add),
            operations: work.map(|work| work.moments + work.factors).sum(),
            memory: plan.peak_memory,
        });
    }

    /// Writes the last event. Fails if an event was not written, unless the reader of a pipe closed it.
    pub(crate) fn end<R: Serialize>(self, result: &Result<R, Problems>) -> Result<(), Problem> {
        match result {
            Ok(report) => self.write(Frame::Finished { report }),
            Err(error) => self.write(Frame::<&R>::Failed { error: error.to_string() }),
        }
        let out = self.out.into_inner().unwrap_or_else(PoisonError::into_inner);
        match out.failure {
            Some(failure) if failure.kind() != io::ErrorKind::BrokenPipe => {
                Err(Problem::io("cannot write events", &failure).in_file(&self.path))
            }
            _ => Ok(()),
        }
    }

    fn write(&self, event: impl Serialize) {
        let line = Line { seconds: self.started.elapsed().as_secs_f64(), event };
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if out.failure.is_none() {
            // Each line in one piece, so that a reader never sees half of one.
            let written = serde_json::to_string(&line).map_err(Into::into).and_then(|json| {
                out.to.write_all(format!("{}\n", visible::json(&json)).as_bytes())?;
                out.to.flush()
            });
            out.failure = written.err();
        }
    }
}

/// Refuses an existing file unless its name, or the name of the target of a link, ends in .jsonl.
fn refuse_other_files(path: &Path) -> Result<(), Problem> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let lines = real.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"));
    if real.is_file() && !lines {
        return Err(Problem::usage("this file exists, and its name does not end in .jsonl")
            .in_file(path)
            .help("give --events a new name, or one that ends in .jsonl, or - for stdout"));
    }
    Ok(())
}

impl Observer for Events {
    fn event(&self, event: Event<'_>) {
        self.write(event);
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::testing::plan_of;
    use super::*;
    use crate::rank::Policy;
    use expect_test::expect;
    use serde_json::Value;
    use std::collections::BTreeMap;

    /// Programs rely on the names of events and fields.
    #[test]
    fn events_have_these_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let events = Events::open(&path).unwrap();
        let plan = plan_of(Policy::Fixed(3));
        events.started(&plan, &plan.sites.iter().collect::<Vec<_>>());
        events.event(Event::SiteStarted { site: "a\nb", rows: 7 });
        events.event(Event::RowsAdded { site: "in", rows: 7 });
        events.event(Event::Resumed { site: "in", rows: 7 });
        events.event(Event::MomentsReady { site: "in" });
        events.event(Event::LayerDecomposed { layer: &"q".into() });
        events.event(Event::SiteLeftOut { site: "in", modules: &["q".into()], reason: "no rows" });
        events.event(Event::Warning { message: "look".into() });
        events.end::<()>(&Err(Problem::data("full").into())).unwrap();
        let lines = fs::read_to_string(path).unwrap();
        let without_time = |line: &str| {
            let mut line: BTreeMap<String, Value> = serde_json::from_str(line).unwrap();
            assert!(line.remove("seconds").unwrap().as_f64().unwrap() >= 0.0);
            serde_json::to_string(&line).unwrap() + "\n"
        };
        expect![[r#"
            {"event":"started","layers":2,"memory":2000000,"operations":5310.4,"rows":100,"schema_version":1,"sites":1,"tool_version":"0.1.0"}
            {"event":"site-started","rows":7,"site":"a\nb"}
            {"event":"rows-added","rows":7,"site":"in"}
            {"event":"resumed","rows":7,"site":"in"}
            {"event":"moments-ready","site":"in"}
            {"event":"layer-decomposed","module":"q"}
            {"event":"site-left-out","modules":["q"],"reason":"no rows","site":"in"}
            {"event":"warning","message":"look"}
            {"error":"full","event":"failed"}
        "#]].assert_eq(&lines.lines().map(without_time).collect::<String>());
    }

    #[test]
    fn only_events_files_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [model, log, link] =
            ["model.safetensors", "run.jsonl", "link.jsonl"].map(|name| folder.path().join(name));
        for path in [&model, &log] {
            fs::write(path, "old").unwrap();
        }
        assert!(Events::open(&log).is_ok() && fs::read(&log).unwrap().is_empty());
        std::os::unix::fs::symlink(&model, &link).unwrap();
        let refusal = |path: &Path| {
            let problem = Events::open(path).err().unwrap();
            let text = format!("{problem}; help: {}", problem.next_step().unwrap());
            text.replace(folder.path().to_str().unwrap(), "FOLDER")
        };
        expect![[r#"
            FOLDER/model.safetensors: this file exists, and its name does not end in .jsonl; help: give --events a new name, or one that ends in .jsonl, or - for stdout
            FOLDER/link.jsonl: this file exists, and its name does not end in .jsonl; help: give --events a new name, or one that ends in .jsonl, or - for stdout
            FOLDER/none/run.jsonl: cannot write events: No such file or directory (os error 2); help: give --events a writable file, or - for stdout"#]]
            .assert_eq(&[&*model, &*link, &*folder.path().join("none/run.jsonl")].map(refusal).join("\n"));
        assert_eq!(fs::read(&model).unwrap(), b"old");
    }

    /// A full disk does not stop the run, but the run ends with an error.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_reported_at_the_end() {
        let events = Events::open(Path::new("/dev/full")).unwrap();
        events.event(Event::MomentsReady { site: "in" });
        let problem = events.end::<()>(&Err(Problem::data("x").into())).unwrap_err();
        expect!["/dev/full: cannot write events: No space left on device (os error 28)"]
            .assert_eq(&problem.to_string());
    }
}
