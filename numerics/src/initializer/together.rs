//! The blocks of many statistics, multiplied together.

use super::Statistics;
use crate::simd::Workspace;
use crate::simd::threads::share_with;

/// The memory that adds the waiting blocks of many statistics to their sums.
///
/// ```
/// use cntlora_numerics::initializer::{Statistics, Together};
/// use cntlora_numerics::simd::Workspace;
/// use faer::Mat;
///
/// let rows = Mat::from_fn(1000, 6, |i, j| ((i * i + 3 * j) % 11) as f32);
/// let mut sites = [Statistics::new(6), Statistics::new(6)];
/// for site in &mut sites {
///     site.take(&rows)?; // only copies
/// }
/// Together::new(Workspace::default()).multiply(&mut sites);
/// assert!(sites.iter().all(|site| site.waiting_bytes() == 0));
/// # Ok::<(), cntlora_numerics::error::Error>(())
/// ```
#[derive(Debug)]
pub struct Together {
    /// One for each thread.
    workspaces: Vec<Workspace>,
}

impl Together {
    /// Memory for statistics with the precision of the workspace.
    pub fn new(workspace: Workspace) -> Self {
        Self { workspaces: vec![workspace] }
    }

    /// Adds the blocks that wait to the sums, on the current rayon pool.
    ///
    /// Sites are multiplied side by side, the largest first. Each is cut for its share of the threads in the work that is left, rounded up: a
    /// wide site and the last one for all threads, and most narrow ones for a single thread. The bits are those of [`Statistics::add`].
    ///
    /// # Panics
    /// Never.
    pub fn multiply<'a>(&mut self, statistics: impl IntoIterator<Item = &'a mut Statistics>) {
        let threads = rayon::current_num_threads();
        let mut jobs: Vec<_> = statistics.into_iter().map(|one| (one.waiting_work(), one)).collect();
        jobs.retain(|(work, _)| *work > 0.0);
        jobs.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        let mut left: f64 = jobs.iter().map(|(work, _)| work).sum();
        let jobs = jobs.into_iter().map(|(work, one)| {
            let share = (threads as f64 * work / left).ceil() as usize;
            left -= work;
            (share.clamp(1, threads), one)
        });
        while self.workspaces.len() < threads {
            self.workspaces.push(self.workspaces[0].fresh());
        }
        share_with(&mut self.workspaces, jobs, |workspace, (threads, one)| {
            one.multiply_with(workspace, threads);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::gaussian;
    use crate::simd::BLOCK_ROWS;
    use faer::Mat;

    fn rows(count: usize, width: usize) -> Mat<f32> {
        gaussian(count, width, 0, "rows")
    }

    /// Sites of equal widths, one wide site among narrow ones, and sites without full blocks: on any number of threads, the sums have the
    /// bits of those that are added at once, before and after the blocks are multiplied.
    #[test]
    fn sums_have_the_bits_of_those_at_once() {
        for widths in [vec![5; 7], vec![40, 3, 3, 3], vec![9], vec![]] {
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut together = Together::new(Workspace::default());
                let mut later: Vec<_> = widths.iter().map(|width| Statistics::new(*width)).collect();
                let mut now: Vec<_> = widths.iter().map(|width| Statistics::new(*width)).collect();
                for count in [BLOCK_ROWS - 1, 2, 3 * BLOCK_ROWS + 7] {
                    for (later, now) in later.iter_mut().zip(&mut now) {
                        let rows = rows(count, now.width());
                        later.take(&rows).unwrap();
                        now.add(&rows).unwrap();
                        assert_eq!((later.count(), later.moments()), (now.count(), now.moments()));
                    }
                    pool.install(|| together.multiply(&mut later));
                    for (later, now) in later.iter().zip(&now) {
                        assert_eq!(later.waiting_bytes(), 0);
                        assert_eq!((later.count(), later.moments()), (now.count(), now.moments()));
                    }
                }
            }
        }
    }

    /// Rows that are not finite are refused when they come, with their position, and the rows before them can still be used.
    #[test]
    fn rows_that_are_not_finite_do_not_wait() {
        let mut statistics = Statistics::new(3);
        let good = rows(BLOCK_ROWS + 3, 3);
        statistics.take(&good).unwrap();
        assert_eq!(statistics.waiting_bytes(), BLOCK_ROWS * 3 * 4);
        let mut bad = rows(10, 3);
        bad[(4, 2)] = f32::NAN;
        let refused = crate::error::Error::NonFiniteRow { row: 4, column: 2 };
        assert_eq!(statistics.take(&bad), Err(refused));
        let mut wanted = Statistics::new(3);
        wanted.add(&good).unwrap();
        assert_eq!(statistics.moments(), wanted.moments());
        // Rows that are added at once come after those that wait.
        statistics.add(&good).unwrap();
        wanted.add(&good).unwrap();
        assert_eq!((statistics.waiting_bytes(), statistics.moments()), (0, wanted.moments()));
    }
}
