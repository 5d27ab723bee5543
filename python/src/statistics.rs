//! The class `Statistics`.
#![allow(unsafe_code, reason = "tensors are passed as addresses")]

use crate::error::raised;
use crate::pool::on_threads;
use crate::rows::{Tensor, integers};
use cntlora::Element;
use cntlora::moments_file::{Collected, MomentsFile, MomentsSet};
use cntlora::simd::{BLOCK_ROWS, Precision};
use cntlora::storage::{Access, Problem, Problems, Source, quoted};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The statistics of the layers of a model, in memory.
#[pyclass(frozen, module = "cntlora._cntlora")]
pub(crate) struct Statistics {
    held: Mutex<Arc<Collected>>,
}

impl Statistics {
    fn of(collected: Collected) -> Self {
        Self { held: Mutex::new(Arc::new(collected)) }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Collected>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moments, for a computation. As long as they are held, nothing can be added.
    pub(crate) fn share(&self) -> Arc<Collected> {
        self.lock().clone()
    }

    /// Reads, without the lock of the interpreter.
    fn read<T: Send, E: Into<Problems> + Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Collected) -> Result<T, E> + Send,
    ) -> PyResult<T> {
        let done = py.detach(|| {
            let collected = self.share();
            on_threads(|| work(&collected)).map_err(Problems::from)?.map_err(Into::into)
        });
        done.map_err(|problems: Problems| raised(py, problems))
    }

    /// Changes on the threads of this process, without the lock of the interpreter.
    fn change<T: Send, E: Into<Problems> + Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Collected) -> Result<T, E> + Send,
    ) -> PyResult<T> {
        self.change_here(py, |collected| on_threads(|| work(collected))?.map_err(Into::into))
    }

    /// Changes on this thread, without the lock of the interpreter.
    fn change_here<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Collected) -> Result<T, Problems> + Send,
    ) -> PyResult<T> {
        let done = py.detach(|| {
            let mut held = self.lock();
            let collected = Arc::get_mut(&mut held).ok_or_else(|| {
                Problem::usage("the statistics are in use by a computation on another thread")
                    .help("add rows before or after it")
            })?;
            work(collected)
        });
        done.map_err(|problems: Problems| raised(py, problems))
    }
}

#[pymethods]
impl Statistics {
    #[new]
    #[pyo3(signature = (*, precision = "f32", nonfinite = "refuse"))]
    fn new(py: Python<'_>, precision: &str, nonfinite: &str) -> PyResult<Self> {
        let made = || {
            let precision: Precision = precision.parse().map_err(unknown)?;
            let skips = match nonfinite {
                "refuse" => false,
                "skip-rows" => true,
                other => {
                    let what = format!("unknown nonfinite {}: expected refuse or skip-rows", quoted(other));
                    return Err(Problem::usage(what));
                }
            };
            Collected::new(precision, skips)
        };
        made().map(Self::of).map_err(|problem| raised(py, problem))
    }

    #[pyo3(signature = (site, modules, width, *, tokens = false))]
    fn declare(
        &self,
        py: Python<'_>,
        site: &str,
        modules: Vec<String>,
        width: usize,
        tokens: bool,
    ) -> PyResult<()> {
        self.change(py, |collected| collected.declare(site, &modules, width, tokens))
    }

    #[pyo3(signature = (site, address, shape, strides, dtype, selection = None))]
    #[allow(clippy::too_many_arguments, reason = "arguments of Python")]
    fn add_rows(
        &self,
        py: Python<'_>,
        site: &str,
        address: usize,
        shape: (usize, usize),
        strides: (isize, isize),
        dtype: &str,
        selection: Option<(usize, usize)>,
    ) -> PyResult<()> {
        let element: Element = dtype.parse().map_err(|error| raised(py, unknown(error)))?;
        let tensor = Tensor { address, shape, strides, element };
        self.change_here(py, |collected| {
            // SAFETY: the caller gives the addresses of tensors that it holds during the call, and the memory is not used after it.
            let selection =
                selection.map(|(address, count)| unsafe { integers(address, count) }).transpose()?;
            for part in tensor.parts(selection, BLOCK_ROWS)? {
                // SAFETY: as above; it is a part of the tensor.
                collected.add_rows(site, unsafe { part.rows() }?)?;
                if collected.is_due() {
                    on_threads(|| collected.multiply())?;
                }
            }
            Ok(())
        })
    }

