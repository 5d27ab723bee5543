//! The threads that add rows.

use cntlora::storage::Problem;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::{Arc, Mutex, PoisonError};

/// Does work on the threads of this process: as many as it may use, or `RAYON_NUM_THREADS`.
///
/// A process that was forked has none of the threads of its parent, so that it makes its own.
///
/// # Errors
/// An environment problem if threads cannot start.
pub(crate) fn on_threads<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Problem> {
    static POOL: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);
    let process = std::process::id();
    let pool = {
        let mut held = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some((owner, pool)) if *owner == process => pool.clone(),
            _ => {
                let failed = |error| Problem::environment(format!("cannot start threads: {error}"));
                let made = Arc::new(ThreadPoolBuilder::new().build().map_err(failed)?);
                // Dropping the pool of the parent would wait for threads that do not exist here.
                std::mem::forget(held.replace((process, made.clone())));
                made
            }
        }
    };
    Ok(pool.install(work))
}
