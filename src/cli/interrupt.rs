//! Ctrl-C and termination. A run that saves its progress is asked to stop; anything else ends at once, and removes its temporary files.

use super::exit::INTERRUPTED;
use super::terminal::{Terminal, write_stderr};
use crate::storage::abandon_unfinished;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// The state of the signal handler.
#[derive(Clone, Debug, Default)]
pub struct Interruption(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// True while work asks for `requested`.
    polled: AtomicBool,
    /// True after the first signal during such work.
    requested: AtomicBool,
    /// True if only errors are printed.
    quiet: AtomicBool,
}

impl Interruption {
    /// Handles signals from now on. A process that ends at once first removes its unfinished files.
    ///
    /// Inside another process, that process handles its signals and passes interrupts on.
    pub(crate) fn handle(terminal: &Terminal) -> anyhow::Result<Self> {
        if let Some(given) = terminal.process().interruption() {
            given.0.quiet.store(terminal.quiet(), SeqCst);
            return Ok(given.clone());
        }
        let interruption = Self::default();
        interruption.0.quiet.store(terminal.quiet(), SeqCst);
        let handled = interruption.clone();
        ctrlc::set_handler(move || {
            if !handled.interrupt() {
                abandon_unfinished();
                std::process::exit(INTERRUPTED.into());
            }
        })?;
        Ok(interruption)
    }

    /// Asks the work to stop. Returns false if it cannot stop itself, or was asked before: then the process can end at once, or wait for
    /// the end of the work.
    pub fn interrupt(&self) -> bool {
        let stops = self.0.polled.load(SeqCst) && !self.0.requested.swap(true, SeqCst);
        if stops && !self.0.quiet.load(SeqCst) {
            write_stderr("Saving the progress, then stopping; interrupt again to stop at once\n");
        }
        stops
    }

    /// Does work that often asks for [`requested`](Self::requested). The first signal does not end the process: the work stops itself.
    pub(crate) fn while_polled<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.polled.store(true, SeqCst);
        let result = work();
        self.0.polled.store(false, SeqCst);
        result
    }

    /// Returns whether a signal came during the work.
    pub(crate) fn requested(&self) -> bool {
        self.0.requested.load(SeqCst)
    }
}
