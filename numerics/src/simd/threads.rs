//! Sharing independent pieces of work among threads.

use std::sync::{Mutex, PoisonError};

/// Does all pieces of work in order, each on the first free thread.
///
/// With one thread (or none) the caller does the work; further threads come from the current rayon pool.
pub fn share<T: Send>(threads: usize, pieces: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    share_with(&mut vec![(); threads.max(1)], pieces, |(), piece| work(piece));
}

/// [`share`] among as many threads as there are states, at least one. Each thread has a state of its own.
pub(crate) fn share_with<S: Send, T: Send>(
    states: &mut [S],
    pieces: impl Iterator<Item = T> + Send,
    work: impl Fn(&mut S, T) + Sync,
) {
    let Some((first, others)) = states.split_first_mut() else { return };
    if others.is_empty() {
        return pieces.for_each(|piece| work(first, piece));
    }
    let pieces = Mutex::new(pieces);
    let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_off = |state: &mut S| {
        while let Some(piece) = next() {
            work(state, piece);
        }
    };
    rayon::scope(|scope| {
        for state in others {
            scope.spawn(|_| work_off(state));
        }
        work_off(first);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// No piece is lost or done twice.
    #[test]
    fn every_piece_is_done_once() {
        for threads in [0, 1, 2, 7] {
            let mut done = vec![0; 100];
            let sum = AtomicUsize::new(0);
            share(threads, done.iter_mut().enumerate(), |(index, done)| {
                *done += 1;
                sum.fetch_add(index, Ordering::Relaxed);
            });
            assert!(done.iter().all(|&done| done == 1));
            assert_eq!(sum.into_inner(), 99 * 100 / 2);
        }
    }
}
