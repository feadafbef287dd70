//! One run in the hands of this engine.

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nephos_types::{ProjectId, Timestamp, WorkflowId};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    context::Board,
    definition::Definition,
    journal::{Revision, Stored},
    run::Run,
};

pub(super) struct Cell<E> {
    pub(super) id: WorkflowId,
    pub(super) project: Option<ProjectId>,
    pub(super) definition: Arc<Definition<E>>,
    pub(super) input: Arc<dyn Any + Send + Sync>,
    /// Locked while a save is under way, so saves of one run never overlap.
    pub(super) held: tokio::sync::Mutex<Held>,
    /// Asked to cancel.
    pub(super) cancel: CancellationToken,
    /// Tells the task that drives the run to look around.
    pub(super) notify: Notify,
    pub(super) watchers: watch::Sender<Arc<Run>>,
    progress: Mutex<ProgressState>,
}

/// The run as stored, and this engine's right to it.
pub(super) struct Held {
    pub(super) run: Arc<Run>,
    pub(super) revision: Revision,
    /// The fence under which this engine saves.
    pub(super) fence: u64,
    /// Calls under way.
    pub(super) calls: usize,
    /// Somebody else has it now.
    pub(super) lost: bool,
}

#[derive(Default)]
struct ProgressState {
    board: Board,
    saved_at: Option<Timestamp>,
    unsaved: bool,
}

impl<E> Cell<E> {
    pub(super) fn new(
        stored: Stored,
        fence: u64,
        definition: Arc<Definition<E>>,
        input: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let cancel = CancellationToken::new();
        if stored.run.cancel_requested {
            cancel.cancel();
        }
        Self {
            id: stored.run.id,
            project: stored.run.project,
            definition,
            input,
            watchers: watch::Sender::new(Arc::clone(&stored.run)),
            held: tokio::sync::Mutex::new(Held {
                run: stored.run,
                revision: stored.revision,
                fence,
                calls: 0,
                lost: false,
            }),
            cancel,
            notify: Notify::new(),
            progress: Mutex::new(ProgressState::default()),
        }
    }

    fn progress(&self) -> MutexGuard<'_, ProgressState> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes progress. Whether it should be saved now.
    pub(super) fn note_progress(
        &self,
        step: usize,
        progress: crate::run::Progress,
        now: Timestamp,
        save_every: std::time::Duration,
    ) -> bool {
        let mut state = self.progress();
        self.watchers.send_if_modified(|run| {
            let run = Arc::make_mut(run);
            let record = run.steps.get_mut(step);
            record.is_some_and(|record| {
                let changed = record.progress.as_ref() != Some(&progress);
                record.progress = Some(progress.clone());
                changed
            })
        });
        state.board.insert(step, progress);
        let save = state.saved_at.is_none_or(|at| now.since(at) >= save_every);
        if save {
            state.saved_at = Some(now);
            state.unsaved = true;
        }
        save
    }

    pub(super) fn take_unsaved_progress(&self) -> bool {
        std::mem::take(&mut self.progress().unsaved)
    }

    /// Progress goes into whatever is saved next.
    pub(super) fn write_progress(&self, run: &mut Run) {
        let state = self.progress();
        for (step, progress) in &state.board {
            if let Some(record) = run.steps.get_mut(*step)
                && record.finished_at.is_none()
                && record.started_at.is_some()
            {
                record.progress = Some(progress.clone());
            }
        }
    }

    /// A step's call is over for good, or begins anew.
    pub(super) fn clear_progress(&self, step: usize) {
        self.progress().board.remove(&step);
    }
}

/// How often in a row a step had to be repeated because its effects met a conflict or their fate was unknown.
pub(super) type Repeats = BTreeMap<usize, u32>;
