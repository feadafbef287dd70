//! What is known of a node in memory only: when it was last heard, and that it is to be woken.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nephos_types::{NodeId, Timestamp};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Node, Nodes, Reachable, streams::Pending};

/// How often silent nodes are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Live {
    /// Changes with what the node should do. Starts at the clock, so that it differs from those of earlier runs.
    revision: watch::Sender<u64>,
    state: Mutex<State>,
    /// Reports are taken in one after the other.
    pub(super) reporting: tokio::sync::Mutex<()>,
}

pub(super) struct State {
    /// When the node was last heard; at first, when this run began, so that all get the same grace.
    pub(super) heard: Instant,
    /// It has said hello in this run.
    pub(super) greeted: bool,
    /// The time of the latest report, by the node's own clock.
    pub(super) reported: Timestamp,
    /// As in the store, or about to be.
    pub(super) reachable: Reachable,
    /// Streams that somebody waits for.
    pub(super) streams: Vec<Pending>,
}

impl Live {
    pub(super) fn new(reachable: Reachable) -> Self {
        let start = u64::try_from(Timestamp::now().as_micros()).unwrap_or_default();
        Self {
            revision: watch::Sender::new(start),
            state: Mutex::new(State {
                heard: Instant::now(),
                greeted: false,
                reported: Timestamp::default(),
                reachable,
                streams: vec![],
            }),
            reporting: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the node should do has changed.
    pub(super) fn change(&self) {
        self.revision.send_modify(|revision| *revision += 1);
    }

    pub(super) fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

impl Nodes {
    /// Notices which nodes have gone silent, until `shutdown`.
    pub async fn watch_over(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let silent: Vec<NodeId> = {
                let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
                live.iter()
                    .filter(|(id, live)| {
                        let record = self.settings.peers.as_ref().and_then(|_| self.store.get::<Node>(**id));
                        let mut state = live.state();
                        if let Some(record) = record.filter(|record| self.is_heard_elsewhere(&record.body)) {
                            // Should that process die, the node has from then on time to come here.
                            state.heard = Instant::now();
                            state.reachable = record.body.reachable;
                            return false;
                        }
                        let silent =
                            state.reachable == Reachable::Up && state.heard.elapsed() > self.settings.silent_after;
                        if silent {
                            state.reachable = Reachable::Down;
                        }
                        silent
                    })
                    .map(|(id, _)| *id)
                    .collect()
            };
            // All at once, so that they share a group commit.
            futures_util::future::join_all(silent.into_iter().map(|node| self.write_reachable(node))).await;
        }
    }

    /// A node was heard; writes it down if that is news.
    pub(super) async fn heard(&self, node: NodeId, live: &Live) {
        let news = {
            let mut state = live.state();
            state.heard = Instant::now();
            std::mem::replace(&mut state.reachable, Reachable::Up) != Reachable::Up
        };
        if news {
            self.write_reachable(node).await;
        }
    }

    /// Writes down whether a node is heard of, as it is known by now.
    pub(super) async fn write_reachable(&self, node: NodeId) {
        let Ok(live) = self.live(node) else { return };
        loop {
            match self.amend("liveness", node, |record| record.reach(live.state().reachable)).await {
                // Somebody else may have written what was so a moment earlier, and after this looked.
                Ok(record) if record.body.reachable != live.state().reachable => {}
                Ok(record) => {
                    let name = record.meta.name.as_ref().map_or("", |name| name.as_str());
                    if record.body.reachable == Reachable::Up {
                        tracing::info!(%node, name, "the node is up");
                    } else {
                        let silent_for_s = live.state().heard.elapsed().as_secs();
                        tracing::warn!(%node, name, silent_for_s, "the node is down: nothing was heard of it");
                    }
                    return;
                }
                Err(error) => {
                    tracing::warn!(%node, error = %error.chain(), "whether the node is up could not be written");
                    return;
                }
            }
        }
    }
}
