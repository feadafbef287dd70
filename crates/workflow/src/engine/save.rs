//! Saving a run, and finding out what happened when a save was not simply acknowledged.

use std::{sync::Arc, time::Duration};

use nephos_types::Error;

use super::{
    Inner,
    cell::{Cell, Held},
};
use crate::{
    journal::{Journal, SaveError},
    run::{Lease, Run, RunState},
};

/// What became of a save.
#[derive(Debug)]
pub(super) enum Saved {
    /// It took place, effects included.
    Yes,
    /// It did not, because the effects are refused.
    Refused(Error),
    /// It did not, and the effects are gone: the step must be called again to make them anew.
    Again,
    /// The run is somebody else's now, or the engine stops.
    Lost,
}

impl<J: Journal> Inner<J> {
    /// Saves what `change` makes of the run. Without effects it is repeated until its fate is known.
    pub(super) async fn save(
        &self,
        cell: &Cell<J::Effects>,
        held: &mut Held,
        change: impl Fn(&mut Run),
        mut effects: Option<J::Effects>,
    ) -> Saved {
        let with_effects = effects.is_some();
        let mut pause = Duration::from_millis(20);
        loop {
            if held.lost {
                return Saved::Lost;
            }
            let mut next = Run::clone(&held.run);
            cell.write_progress(&mut next);
            change(&mut next);
            let now = self.clock.now();
            next.sequence += 1;
            next.updated_at = now;
            next.lease = (!next.state.is_closed()).then(|| Lease {
                holder: Arc::clone(&self.config.name),
                until: lease_end(&next, now).plus(self.config.lease),
                fence: held.fence,
            });
            let next = Arc::new(next);
            let answer = self.journal.save(Arc::clone(&next), held.revision, effects.take().unwrap_or_default()).await;
            match answer {
                Ok(revision) => {
                    held.run = next;
                    held.revision = revision;
                    cell.watchers.send_replace(Arc::clone(&held.run));
                    return Saved::Yes;
                }
                Err(SaveError::Effects(error)) if with_effects => return Saved::Refused(error),
                Err(SaveError::Conflict) if with_effects => {
                    // The run itself may be what changed; then the next save would meet the same conflict.
                    return match self.reread(cell, held, &next).await {
                        Saved::Again if held.lost => Saved::Lost,
                        other => other,
                    };
                }
                Err(error) => {
                    tracing::warn!(workflow = %cell.id, ?error, "saving a workflow met a problem");
                    match self.reread(cell, held, &next).await {
                        Saved::Again if !with_effects => {}
                        outcome => return outcome,
                    }
                    if matches!(error, SaveError::Unavailable(_)) && !self.pause(pause).await {
                        return Saved::Lost;
                    }
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    /// Reads the run again to learn whether `attempted` was saved (`Yes`), was not (`Again`, the newest stored form now
    /// being held), or cannot be any more (`Lost`).
    async fn reread(&self, cell: &Cell<J::Effects>, held: &mut Held, attempted: &Run) -> Saved {
        let mut pause = Duration::from_millis(20);
        loop {
            match self.journal.get(cell.id).await {
                Ok(Some(stored)) => {
                    let fence = stored.run.fence();
                    let ours = fence == held.fence || fence == held.run.fence();
                    // A closed run has no lease; only our own attempt can have closed it under our fence.
                    let landed = stored.run.sequence == attempted.sequence
                        && (fence == held.fence || attempted.state.is_closed() && stored.run.state == attempted.state);
                    if !landed && (!ours || stored.run.sequence != held.run.sequence) {
                        held.lost = true;
                        return Saved::Lost;
                    }
                    if stored.run.cancel_requested {
                        cell.cancel.cancel();
                    }
                    held.run = stored.run;
                    held.revision = stored.revision;
                    cell.watchers.send_replace(Arc::clone(&held.run));
                    return if landed { Saved::Yes } else { Saved::Again };
                }
                Ok(None) => {
                    held.lost = true;
                    return Saved::Lost;
                }
                Err(error) => {
                    tracing::warn!(workflow = %cell.id, error = %error.chain(), "reading a workflow met a problem");
                    if !self.pause(pause).await {
                        held.lost = true;
                        return Saved::Lost;
                    }
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    /// Sleeps; false if the engine stops meanwhile.
    pub(super) async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = self.clock.sleep_until(self.clock.now().plus(time)) => true,
        }
    }
}

/// Up to when the holder may have nothing to do for the run, and so not renew its lease.
fn lease_end(run: &Run, now: nephos_types::Timestamp) -> nephos_types::Timestamp {
    match run.state {
        RunState::Waiting => run
            .steps
            .iter()
            .filter_map(|step| Some(step.wait.as_ref()?.until))
            .min()
            .map_or(now, |until| until.max(now)),
        _ => now,
    }
}
