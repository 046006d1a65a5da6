//! Runs pieces of work in parallel.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, bail};

/// Calls `f` on every piece of `work`, `workers` at a time, each on a thread of its own: for pieces that run on one thread
/// and do not depend on each other, so that the result is the same for any number of workers.
///
/// # Errors
/// One of the errors that `f` returned. After an error no further piece is begun; pieces that were begun are finished.
pub fn each<T: Sync>(work: &[T], workers: usize, f: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let worker = || {
        while let Some(piece) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            f(piece).inspect_err(|_| next.store(work.len(), Ordering::Relaxed))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| bail!("a worker's thread panicked")))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_piece_is_done_once_and_a_failure_ends_it() {
        let work: Vec<usize> = (0..50).collect();
        for workers in [1, 2, 5] {
            let sum = AtomicUsize::new(0);
            each(&work, workers, |&n| {
                sum.fetch_add(n, Ordering::Relaxed);
                Ok(())
            })
            .unwrap();
            assert_eq!(sum.into_inner(), 49 * 50 / 2);
        }
        let begun = AtomicUsize::new(0);
        let failed = each(&work, 1, |&n| {
            begun.fetch_add(1, Ordering::Relaxed);
            if n == 3 { bail!("piece {n}") } else { Ok(()) }
        });
        assert_eq!((failed.unwrap_err().to_string().as_str(), begun.into_inner()), ("piece 3", 4));
    }
}
