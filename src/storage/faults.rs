//! The steps of writing and reading at which a test makes an operation fail. Outside of unit tests there is nothing here.

use std::io;

/// An operation on the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Open,
    Read,
    Create,
    Write,
    Sync,
    Rename,
    SyncFolder,
    Remove,
}

/// Passes every step.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn step(_: Step) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) use injector::{Faults, inject, step};

#[cfg(test)]
mod injector {
    use super::{Step, io};
    use std::cell::RefCell;

    thread_local! {
        static FAULTS: RefCell<Option<Faults>> = const { RefCell::new(None) };
    }

    /// Which steps of this thread fail, and which were met.
    #[derive(Clone, Debug)]
    pub(crate) struct Faults {
        /// How many steps pass before the first failure.
        pub(crate) pass: usize,
        /// Whether all steps after it fail too.
        pub(crate) sticky: bool,
        pub(crate) kind: io::ErrorKind,
        pub(crate) met: Vec<Step>,
    }

    impl Faults {
        pub(crate) fn failed(&self) -> bool {
            self.met.len() > self.pass
        }
    }

    /// Passes a step, or fails it as the test of this thread asks.
    pub(crate) fn step(step: Step) -> io::Result<()> {
        FAULTS.with_borrow_mut(|faults| {
            let Some(faults) = faults else { return Ok(()) };
            let number = faults.met.len();
            faults.met.push(step);
            if number == faults.pass || (faults.sticky && number > faults.pass) {
                return Err(faults.kind.into());
            }
            Ok(())
        })
    }

    /// Does `work` with these faults on this thread. Returns what it gave and what was met.
    pub(crate) fn inject<T>(faults: Faults, work: impl FnOnce() -> T) -> (T, Faults) {
        FAULTS.with_borrow_mut(|current| assert!(current.replace(faults).is_none(), "faults do not nest"));
        let result = work();
        (result, FAULTS.with_borrow_mut(|current| current.take().expect("they were installed")))
    }
}
