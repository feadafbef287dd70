//! What the committer has done since the store was opened, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Figures since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Transactions that were acknowledged.
    pub committed: u64,
    /// Transactions that were refused: conflicts, taken claims, exceeded bounds.
    pub refused: u64,
    /// Transactions that could not be written.
    pub failed: u64,
    /// Batches that were handed to the backend; `committed / batches` is how many shared one flush.
    pub batches: u64,
    /// Batches of other processes that were brought into memory.
    pub followed: u64,
    /// Transactions that wait now.
    pub waiting: u64,
}

/// [`Stats`] while they are counted.
#[derive(Default)]
pub(crate) struct Counting {
    committed: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    batches: AtomicU64,
    followed: AtomicU64,
}

impl Counting {
    pub(crate) fn followed(&self) {
        self.followed.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn batch(&self, committed: usize, refused: usize, failed: usize) {
        for (counter, by) in
            [(&self.batches, 1), (&self.committed, committed), (&self.refused, refused), (&self.failed, failed)]
        {
            counter.fetch_add(by as u64, Ordering::Relaxed);
        }
    }

    pub(crate) fn now(&self, waiting: usize) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            committed: read(&self.committed),
            refused: read(&self.refused),
            failed: read(&self.failed),
            batches: read(&self.batches),
            followed: self.followed.load(Ordering::Acquire),
            waiting: waiting as u64,
        }
    }
}
