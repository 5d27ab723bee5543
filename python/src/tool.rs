//! The command-line tool, inside a Python process.

use crate::error::bug;
use cntlora::cli::{Interruption, main_with};
use cntlora::storage::remove_unfinished_files;
use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError};
use pyo3::prelude::*;
use std::ffi::OsString;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

/// Time between two looks for signals.
const POLL: Duration = Duration::from_millis(50);

/// Stack of the thread of the tool, in bytes: as that of a program.
pub(crate) const STACK: usize = 8 << 20;

/// The exit code of an interrupted command.
const INTERRUPTED: u8 = 130;

/// Runs the tool on another thread. This thread looks for signals meanwhile.
#[pyfunction]
pub(crate) fn main(py: Python<'_>, arguments: Vec<OsString>) -> PyResult<u8> {
    let words: Vec<OsString> = std::iter::once("cntlora".into()).chain(arguments).collect();
    let interruption = Interruption::default();
    let (sender, mut result) = channel();
    let given = interruption.clone();
    Builder::new()
        .name("cntlora".into())
        .stack_size(STACK)
        .spawn(move || sender.send(main_with(&words, &given)))
        .map_err(PyOSError::new_err)?;
    let mut interrupt: Option<PyErr> = None;
    loop {
        match wait(py, &mut result) {
            Ok(code) => {
                return match interrupt {
                    // The exit code tells it.
                    Some(error) if code == INTERRUPTED && error.is_instance_of::<PyKeyboardInterrupt>(py) => {
                        Ok(code)
                    }
                    Some(error) => Err(error),
                    None => Ok(code),
                };
            }
            Err(RecvTimeoutError::Disconnected) => return Err(bug(py)),
            Err(RecvTimeoutError::Timeout) => {
                if let Err(error) = py.check_signals() {
                    if !interruption.interrupt() {
                        // The thread goes on, and fails where it would put an unfinished file in its place.
                        remove_unfinished_files();
                        return Err(error);
                    }
                    interrupt = Some(error);
                }
            }
        }
    }
}

/// Waits for a message without the lock of the interpreter, until it is time to look for signals.
pub(crate) fn wait<T: Send>(py: Python<'_>, messages: &mut Receiver<T>) -> Result<T, RecvTimeoutError> {
    py.detach(move || messages.recv_timeout(POLL))
}
