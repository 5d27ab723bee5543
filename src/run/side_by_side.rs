//! Processes several sites at the same time.

use crate::initializer::is_narrow;
use crate::plan::{Plan, SideBySide};
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

/// The number of threads, and of sites that are processed at the same time.
#[derive(Clone, Copy)]
pub(super) struct Threads {
    pub all: usize,
    pub side_by_side: SideBySide,
}

impl Threads {
    pub(super) fn of(plan: &Plan) -> Self {
        Self { all: plan.threads, side_by_side: plan.side_by_side }
    }
}

/// Processes the narrow sites and then the wide ones, several at the same time, the widest first so that the threads finish together.
/// Starts no further site after a failure.
pub(super) fn work_side_by_side<'a, S: Sync, T: Send>(
    sites: &[&'a S],
    width: impl Fn(&S) -> usize,
    threads: Threads,
    work: impl Fn(&'a S, usize) -> Result<T, Problem> + Sync,
) -> Result<Vec<T>, Problem> {
    let (narrow, wide): (Vec<&S>, Vec<&S>) = sites.iter().partition(|site| is_narrow(width(site)));
    let SideBySide { narrow: narrow_count, wide: wide_count } = threads.side_by_side;
    let mut finished = Vec::with_capacity(sites.len());
    for (mut sites, count) in [(narrow, narrow_count), (wide, wide_count)] {
        sites.sort_by_key(|site| Reverse(width(site)));
        let results = Mutex::new(Vec::with_capacity(sites.len()));
        let failed = AtomicBool::new(false);
        let unless_failed = sites.into_iter().enumerate().take_while(|_| !failed.load(Ordering::Relaxed));
        share(count, unless_failed, |(index, site)| {
            let result = work(site, threads.all / count);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        });
        // Sites start in order. So the first failing site is always among the results, and its error is returned.
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(index, _)| *index);
        for (_, result) in results {
            finished.push(result?);
        }
    }
    Ok(finished)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Condvar;
    use std::time::Duration;

    const THREADS: Threads = Threads { all: 6, side_by_side: SideBySide { narrow: 3, wide: 2 } };

    /// Wide sites are processed side by side, as many as planned, and share the threads.
    #[test]
    fn wide_sites_are_processed_side_by_side() {
        let (running, arrived) = (Mutex::new((0, 0)), Condvar::new());
        let work = |&width: &usize, threads: usize| {
            let wanted = if width > 2048 { 2 } else { 3 };
            let mut counts = running.lock().unwrap();
            counts.0 += 1;
            counts.1 += 1;
            assert!(counts.0 <= wanted, "{} sites of width {width}", counts.0);
            arrived.notify_all();
            // Each group waits until all its places are taken once.
            let all = |counts: &mut (usize, usize)| counts.1 < if width > 2048 { 6 + 2 } else { 3 };
            counts = arrived.wait_timeout_while(counts, Duration::from_secs(60), all).unwrap().0;
            assert!(!all(&mut counts), "only {} sites started", counts.1);
            counts.0 -= 1;
            Ok((width, threads))
        };
        let sites = [100, 5000, 200, 4000, 300, 3000, 400, 6000, 500, 600];
        let sites: Vec<&usize> = sites.iter().collect();
        let finished = with_threads(6, || work_side_by_side(&sites, |&width| width, THREADS, work)).unwrap();
        let widths: Vec<usize> = finished.iter().map(|(width, _)| *width).collect();
        assert_eq!(widths, [600, 500, 400, 300, 200, 100, 6000, 5000, 4000, 3000]);
        assert!(finished.iter().all(|&(width, threads)| threads == if width > 2048 { 3 } else { 2 }));
    }

    /// The error of the first failing site is returned, and no further site starts on the threads that failed.
    #[test]
    fn no_wide_site_starts_after_a_failure() {
        let started = Mutex::new(0);
        let sites: Vec<usize> = (0..100).map(|index| 5000 - index).collect();
        let work = |&width: &usize, _| -> Result<(), Problem> {
            *started.lock().unwrap() += 1;
            Err(Problem::data(format!("width {width}")))
        };
        let sites: Vec<&usize> = sites.iter().collect();
        let failed =
            with_threads(6, || work_side_by_side(&sites, |&width| width, THREADS, work)).unwrap_err();
        assert!(failed.to_string().contains("width 5000"), "{failed}");
        assert!(*started.lock().unwrap() <= 2);
    }
}
