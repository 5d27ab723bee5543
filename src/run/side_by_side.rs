//! Processes several sites at the same time.

use crate::initializer::is_narrow;
use crate::plan::Plan;
use crate::simd::threads::share;
use crate::storage::Problem;
use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Calls both functions, the second on its own thread if `parallel`.
///
/// # Errors
/// A problem of the environment if the thread cannot be started.
pub(super) fn beside<A, B: Send>(
    parallel: bool,
    first: impl FnOnce() -> A,
    second: impl FnOnce() -> B + Send,
) -> Result<(A, B), Problem> {
    if !parallel {
        return Ok((first(), second()));
    }
    std::thread::scope(|scope| {
        let second = std::thread::Builder::new()
            .spawn_scoped(scope, second)
            .map_err(|error| Problem::environment(format!("cannot start a thread: {error}")))?;
        Ok((first(), second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
    })
}

/// Runs the work in its own thread pool.
pub(super) fn with_threads<T: Send, E: From<Problem> + Send>(
    threads: usize,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Problem::environment(format!("cannot start {threads} threads: {error}")))?;
    pool.install(work)
}

/// The number of threads, and of narrow sites that are processed at the same time.
#[derive(Clone, Copy)]
pub(super) struct Threads {
    pub all: usize,
    pub side_by_side: usize,
}

impl Threads {
    pub(super) fn of(plan: &Plan) -> Self {
        Self { all: plan.threads, side_by_side: plan.side_by_side }
    }
}

/// Processes narrow sites at the same time, the widest first so that the threads finish together. Then processes wide sites one after
/// the other, each with all threads. Starts no further site after a failure.
pub(super) fn work_side_by_side<'a, S: Sync, T: Send>(
    sites: &[&'a S],
    width: impl Fn(&S) -> usize,
    threads: Threads,
    work: impl Fn(&'a S, usize) -> Result<T, Problem> + Sync,
) -> Result<Vec<T>, Problem> {
    let (mut narrow, wide): (Vec<&S>, Vec<&S>) = sites.iter().partition(|site| is_narrow(width(site)));
    narrow.sort_by_key(|site| Reverse(width(site)));
    let results = Mutex::new(Vec::with_capacity(sites.len()));
    let failed = AtomicBool::new(false);
    let unless_failed = narrow.into_iter().enumerate().take_while(|_| !failed.load(Ordering::Relaxed));
    share(threads.side_by_side, unless_failed, |(index, site)| {
        let result = work(site, threads.all / threads.side_by_side);
        failed.fetch_or(result.is_err(), Ordering::Relaxed);
        results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
    });
    // Sites start in order. So the first failing site is always among the results, and its error is returned.
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    let mut finished = results.into_iter().map(|(_, result)| result).collect::<Result<Vec<_>, _>>()?;
    for site in wide {
        finished.push(work(site, threads.all)?);
    }
    Ok(finished)
}
