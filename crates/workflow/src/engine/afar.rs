//! Runs and engines elsewhere: what other engines on the same journal save, as it is noticed here.

use std::{
    collections::hash_map::Entry,
    sync::{Arc, MutexGuard, PoisonError},
};

use nephos_types::{Result, WorkflowId};
use tokio::sync::watch;

use super::{Engine, Inner};
use crate::{
    journal::{Journal, Stored},
    run::{Run, settled_key},
};

type Watchers = std::collections::HashMap<WorkflowId, watch::Sender<Arc<Run>>>;

impl<J: Journal> Engine<J> {
    /// Another engine may have saved this run: shows it to those who watch, wakes what waits for its end, and if this
    /// engine holds it, finds a request to cancel it, or that it was taken away. To be told in the order of the saves;
    /// saves of this engine's own do no harm.
    pub async fn noticed(&self, stored: Stored) {
        let inner = self.inner();
        let (id, settled) = (stored.run.id, stored.run.state.is_settled());
        inner.show_from_afar(&stored.run);
        let held_here = inner.registry().get(id).map(Arc::clone);
        match held_here {
            Some(cell) => {
                let mut held = cell.held.lock().await;
                if stored.revision <= held.revision || held.lost {
                    return;
                }
                let ours = stored.run.fence() == held.fence && stored.run.sequence == held.run.sequence;
                if ours {
                    held.run = stored.run;
                    held.revision = stored.revision;
                    if held.run.cancel_requested {
                        cell.cancel.cancel();
                    }
                } else {
                    held.lost = true;
                }
                drop(held);
                inner.wake(id, None);
                cell.notify.notify_one();
            }
            None if settled => inner.signal(&settled_key(id)),
            None => {}
        }
    }
}

impl<J: Journal> Inner<J> {
    fn afar(&self) -> MutexGuard<'_, Watchers> {
        self.afar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a run that another engine holds, now and whenever a change of it is noticed.
    pub(super) async fn watch_from_afar(self: &Arc<Self>, run: Arc<Run>) -> Result<watch::Receiver<Arc<Run>>> {
        let id = run.id;
        let receiver = match self.afar().entry(id) {
            Entry::Occupied(known) => known.get().subscribe(),
            Entry::Vacant(new) => new.insert(watch::Sender::new(run)).subscribe(),
        };
        // What was saved before anybody looked is not noticed again.
        if let Some(Stored { run, .. }) = self.journal.get(id).await? {
            self.show_from_afar(&run);
        }
        Ok(receiver)
    }

    fn show_from_afar(&self, run: &Arc<Run>) {
        let mut afar = self.afar();
        let Some(watchers) = afar.get(&run.id) else { return };
        watchers.send_if_modified(|shown| {
            let newer = run.sequence > shown.sequence || run.state.is_settled() && !shown.state.is_settled();
            if newer {
                *shown = Arc::clone(run);
            }
            newer
        });
        if run.state.is_settled() || watchers.receiver_count() == 0 {
            afar.remove(&run.id);
        }
    }
}
