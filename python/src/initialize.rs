//! The function `initialize`.

use crate::error::{bug, raised};
use crate::statistics::Statistics;
use crate::tool::{STACK, wait};
use crate::weights::{Request, Weight, as_file};
use cntlora::cli::{self, Loaded, MomentsInput};
use cntlora::run::{Event, Observer};
use cntlora::storage::{Problem, Problems};
use pyo3::exceptions::{PyOSError, PyUserWarning};
use pyo3::prelude::*;
use std::ffi::CString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::Builder;

/// Messages of the computation to the thread of the program. Only that thread calls Python.
enum Message {
    Load(Request),
    Progress { layer: String, done: usize, total: usize },
    Warning(String),
    Done(Result<String, Problems>),
}

/// Passes events on, and stops the run when asked to.
struct Reporting {
    sender: Sender<Message>,
    stop: Arc<AtomicBool>,
    done: AtomicUsize,
    total: AtomicUsize,
}

impl Reporting {
    fn send(&self, message: Message) {
        // The other thread receives messages until it has the last one.
        let _ = self.sender.send(message);
    }

    fn progress(&self, layer: &str, layers: usize) {
        let done = self.done.fetch_add(layers, SeqCst) + layers;
        self.send(Message::Progress { layer: layer.into(), done, total: self.total.load(SeqCst) });
    }
}

impl Observer for Reporting {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::LayerDecomposed { layer } => self.progress(&layer.to_string(), 1),
            Event::SiteLeftOut { site, modules, .. } => self.progress(site, modules.len()),
            Event::Warning { message } => self.send(Message::Warning(message)),
            _ => {}
        }
    }

    fn stop_requested(&self) -> bool {
        self.stop.load(SeqCst)
    }
}

/// Computes an adapter for a model in memory, on other threads. This thread calls the functions of the program meanwhile, and looks for
/// signals.
#[pyfunction]
#[pyo3(signature = (options, weights, out, *, statistics = None, source = None, moments = Vec::new(), source_moments = Vec::new(),
    config = None, progress = None))]
#[allow(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub(crate) fn initialize(
    py: Python<'_>,
    options: Vec<String>,
    weights: Vec<Weight>,
    out: PathBuf,
    statistics: Option<&Bound<'_, Statistics>>,
    source: Option<&Bound<'_, Statistics>>,
    moments: Vec<PathBuf>,
    source_moments: Vec<PathBuf>,
    config: Option<String>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let target = input(statistics, moments).map_err(|problem| raised(py, problem))?;
    let source = input(source, source_moments).map_err(|problem| raised(py, problem))?;
    let (sender, mut messages) = channel();
    let asking = sender.clone();
    let file = as_file(&weights, move |request| {
        let _ = asking.send(Message::Load(request));
    });
    let loaded = Loaded { weights: file.map_err(|problem| raised(py, problem))?, config, target, source };
    let stop = Arc::new(AtomicBool::new(false));
    let reporting =
        Reporting { sender, stop: stop.clone(), done: AtomicUsize::new(0), total: AtomicUsize::new(0) };
    let work = move || {
        let planned = |plan: &cntlora::plan::Plan| reporting.total.store(plan.layers().count(), SeqCst);
        let report = cli::initialize(&options, loaded, &out, &planned, &reporting);
        let report = report.and_then(|report| {
            serde_json::to_string(&report).map_err(|error| Problem::data(error.to_string()).into())
        });
        reporting.send(Message::Done(report));
    };
    Builder::new().name("cntlora".into()).stack_size(STACK).spawn(work).map_err(PyOSError::new_err)?;

    // The first exception of the program. It ends the run, and is raised at its end.
    let mut raised_here: Option<PyErr> = None;
    let mut held: Option<Bound<'_, PyAny>> = None;
    loop {
        let called = match wait(py, &mut messages) {
            Ok(Message::Done(report)) => {
                return match raised_here {
                    Some(error) => Err(error),
                    None => report.map_err(|problems| raised(py, problems)),
                };
            }
            Ok(Message::Load(Request { index, reply })) => {
                // Only one weight is in memory at a time.
                drop(held.take());
                let loaded = weights[index].load(py);
                let (given, result) = match loaded {
                    Ok((tensor, address, length)) => {
                        held = Some(tensor);
                        (Some((address, length)), Ok(()))
                    }
                    Err(error) => (None, Err(error)),
                };
                let _ = reply.send(given);
                result
            }
            Ok(Message::Progress { layer, done, total }) => match &progress {
                Some(progress) if raised_here.is_none() => progress.call1(py, (layer, done, total)).map(drop),
                _ => Ok(()),
            },
            Ok(Message::Warning(message)) => warn(py, &message),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err(raised_here.unwrap_or_else(|| bug(py))),
        };
        if let Err(error) = called.and_then(|()| py.check_signals()) {
            stop.store(true, SeqCst);
            raised_here.get_or_insert(error);
        }
    }
}

/// The moments of one kind of activations.
fn input(
    statistics: Option<&Bound<'_, Statistics>>,
    files: Vec<PathBuf>,
) -> Result<Option<MomentsInput>, Problem> {
    match statistics {
        Some(_) if !files.is_empty() => {
            let problem = Problem::usage("statistics and moments files were given for the same activations");
            Err(problem.help("merge them first, or give one of them"))
        }
        Some(statistics) => Ok(Some(MomentsInput::Collected(statistics.get().share()))),
        None => Ok((!files.is_empty()).then_some(MomentsInput::Files(files))),
    }
}

fn warn(py: Python<'_>, message: &str) -> PyResult<()> {
    let message = CString::new(message.replace('\0', "\\0"))?;
    PyErr::warn(py, &py.get_type::<PyUserWarning>(), &message, 1)
}
