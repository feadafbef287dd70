//! For tests, of this crate and of those that define workflows: a journal in memory, and a clock that tests move.

mod clock;
mod journal;

pub use clock::ManualClock;
pub use journal::{MemoryEffects, MemoryJournal, SaveFault};
