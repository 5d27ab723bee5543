//! What happens during a run as lines of JSON, for programs.
//!
//! Each line is an object with `event` and `seconds`, the time since the start. New kinds of events and new fields may
//! come within a `schema_version`; what is there keeps its meaning. The kinds, and their further fields:
//!
//! | event | fields |
//! |---|---|
//! | `started` | `schema_version`, `tool_version`, and from the plan `sites`, `layers`, `rows`, `operations`, `memory` in bytes |
//! | `site-started` | `site`, `rows` to come |
//! | `rows-added` | `site`, `rows` since the last such event |
//! | `resumed` | `site`, `rows` that an earlier, interrupted run added |
//! | `moments-ready` | `site` |
//! | `layer-decomposed` | `module` |
//! | `site-left-out` | `site`, `modules` that get no adapter, `reason` |
//! | `warning` | `message` |
//! | `finished` | `report`, as with `--json`; the adapter is written, or with `--shard` the part of it |
//! | `failed` | `error` in words |
//!
//! The last line of a run that was not interrupted is `finished` or `failed`.

use cntlora::plan::{Inputs, Plan, PlannedSite, Recording};
use cntlora::run::{Event, Observer};
use cntlora::storage::{Problem, Problems};
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Version of the lines.
const SCHEMA_VERSION: u32 = 1;

/// Writes lines to a file or to stdout.
pub struct Events {
    started: Instant,
    path: PathBuf,
    out: Mutex<Out>,
}

struct Out {
    to: Box<dyn Write + Send>,
    /// The first failure. A run is not ended for it, but does not end well.
    failure: Option<io::Error>,
}

#[derive(Serialize)]
struct Line<T> {
    seconds: f64,
    #[serde(flatten)]
    event: T,
}

/// Events of the tool, beside those of the library. `R` is the report.
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

/// Whether lines go to stdout.
pub fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

impl Events {
    /// Refuses a path at which there is a file that holds no such lines, to judge by its name, or that is an input, by whatever name.
    pub fn check(path: &Path, inputs: &Inputs) -> Result<(), Problem> {
        refuse_other_files(path)?;
        let identity = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let recordings = inputs.target.iter().chain(&inputs.source).flat_map(Recording::files);
        let mut files = inputs.checkpoint.files().iter().map(|(file, _)| file).chain(recordings);
        match identity(path) {
            Some(found) if files.any(|file| identity(file.path()) == Some(found)) => {
                Err(Problem::usage("events would be written over an input")
                    .in_file(path)
                    .help("give --events a new name, or - for stdout"))
            }
            _ => Ok(()),
        }
    }

    /// Makes the file, or takes stdout for `-`. A log of an earlier run is replaced.
    pub fn open(path: &Path) -> Result<Self, Problem> {
        refuse_other_files(path)?;
        let to: Box<dyn Write + Send> = match is_stdout(path) {
            true => Box::new(io::stdout()),
            false => Box::new(File::create(path).map_err(|error| {
                Problem::io("cannot write events", &error)
                    .in_file(path)
                    .help("give --events a file that can be written, or - for stdout")
            })?),
        };
        let out = Mutex::new(Out { to, failure: None });
        Ok(Self { started: Instant::now(), path: path.into(), out })
    }

    /// The first line of a run that works on these sites of a plan.
    pub fn started(&self, plan: &Plan, sites: &[&PlannedSite]) {
        let work = sites.iter().map(|site| plan.site_work(site));
        self.write(Frame::<()>::Started {
            schema_version: SCHEMA_VERSION,
            tool_version: env!("CARGO_PKG_VERSION"),
            sites: sites.len(),
            layers: sites.iter().map(|site| site.layers.len()).sum(),
            rows: sites.iter().map(|site| site.rows + site.source_rows.unwrap_or(0)).sum(),
            operations: work.map(|work| work.moments + work.factors).sum(),
            memory: plan.peak_memory,
        });
    }

    /// The last line, and whether all lines were written. A reader that goes away is no failure.
    pub fn end<R: Serialize>(self, result: &Result<R, Problems>) -> Result<(), Problem> {
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
            let written = serde_json::to_vec(&line).map_err(Into::into).and_then(|mut bytes| {
                bytes.push(b'\n');
                out.to.write_all(&bytes)?;
                out.to.flush()
            });
            out.failure = written.err();
        }
    }
}

/// Refuses a file that is there, unless its name says that it holds such lines. That of a link is the name of what it leads to.
fn refuse_other_files(path: &Path) -> Result<(), Problem> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let lines = real.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"));
    if real.is_file() && !lines {
        return Err(Problem::usage("there is a file of this name, and it is not one of events")
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
    use cntlora::rank::Policy;
    use serde_json::Value;

    /// The lines are a promise to programs: names of events and fields.
    #[test]
    fn lines_have_these_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let events = Events::open(&path).unwrap();
        let plan = plan_of(Policy::Fixed(3));
        events.started(&plan, &plan.sites.iter().collect::<Vec<_>>());
        events.event(Event::SiteStarted { site: "a\nb", rows: 7 });
        events.event(Event::RowsAdded { site: "in", rows: 7 });
        events.event(Event::MomentsReady { site: "in" });
        events.event(Event::LayerDecomposed { module: "q" });
        events.event(Event::SiteLeftOut { site: "in", modules: &["q".into()], reason: "no rows" });
        events.event(Event::Warning { message: "look".into() });
        events.end::<()>(&Err(Problem::data("full").into())).unwrap();
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let fields: Vec<String> = lines
            .iter()
            .map(|line| {
                let object = line.as_object().unwrap();
                let names: Vec<&str> = object
                    .keys()
                    .map(String::as_str)
                    .filter(|key| *key != "seconds" && *key != "event")
                    .collect();
                assert!(line["seconds"].as_f64().is_some_and(|seconds| seconds >= 0.0), "{line}");
                format!("{}: {}", line["event"].as_str().unwrap(), names.join(" "))
            })
            .collect();
        assert_eq!(
            fields,
            [
                "started: layers memory operations rows schema_version sites tool_version",
                "site-started: rows site",
                "rows-added: rows site",
                "moments-ready: site",
                "layer-decomposed: module",
                "site-left-out: modules reason site",
                "warning: message",
                "failed: error",
            ]
        );
        assert_eq!(lines[1]["site"], "a\nb");
    }

    /// A slip of the fingers does not cost a model; a log of an earlier run is replaced.
    #[test]
    fn only_events_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [model, log] = ["model.safetensors", "run.jsonl"].map(|name| folder.path().join(name));
        for path in [&model, &log] {
            fs::write(path, "old").unwrap();
        }
        let problem = Events::open(&model).err().unwrap();
        assert!(problem.next_step().unwrap().contains(".jsonl"), "{problem}");
        assert_eq!(fs::read(&model).unwrap(), b"old");
        assert!(Events::open(&log).is_ok() && fs::read(&log).unwrap().is_empty());
        let link = folder.path().join("link.jsonl");
        std::os::unix::fs::symlink(&model, &link).unwrap();
        assert!(Events::open(&link).is_err());
        assert_eq!(fs::read(&model).unwrap(), b"old");
    }

    /// A full disk does not end the run, but its end says so.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_told() {
        let events = Events::open(Path::new("/dev/full")).unwrap();
        events.event(Event::MomentsReady { site: "in" });
        let problem = events.end::<()>(&Err(Problem::data("x").into())).unwrap_err();
        assert!(problem.to_string().contains("cannot write events"), "{problem}");
    }
}
