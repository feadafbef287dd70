//! A journal as a process that may die sees it.
//!
//! When a process dies, a save that is on its way takes place or does not; either is settled before another process
//! takes over. An engine that is cut off in a test dies alone: its save stays on its way in the storage's own tasks, and
//! would take place while the next engine is at work already, which nothing in reality does.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures_util::future::BoxFuture;
use nephos_types::{Error, Result, WorkflowId};
use tokio::sync::Notify;

use crate::{
    journal::{Journal, Revision, SaveError, Stored},
    run::Run,
};

/// The journal of one engine's life.
#[derive(Clone)]
pub(super) struct Surviving<J> {
    journal: J,
    saves: Arc<Saves>,
}

/// Saves on their way.
#[derive(Default)]
struct Saves {
    count: AtomicUsize,
    /// No more begin.
    over: AtomicBool,
    landed: Notify,
}

/// One of them; ends when it is dropped.
struct OnItsWay(Arc<Saves>);

impl OnItsWay {
    fn new(saves: &Arc<Saves>) -> Self {
        saves.count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(saves))
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        self.0.landed.notify_waiters();
    }
}

impl<J: Journal + Clone> Surviving<J> {
    pub(super) fn new(journal: J) -> Self {
        Self { journal, saves: Arc::default() }
    }

    /// Ends the life: lets no more saves begin, and waits until every one that was begun has taken place or not.
    pub(super) async fn end(&self) {
        self.saves.over.store(true, Ordering::SeqCst);
        loop {
            let landed = self.saves.landed.notified();
            tokio::pin!(landed);
            landed.as_mut().enable();
            if self.saves.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            landed.await;
        }
    }

    /// Goes on with a save even when whoever waits for it is gone.
    fn outlive<'a>(
        &self,
        save: impl Future<Output = Result<Revision, SaveError>> + Send + 'static,
    ) -> BoxFuture<'a, Result<Revision, SaveError>> {
        // Counted first: whoever ends the life either sees it, or is seen by it.
        let on_its_way = OnItsWay::new(&self.saves);
        if self.saves.over.load(Ordering::SeqCst) {
            return Box::pin(std::future::pending());
        }
        let task = tokio::spawn(async move {
            let answer = save.await;
            drop(on_its_way);
            answer
        });
        Box::pin(async move {
            let lost = |error| SaveError::Unavailable(Error::internal("The save ended", error));
            task.await.unwrap_or_else(|error| Err(lost(error)))
        })
    }
}

impl<J: Journal + Clone> Journal for Surviving<J> {
    type Effects = J::Effects;

    fn load_open(&self) -> BoxFuture<'_, Result<Vec<Stored>>> {
        self.journal.load_open()
    }

    fn get(&self, id: WorkflowId) -> BoxFuture<'_, Result<Option<Stored>>> {
        self.journal.get(id)
    }

    fn create(&self, run: Arc<Run>, effects: Self::Effects) -> BoxFuture<'_, Result<Revision, SaveError>> {
        let journal = self.journal.clone();
        self.outlive(async move { journal.create(run, effects).await })
    }

    fn save(
        &self,
        run: Arc<Run>,
        expected: Revision,
        effects: Self::Effects,
    ) -> BoxFuture<'_, Result<Revision, SaveError>> {
        let journal = self.journal.clone();
        self.outlive(async move { journal.save(run, expected, effects).await })
    }
}
