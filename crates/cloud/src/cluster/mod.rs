//! Several processes of the control plane on one database: which of them are at work, what they share, what each must
//! be told of the others' changes, and how one version follows another.
//!
//! Each has a record and writes it every few seconds. Whoever sees no new beat of another while several of its own
//! beats were acknowledged takes that one for dead: an own acknowledged beat means that everything before it was seen,
//! so an outage of the database makes nobody look dead. To be wrong costs work done in vain, never a wrong result: what
//! counts is fenced by the records' revisions.
//!
//! Must not know: what any workflow does, how guests are run.

mod follow;
mod migrate;
mod secrets;
mod turn;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nephos_store::{Author, CommitError, Draft, Kind, Kinds, Query, Record, Store, Transaction};
use nephos_types::{ControllerId, Error, Result};
use nephos_workflow::Holders;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub(crate) use follow::follow;
pub use migrate::migrate;
pub(crate) use secrets::{SharedSecrets, SharedTokenKeys, share};
pub use turn::{Succession, Successor};

/// How often a process says that it is at work.
const BEAT: Duration = Duration::from_secs(3);
/// After so many own beats without one of another, that one is dead.
const SILENT: u64 = 4;
/// After so many, its record goes.
const FORGOTTEN: u64 = 100;

/// A process of the control plane. Changes with every beat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    /// The name by which it holds workflows and nodes; another one after each start.
    pub name: String,
    /// Where agents reach it: `HOST:PORT`.
    pub node_address: String,
    /// The version of its program.
    #[serde(default)]
    pub version: String,
    /// How often it has said that it is at work.
    pub beats: u64,
}

impl Kind for Controller {
    type Id = ControllerId;
    const NAME: &'static str = "controller";
    const AUDITED: bool = false;
}

/// The kinds that several processes need.
#[must_use]
pub(crate) fn kinds(kinds: Kinds) -> Kinds {
    kinds.with::<Controller>().with::<SharedSecrets>()
}

/// How many processes are at work, or were a short time ago; 0 where the database is not shared.
#[must_use]
pub(crate) fn processes(store: &Store) -> usize {
    store.count::<Controller>(&Query::all())
}

/// This process among the others.
pub struct Peers {
    store: Store,
    id: ControllerId,
    name: Arc<str>,
    node_address: String,
    seen: Mutex<Seen>,
    /// Somebody has died.
    death: Notify,
}

/// What was seen of the others.
#[derive(Default)]
struct Seen {
    /// Own beats that were acknowledged.
    mine: u64,
    /// Of each other process by name: its beats, and what `mine` was when they were seen first.
    others: HashMap<String, (u64, u64)>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Peers {
    /// Makes this process known.
    pub(crate) async fn join(store: Store, node_address: String) -> Result<Arc<Self>> {
        let id = ControllerId::new();
        let peers = Arc::new(Self {
            store,
            id,
            name: id.to_string().into(),
            node_address,
            seen: Mutex::default(),
            death: Notify::new(),
        });
        peers.beat().await?;
        Ok(peers)
    }

    /// By which this process holds workflows and nodes.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where agents reach this process.
    #[must_use]
    pub fn node_address(&self) -> &str {
        &self.node_address
    }

    /// Where agents reach this process and the others that are at work, this one first.
    #[must_use]
    pub fn node_addresses(&self) -> Vec<String> {
        let others = self.others();
        let living = others.iter().filter(|other| self.may_live(&other.body.name));
        let mut all = vec![self.node_address.clone()];
        all.extend(living.map(|other| other.body.node_address.clone()));
        all.dedup();
        all
    }

    /// Whether another process is known, dead or alive.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.others().is_empty()
    }

    fn others(&self) -> Vec<Arc<Record<Controller>>> {
        let mut all = self.store.list::<Controller>(&Query::all()).items;
        all.retain(|record| record.meta.id != self.id);
        all
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that this process is at work, and looks which others are.
    async fn beat(&self) -> Result<()> {
        let author = Author::new("controller").source(self.id);
        let transaction = match self.store.get::<Controller>(self.id) {
            Some(record) => Transaction::new(author).save(record.edit().modify(|body| body.beats += 1)),
            // The first, or others took this process for dead long ago.
            None => {
                let (name, node_address) = (self.name.to_string(), self.node_address.clone());
                let version = env!("CARGO_PKG_VERSION").to_owned();
                let body = Controller { name, node_address, version, beats: 1 };
                Transaction::new(author).create(Draft::new(self.id, body))
            }
        };
        self.store.commit(transaction).await.map_err(Error::from)?;
        for forgotten in self.look() {
            let name = forgotten.body.name.clone();
            let gone = Transaction::new(Author::new("controller").source(self.id)).delete(&forgotten);
            match self.store.commit(gone).await {
                Ok(_) => tracing::info!(name, "a controller that ended long ago is forgotten"),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Counts an own beat against the others'; answers those that can be forgotten.
    fn look(&self) -> Vec<Arc<Record<Controller>>> {
        let others = self.others();
        let mut seen = self.seen();
        seen.mine += 1;
        let mine = seen.mine;
        let before = seen.others.len();
        seen.others.retain(|name, _| others.iter().any(|other| other.body.name == *name));
        // One that ended in order has taken its record away.
        let mut death = seen.others.len() < before;
        let mut forgotten = vec![];
        for other in others {
            let body = &other.body;
            match seen.others.get_mut(&body.name) {
                Some((beats, at)) if *beats == body.beats => {
                    let silent = mine.saturating_sub(*at);
                    if silent == SILENT {
                        tracing::warn!(name = body.name, "another controller is silent; its work is taken over");
                        death = true;
                    }
                    if silent >= FORGOTTEN {
                        forgotten.push(other);
                    }
                }
                _ => drop(seen.others.insert(body.name.clone(), (body.beats, mine))),
            }
        }
        if death {
            self.death.notify_one();
        }
        forgotten
    }

    /// Beats until the store is closed.
    pub(crate) async fn keep_beating(self: Arc<Self>) {
        loop {
            tokio::time::sleep(BEAT).await;
            if let Err(error) = self.beat().await {
                if error.code == "shutting_down" {
                    return;
                }
                tracing::warn!(error = %error.chain(), "the other controllers could not be told that this one is at work");
            }
        }
    }

    /// Waits until another process has died since the last call.
    pub(crate) async fn death(&self) {
        self.death.notified().await;
    }

    /// Takes this process's record away, so that the others take over at once.
    pub(crate) async fn leave(&self) -> Result<()> {
        let Some(record) = self.store.get::<Controller>(self.id) else { return Ok(()) };
        let author = Author::new("controller").source(self.id);
        self.store.commit(Transaction::new(author).delete(&record)).await.map(drop).map_err(Into::into)
    }
}

impl Holders for Peers {
    fn may_live(&self, holder: &str) -> bool {
        if *self.name == *holder {
            return true;
        }
        let known = self.others().into_iter().find(|other| other.body.name == holder);
        // Whoever holds something has made itself known before.
        let Some(known) = known else { return false };
        let seen = self.seen();
        match seen.others.get(holder) {
            Some((beats, at)) => *beats != known.body.beats || seen.mine.saturating_sub(*at) < SILENT,
            None => true,
        }
    }
}