    fn multiply(&self, py: Python<'_>) -> PyResult<()> {
        self.change(py, |collected| {
            collected.multiply();
            Ok::<(), Problem>(())
        })
    }

    fn add_tokens(&self, py: Python<'_>, site: &str, address: usize, count: usize) -> PyResult<()> {
        self.change(py, |collected| {
            // SAFETY: the caller gives the address of a tensor that it holds during the call, and the memory is not used after it.
            let tokens = unsafe { integers(address, count) }?;
            collected.add_tokens(site, tokens)
        })
    }

    fn sites<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let sites = PyDict::new(py);
        for (name, site) in self.share().sites() {
            let site = Site {
                name: name.clone(),
                modules: site.modules().to_vec(),
                width: site.width(),
                rows: site.rows(),
                skipped: site.skipped(),
                tokens: site.is_tokens(),
            };
            sites.set_item(name, site)?;
        }
        Ok(sites)
    }

    fn remove(&self, py: Python<'_>, site: &str) -> PyResult<()> {
        self.change(py, |collected| {
            collected.remove(site);
            Ok::<(), Problem>(())
        })
    }

    fn split(&self, py: Python<'_>, site: &str, modules: Vec<String>, new: &str) -> PyResult<()> {
        self.change(py, |collected| collected.split(site, &modules, new))
    }

    fn merge(&self, py: Python<'_>, other: &Bound<'_, Self>) -> PyResult<()> {
        let other = other.get().share();
        self.change(py, |collected| collected.merge(&other))
    }

    fn memory(&self) -> u64 {
        self.share().memory()
    }

    fn save(&self, py: Python<'_>, path: PathBuf, source: &str) -> PyResult<()> {
        self.read(py, |collected| collected.save(&path, source))
    }

    #[staticmethod]
    fn load(py: Python<'_>, paths: Vec<PathBuf>) -> PyResult<Self> {
        let loaded = py.detach(|| Ok(Collected::from_set(&MomentsSet::open(&paths, Access::Auto)?)?));
        loaded.map(Self::of).map_err(|problems: Problems| raised(py, problems))
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.read(py, Collected::to_bytes)?;
        Ok(PyBytes::new(py, &bytes))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        let loaded = py.detach(|| {
            let file = MomentsFile::from_source(Source::from_bytes("statistics", data.to_vec()))?;
            Ok(Collected::from_set(&MomentsSet::from_files(vec![file])?)?)
        });
        loaded.map(Self::of).map_err(|problems: Problems| raised(py, problems))
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        Ok((py.get_type::<Self>().getattr("from_bytes")?, (self.to_bytes(py)?,)))
    }

    fn __repr__(&self) -> String {
        let collected = self.share();
        let rows: u64 = collected.sites().values().map(|site| site.rows()).sum();
        format!("<cntlora.Statistics: {} sites, {rows} rows>", collected.sites().len())
    }
}

fn unknown(error: cntlora::Error) -> Problem {
    Problem::usage(error.to_string())
}

/// A site of statistics.
#[pyclass(frozen, get_all, module = "cntlora._cntlora")]
pub(crate) struct Site {
    name: String,
    modules: Vec<String>,
    width: usize,
    rows: u64,
    skipped: u64,
    tokens: bool,
}

#[pymethods]
impl Site {
    fn __repr__(&self) -> String {
        let Self { name, modules, width, rows, skipped, tokens } = self;
        let tokens = if *tokens { "True" } else { "False" };
        format!(
            "Site(name={name:?}, modules={modules:?}, width={width}, rows={rows}, skipped={skipped}, tokens={tokens})"
        )
    }
}
