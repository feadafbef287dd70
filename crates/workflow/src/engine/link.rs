//! What steps can ask of the engine: the time, showing progress, child runs.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use nephos_types::{Error, ErrorKind, Id, Result, Timestamp, WorkflowId};

use super::{Inner, cell::Cell};
use crate::{
    context::{Call, ChildStart, Link},
    journal::{Journal, SaveError},
    run::{Parent, Progress, Run},
};

pub(super) struct RunLink<J: Journal> {
    pub(super) inner: Arc<Inner<J>>,
    pub(super) cell: Arc<Cell<J::Effects>>,
}

impl<J: Journal> Link for RunLink<J> {
    fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    fn progress(&self, step: usize, progress: Progress) {
        let now = self.inner.clock.now();
        if self.cell.note_progress(step, progress, now, self.inner.config.progress_every) {
            self.cell.notify.notify_one();
        }
    }

    fn start_child(&self, call: Call, definition: Arc<str>, start: ChildStart) -> BoxFuture<'_, Result<Arc<Run>>> {
        Box::pin(async move {
            for probe in 0..MAX_PROBES {
                let id = child_id(call.run.id, call.step, probe);
                if let Some(stored) = self.inner.journal.get(id).await? {
                    if !is_child(&stored.run, &call) {
                        continue;
                    }
                    // It may have been created just before a crash.
                    self.inner.adopt(stored.clone()).await?;
                    return Ok(stored.run);
                }
                let mut run = self.inner.prepare(&definition, id, start.input.clone())?;
                run.subject =
                    if start.subject.is_empty() { Arc::clone(&call.run.subject) } else { start.subject.clone().into() };
                run.project = call.run.project;
                run.author = Arc::clone(&call.run.author);
                run.parent = Some(Parent { run: call.run.id, step: u16::try_from(call.step).unwrap_or(u16::MAX) });
                if let Some(deadline) = call.run.deadline {
                    run = run.deadline(deadline);
                }
                let run = Arc::new(run);
                match self.inner.journal.create(Arc::clone(&run), J::Effects::default()).await {
                    Ok(revision) => {
                        self.inner.adopt(crate::journal::Stored { run: Arc::clone(&run), revision }).await?;
                        return Ok(run);
                    }
                    Err(SaveError::Effects(error)) => return Err(error),
                    // Created after all, or by somebody else: the next call of the step sees which.
                    Err(error) => return Err(unavailable(&error)),
                }
            }
            Err(Error::bug("No free id for a child workflow"))
        })
    }

    fn cancel_child(&self, call: Call) -> BoxFuture<'_, Result<Option<Arc<Run>>>> {
        Box::pin(async move {
            for probe in 0..MAX_PROBES {
                let id = child_id(call.run.id, call.step, probe);
                let Some(stored) = self.inner.journal.get(id).await? else { return Ok(None) };
                if !is_child(&stored.run, &call) {
                    continue;
                }
                if !stored.run.state.is_settled() {
                    match self.inner.cancel(id).await {
                        Err(error) if error.kind != ErrorKind::Conflict => return Err(error),
                        // Past its point of no return, or just closed: what it has become is seen when it settles.
                        _ => {}
                    }
                }
                return Ok(self.inner.journal.get(id).await?.map(|stored| stored.run));
            }
            Ok(None)
        })
    }
}

/// How many ids are tried for a child; ids of unrelated runs of the same millisecond may be in the way.
const MAX_PROBES: u32 = 64;

/// The same for each call of the step: the parent's time, and random bits derived from parent and step.
fn child_id(parent: WorkflowId, step: usize, probe: u32) -> WorkflowId {
    derived_id(parent.bits(), (parent.bits(), step, probe))
}

/// An id with the time of `time` and bits that follow from `seed` alone.
pub(crate) fn derived_id(time: u64, seed: impl Hash) -> WorkflowId {
    const RANDOM: u64 = (1 << 22) - 1;
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    WorkflowId::from_bits((time & !RANDOM) | (hasher.finish() & RANDOM))
}

fn is_child(run: &Run, call: &Call) -> bool {
    run.parent.as_ref().is_some_and(|parent| parent.run == call.run.id && usize::from(parent.step) == call.step)
}

pub(super) fn unavailable(error: &SaveError) -> Error {
    match error {
        SaveError::Unavailable(error) | SaveError::Effects(error) => error.clone(),
        _ => Error::new(ErrorKind::Unavailable, "workflow_conflict", "The workflow was changed at the same time")
            .detail(format!("{error:?}"))
            .next("try again", None),
    }
}
