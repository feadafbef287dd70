//! What an SQL engine must do for the store: the contract that SQLite and PostgreSQL fulfil.
//!
//! Everything here is raw: kinds and ids are text, a record is one JSON text that only `stored` understands. Several
//! processes may share one backend, so expectations, claims and bounds are checked inside the SQL transaction and never
//! against an image in memory. The contract tests in `tests/it/contract.rs` are written against this trait.
//!
//! A backend that several processes share is [`Shared`] besides: it keeps what each batch did to records, claims and
//! counters, in the order of their [`Sequence`], so that each process can follow the others.

use std::{fmt, future::Future, path::PathBuf, pin::Pin, sync::Arc};

use futures_util::Stream;
use nephos_types::{Result, Timestamp};
use serde::{Deserialize, Serialize};

use crate::change::{Action, Author};

/// A boxed future, so that [`Backend`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// A boxed stream, likewise.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

/// A position in the total order of changes. Each written record has its own; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// Before the first change.
    pub const ZERO: Self = Self(0);

    /// The next one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A position in the order of the batches that wrote something, for backends that are [`Shared`]; others always say 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The next one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A record as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRecord {
    /// The kind's name.
    pub kind: String,
    /// The id in its text form.
    pub id: String,
    /// When it was last written.
    pub revision: Revision,
    /// Everything else as JSON.
    pub data: String,
}

/// One part of what [`Backend::load`] yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Always the first item.
    Position {
        /// The newest revision given out.
        newest: Revision,
        /// The change log is complete after this revision; up to it, only audited changes may remain.
        compacted: Revision,
        /// The newest batch whose effects are in what follows.
        sequence: Sequence,
    },
    /// A record.
    Record(RawRecord),
    /// A unique claim.
    Claim {
        /// What is claimed.
        key: String,
        /// Who holds it.
        owner: String,
    },
    /// A counter that is not zero.
    Counter {
        /// Its name.
        key: String,
        /// Its value.
        value: i64,
    },
}

/// A record must still be at this revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawExpectation {
    /// The kind's name.
    pub kind: &'static str,
    /// The id.
    pub id: String,
    /// The revision at which it was read.
    pub revision: Revision,
}

/// One record to be written or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawWrite {
    /// The kind's name.
    pub kind: &'static str,
    /// The id.
    pub id: String,
    /// What is done.
    pub action: Action,
    /// The revision it must be at; meaningless when it is created (then it must not exist).
    pub expected: Revision,
    /// The owning project, for the change log.
    pub project: Option<String>,
    /// The new stored form; `None` when deleted.
    pub data: Option<String>,
    /// Whether the change log keeps the stored form from before.
    pub audited: bool,
}

/// A step on a unique claim; steps apply in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawClaim {
    /// Take it, unless somebody else holds it.
    Take {
        /// What is claimed.
        key: String,
        /// For whom.
        owner: String,
    },
    /// Give it back; nothing happens unless this owner holds it.
    Release {
        /// What is given back.
        key: String,
        /// By whom.
        owner: String,
    },
}

/// What a counter's value must satisfy after a step towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// No bound.
    Any,
    /// An increase must not lead above this. A decrease is never refused.
    AtMost(i64),
    /// A decrease must not lead below this. An increase is never refused.
    AtLeast(i64),
}

impl Bound {
    /// The new value, or the limit that stands against it.
    pub fn step(self, value: i64, amount: i64) -> Result<i64, i64> {
        let limit = if amount < 0 { i64::MIN } else { i64::MAX };
        let new = value.checked_add(amount).ok_or(limit)?;
        match self {
            Self::AtMost(limit) if amount > 0 && new > limit => Err(limit),
            Self::AtLeast(limit) if amount < 0 && new < limit => Err(limit),
            _ => Ok(new),
        }
    }
}

/// A step on a counter; steps apply in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawAdd {
    /// The counter's name.
    pub key: String,
    /// How much, either way.
    pub amount: i64,
    /// What refuses it.
    pub bound: Bound,
}

/// A transaction ready for the engine. No record is written twice in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTransaction {
    /// For the change log.
    pub author: Arc<Author>,
    /// For the change log.
    pub at: Timestamp,
    /// Checked before anything is written.
    pub expectations: Vec<RawExpectation>,
    /// In the order of the revisions they get.
    pub writes: Vec<RawWrite>,
    /// In order.
    pub claims: Vec<RawClaim>,
    /// In order.
    pub adds: Vec<RawAdd>,
}

/// Why a transaction was refused. Ordinary: the caller reads again and decides again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A record changed, or is gone.
    Conflict {
        /// The kind's name.
        kind: String,
        /// The id.
        id: String,
    },
    /// A record to be created exists.
    Exists {
        /// The kind's name.
        kind: String,
        /// The id.
        id: String,
    },
    /// Somebody else holds a claim.
    Taken {
        /// What is claimed.
        key: String,
        /// Who holds it.
        owner: String,
    },
    /// A counter would leave its bound.
    Exceeded {
        /// Its name.
        counter: String,
        /// Its value without the refused step.
        value: i64,
        /// The refused step.
        amount: i64,
        /// The bound.
        limit: i64,
    },
}

