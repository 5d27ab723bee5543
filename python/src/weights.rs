//! The weights of a model in memory, in the form of a safetensors file.
#![allow(unsafe_code, reason = "tensors are passed as addresses")]

use cntlora::storage::safetensors::Composed;
use cntlora::storage::{Problem, Source, quoted};
use pyo3::prelude::*;
use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

/// A weight, as the program gives it.
#[derive(FromPyObject)]
pub(crate) struct Weight {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    address: Option<usize>,
    load: Option<Py<PyAny>>,
}

/// A request for the memory of a weight: its index, and where to send the address of its first byte and its length in bytes.
pub(crate) struct Request {
    pub(crate) index: usize,
    pub(crate) reply: Sender<Option<(usize, u64)>>,
}

/// The origin of the bytes of a weight.
#[derive(Clone, Copy)]
enum Origin {
    /// Memory that the program holds during the run.
    Address(usize),
    /// The function of the weight with this index.
    Load(usize),
}

/// The weights as a file. `ask` passes requests to the thread of the program, which answers them while the file is read.
///
/// # Errors
/// Usage problems of names, formats, shapes and addresses.
pub(crate) fn as_file(
    weights: &[Weight],
    ask: impl Fn(Request) + Send + Sync + 'static,
) -> Result<Source, Problem> {
    let mut tensors = BTreeMap::new();
    let mut origins = BTreeMap::new();
    for (index, weight) in weights.iter().enumerate() {
        let refuse = |what: &str| Err(Problem::usage(format!("weight {}: {what}", quoted(&weight.name))));
        let origin = match (weight.address, &weight.load) {
            (Some(0), None) if weight.shape.contains(&0) => Origin::Address(0),
            (Some(0), _) => return refuse("the address is zero"),
            (Some(address), None) => Origin::Address(address),
            (None, Some(_)) => Origin::Load(index),
            _ => return refuse("give either its address or a function that loads it"),
        };
        if origins.insert(weight.name.clone(), origin).is_some() {
            return refuse("is given twice");
        }
        tensors.insert(weight.name.clone(), (weight.dtype.clone(), weight.shape.clone()));
    }
    // The weight that was loaded last stays in memory. The lock is held until its bytes are copied.
    let loaded: Mutex<Option<(usize, usize, u64)>> = Mutex::new(None);
    let fill = move |name: &str, offset: u64, buffer: &mut [u8]| match origins[name] {
        // SAFETY: the program holds the memory of the weight during the run. `Composed` asks for bytes within the weight.
        Origin::Address(address) => unsafe { copy(address, offset, buffer) },
        Origin::Load(index) => {
            let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let (address, length) = match *loaded {
                Some((last, address, length)) if last == index => (address, length),
                _ => {
                    *loaded = None;
                    let (reply, answer) = channel();
                    ask(Request { index, reply });
                    let given = answer.recv().ok().flatten();
                    let (address, length) = given.ok_or_else(|| io::Error::other("it was not loaded"))?;
                    *loaded = Some((index, address, length));
                    (address, length)
                }
            };
            if offset + buffer.len() as u64 > length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // SAFETY: the thread of the program holds the loaded weight until the next request, which waits for the lock.
            unsafe { copy(address, offset, buffer) }
        }
    };
    let file = Composed::new(&tensors, Box::new(fill))?;
    Ok(Source::from_reader("model in memory".into(), Box::new(file)))
}

/// Copies bytes from an address.
///
/// # Safety
/// The bytes from `offset` to the end of the buffer are in allocated memory and do not change.
unsafe fn copy(address: usize, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let offset = usize::try_from(offset).map_err(io::Error::other)?;
    let from = (address as *const u8).wrapping_add(offset);
    // SAFETY: the caller promises the source; the target is a buffer of its own.
    unsafe { from.copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len()) };
    Ok(())
}

impl Weight {
    /// Calls the function of the weight. Returns its result, the address of the first byte and the length.
    pub(crate) fn load<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, usize, u64)> {
        let refuse = |what: String| {
            Err(crate::error::raised(py, Problem::usage(format!("weight {}: {what}", quoted(&self.name)))))
        };
        let Some(load) = &self.load else { return refuse("has no function that loads it".into()) };
        let tensor = load.bind(py).call0()?;
        let length: u64 = tensor.getattr("nbytes")?.extract()?;
        let expected = cntlora::storage::safetensors::byte_length(&self.dtype, &self.shape).unwrap_or(0);
        if length != expected {
            let (dtype, shape) = (&self.dtype, &self.shape);
            return refuse(format!(
                "expected {expected} bytes for {dtype} of shape {shape:?}, found {length}"
            ));
        }
        for (name, wanted) in [("is_contiguous", "contiguous"), ("is_cpu", "on the CPU")] {
            let Ok(held) = tensor.getattr(name) else { continue };
            let held = if held.is_callable() { held.call0()? } else { held };
            if !held.is_truthy()? {
                return refuse(format!("expected a tensor that is {wanted}"));
            }
        }
        let address: usize = tensor.call_method0("data_ptr")?.extract()?;
        Ok((tensor, address, length))
    }
}
