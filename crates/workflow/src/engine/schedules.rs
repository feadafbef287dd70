//! Starting the runs of schedules when they are due.

use std::{sync::Arc, time::Duration};

use nephos_types::{Result, Timestamp};

use super::{Engine, Inner};
use crate::{
    journal::{Journal, Revision, SaveError},
    schedule::{Schedule, ScheduleStore, due, slot_run_id},
};

/// How often schedules are looked at even if none is due, in case a change was not announced.
const LOOK_EVERY: Duration = Duration::from_secs(30);

impl<J: Journal> Engine<J> {
    /// Starts runs of these schedules from now on, in the background.
    pub fn keep_schedules(&self, store: Arc<dyn ScheduleStore>) {
        self.inner().spawn(|inner| async move { inner.keep_schedules(&*store).await });
    }

    /// A schedule was made, changed or removed: look at them all soon.
    pub fn schedules_changed(&self) {
        self.inner().schedules_changed.notify_one();
    }
}

impl<J: Journal> Inner<J> {
    async fn keep_schedules(self: &Arc<Self>, store: &dyn ScheduleStore) {
        loop {
            let look_again = self.clock.now().plus(LOOK_EVERY);
            let next = match store.load().await {
                Ok(schedules) => self.fire_due(store, schedules).await,
                Err(error) => {
                    tracing::warn!(error = %error.chain(), "schedules cannot be read");
                    None
                }
            };
            let until = next.map_or(look_again, |next| next.min(look_again));
            tokio::select! {
                () = self.clock.sleep_until(until) => {}
                () = self.schedules_changed.notified() => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Fires what is due; returns when the next slot is.
    async fn fire_due(
        self: &Arc<Self>,
        store: &dyn ScheduleStore,
        schedules: Vec<(Schedule, Revision)>,
    ) -> Option<Timestamp> {
        let mut next = None;
        for (schedule, revision) in schedules {
            let id = schedule.id;
            match self.fire_one(store, schedule, revision).await {
                Ok(then) => next = [next, then].into_iter().flatten().min(),
                Err(error) => tracing::warn!(schedule = %id, error = %error.chain(), "a schedule cannot be kept"),
            }
        }
        next
    }

    async fn fire_one(
        self: &Arc<Self>,
        store: &dyn ScheduleStore,
        mut schedule: Schedule,
        revision: Revision,
    ) -> Result<Option<Timestamp>> {
        let due = due(&schedule, self.clock.now())?;
        let Some(last_slot) = due.last_slot else { return Ok(due.next) };
        let mut runs = vec![];
        if schedule.overlap || !self.is_open(schedule.last_run).await? {
            for slot in &due.fire {
                let mut run =
                    self.prepare(&schedule.definition, slot_run_id(schedule.id, *slot), (*schedule.input).clone())?;
                run.subject = Arc::clone(&schedule.subject);
                run.project = schedule.project;
                run.author = Arc::clone(&schedule.author);
                schedule.last_run = Some(run.id);
                runs.push(run);
            }
        } else if !due.fire.is_empty() {
            tracing::info!(schedule = %schedule.id, "the run of an earlier slot is still open; this one is skipped");
        }
        schedule.last_slot = last_slot;
        let ids: Vec<_> = runs.iter().map(|run| run.id).collect();
        match store.fire(schedule, revision, runs).await {
            Ok(()) => {
                for id in ids {
                    if let Some(stored) = self.journal.get(id).await? {
                        self.adopt(stored).await?;
                    }
                }
            }
            // Changed, or fired by somebody else, at this moment: the next look sees it as it is.
            Err(SaveError::Fenced | SaveError::Conflict | SaveError::Exists) => self.schedules_changed.notify_one(),
            Err(SaveError::Unavailable(error) | SaveError::Effects(error)) => return Err(error),
        }
        Ok(due.next)
    }

    async fn is_open(&self, run: Option<nephos_types::WorkflowId>) -> Result<bool> {
        let Some(id) = run else { return Ok(false) };
        Ok(self.journal.get(id).await?.is_some_and(|stored| !stored.run.state.is_closed()))
    }
}