/// What an accepted transaction got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Of its last write; write `i` of `n` has `last - n + 1 + i`. For a transaction without writes, the newest
    /// revision when it was accepted.
    pub last: Revision,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// One for each transaction, in their order.
    pub results: Vec<Result<Accepted, Refusal>>,
    /// The newest batch before this one: the results rest on what others wrote up to it.
    pub follows: Sequence,
    /// This batch's own place, right after `follows`, if it wrote anything.
    pub sequence: Option<Sequence>,
}

/// A row of the change log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawChange {
    /// Of this write.
    pub revision: Revision,
    /// Of the last write in the same transaction.
    pub commit: Revision,
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub author: Author,
    /// The kind's name.
    pub kind: String,
    /// The id.
    pub id: String,
    /// The owning project.
    pub project: Option<String>,
    /// What was done.
    pub action: Action,
    /// The revision before; `None` when created.
    pub before_revision: Option<Revision>,
    /// The stored form before, if the kind is audited.
    pub before: Option<String>,
    /// The stored form after; `None` when deleted.
    pub after: Option<String>,
}

/// Which part of the change log is wanted. All conditions hold together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeFilter {
    /// Only later ones.
    pub after: Revision,
    /// Only earlier ones.
    pub before: Option<Revision>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only of this id.
    pub id: Option<String>,
    /// Only of this project.
    pub project: Option<String>,
    /// Only by this actor.
    pub actor: Option<String>,
    /// From the newest down instead of from the oldest up.
    pub newest_first: bool,
    /// At most this many.
    pub limit: usize,
}

/// What may be forgotten of the change log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trim {
    /// Changes up to here may be dropped if they are not audited: no watch starts before.
    pub watch: Revision,
    /// Changes up to here are dropped, audited or not.
    pub audit: Revision,
    /// As are those made before this time.
    pub before: Timestamp,
    /// Drop at most this many rows now, so that commits go on between calls.
    pub rows: usize,
}

/// What trimming achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trimmed {
    /// How many rows went.
    pub rows: usize,
    /// As in [`Loaded::Position`], now.
    pub compacted: Revision,
}

/// What one batch did, for the processes that did not write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawBatch {
    /// Its place.
    pub sequence: Sequence,
    /// Its changes in order, without what was `before`.
    pub changes: Vec<RawChange>,
    /// Who holds these claims after it; nobody if `None`.
    pub claims: Vec<(String, Option<String>)>,
    /// What these counters are after it.
    pub counters: Vec<(String, i64)>,
}

/// What a backend that several processes write to does besides.
pub trait Shared: Send + Sync {
    /// Some batches that follow one, in order and without a gap; none if there is none yet. Refuses with the code
    /// `fell_behind` if they are no longer kept.
    fn batches(&self, after: Sequence) -> BoxFuture<'_, Result<Vec<RawBatch>>>;

    /// The newest batch now.
    fn newest(&self) -> BoxFuture<'_, Result<Sequence>>;

    /// Waits until there may be batches after this one; ends now and then without any.
    fn news(&self, after: Sequence) -> BoxFuture<'_, ()>;
}

/// An SQL engine under the store.
///
/// All methods may be called concurrently. Errors are for a broken environment; a refused transaction is not an error.
pub trait Backend: Send + Sync + 'static {
    /// Everything there is, from one consistent view: first the position, then the rest in any order, in chunks.
    fn load(&self) -> BoxStream<Result<Vec<Loaded>>>;

    /// Applies a batch in order, each transaction whole or not at all, durable when it answers. Later ones see the
    /// effects of earlier ones. An error means that nothing of the batch is visible; if the disk failed while
    /// flushing, the backend refuses all later batches. A server that cannot be reached is waited for: for some time if
    /// it is certain that nothing was written, otherwise until that is found out or the backend is closed.
    fn apply(&self, batch: Vec<Arc<RawTransaction>>) -> BoxFuture<'_, Result<Applied>>;

    /// How to follow what other processes write; `None` if there can be none.
    fn shared(&self) -> Option<&dyn Shared> {
        None
    }

    /// Rows of the change log.
    fn changes(&self, filter: ChangeFilter) -> BoxFuture<'_, Result<Vec<RawChange>>>;

    /// Forgets old changes.
    fn trim(&self, trim: Trim) -> BoxFuture<'_, Result<Trimmed>>;

    /// Writes a consistent copy to a file that must not exist, while commits go on.
    fn backup(&self, path: PathBuf) -> BoxFuture<'_, Result<()>>;

    /// What is wrong with the storage itself, in words; empty when sound.
    fn check(&self) -> BoxFuture<'_, Result<Vec<String>>>;

    /// Waits no longer for a server that cannot be reached; called when closing begins.
    fn hurry(&self) {}

    /// Finishes what was handed over and lets go of files and locks.
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}
