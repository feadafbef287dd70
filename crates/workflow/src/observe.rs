//! Where metrics, logs and tests look on.

use crate::{definition::Direction, run::Run};

/// Something that happened to a run.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// The run as it is now.
    pub run: &'a Run,
    /// The step it happened to; none for the run as a whole.
    pub step: Option<usize>,
    /// What happened.
    pub point: Point,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// This engine has begun to look after the run.
    Taken,
    /// A step, or its undo, is about to be called.
    Before(Direction),
    /// The call has returned (or was given up); nothing is saved yet.
    After(Direction),
    /// What came of the call is saved.
    Saved(Direction),
    /// The run waits, and costs nothing.
    Parked,
    /// The run has closed or got stuck.
    Settled,
    /// Somebody else has the run now, or it is gone.
    Lost,
}

/// Is told of every transition, from within the engine's tasks: it must return fast and must not panic.
pub trait Observer: Send + Sync + 'static {
    /// This happened.
    fn observe(&self, event: &Event<'_>);
}
