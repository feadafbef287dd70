//! What the engine needs of its storage.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use nephos_types::{Error, Result, WorkflowId};

use crate::run::Run;

/// The version of a stored run's record, as its journal counts; the engine only compares it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A run as stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The run.
    pub run: Arc<Run>,
    /// The revision to name in the next save.
    pub revision: Revision,
}

/// Why a save did not take place (or, if unavailable, may not have).
#[derive(Clone, Debug)]
pub enum SaveError {
    /// The run's record is not at the expected revision: somebody else saved it.
    Fenced,
    /// Something that the effects expected has changed meanwhile. The step is run again, and decides again.
    Conflict,
    /// The effects are refused for good: this is the step's failure, retried if its kind says so.
    Effects(Error),
    /// A run with this id exists. Only [`Journal::create`] answers this.
    Exists,
    /// The storage cannot be reached, or its answer was lost. The engine finds out whether the save took place.
    Unavailable(Error),
}

/// Durable storage of runs.
///
/// What a save acknowledged survives any crash. A journal that cannot tell [`SaveError::Fenced`] from
/// [`SaveError::Conflict`] may answer either: the engine reads the run again and sees which it was.
pub trait Journal: Send + Sync + 'static {
    /// What a step can have committed together with its record. The default has no effect.
    type Effects: Send + Default + 'static;

    /// All runs that are not closed.
    fn load_open(&self) -> BoxFuture<'_, Result<Vec<Stored>>>;
    /// One run; must see every save that was acknowledged.
    fn get(&self, id: WorkflowId) -> BoxFuture<'_, Result<Option<Stored>>>;
    /// Stores a new run together with the effects, or nothing.
    fn create(&self, run: Arc<Run>, effects: Self::Effects) -> BoxFuture<'_, Result<Revision, SaveError>>;
    /// Replaces a run that is at `expected`, together with the effects, or does nothing.
    fn save(
        &self,
        run: Arc<Run>,
        expected: Revision,
        effects: Self::Effects,
    ) -> BoxFuture<'_, Result<Revision, SaveError>>;
}

impl<J: Journal> Journal for Arc<J> {
    type Effects = J::Effects;

    fn load_open(&self) -> BoxFuture<'_, Result<Vec<Stored>>> {
        (**self).load_open()
    }

    fn get(&self, id: WorkflowId) -> BoxFuture<'_, Result<Option<Stored>>> {
        (**self).get(id)
    }

    fn create(&self, run: Arc<Run>, effects: Self::Effects) -> BoxFuture<'_, Result<Revision, SaveError>> {
        (**self).create(run, effects)
    }

    fn save(
        &self,
        run: Arc<Run>,
        expected: Revision,
        effects: Self::Effects,
    ) -> BoxFuture<'_, Result<Revision, SaveError>> {
        (**self).save(run, expected, effects)
    }
}
