//! How a commit or a watch fails, and what that is in terms of the one error.

use std::fmt;

use nephos_types::{Error, ErrorKind};

use crate::{Revision, backend::Refusal};

/// Why a transaction was not applied. Nothing of it has happened.
#[derive(Clone, Debug, PartialEq)]
pub enum CommitError {
    /// A record changed since it was read, or is gone: read again and decide again.
    Conflict {
        /// The kind's name.
        kind: String,
        /// The id.
        id: String,
    },
    /// A record that was to be created exists.
    Exists {
        /// The kind's name.
        kind: String,
        /// The id.
        id: String,
    },
    /// A unique claim has another owner.
    Taken {
        /// What is claimed.
        key: String,
        /// Who holds it.
        owner: String,
    },
    /// A counter would have left its bound.
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
    /// The transaction is malformed or too large, the disk failed, or the store is closing. After a failure of the
    /// disk, whether it was kept is known only when the store is opened again.
    Failed(Error),
}

impl CommitError {
    /// Whether reading again and trying again is the answer.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}

impl From<Refusal> for CommitError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Conflict { kind, id } => Self::Conflict { kind, id },
            Refusal::Exists { kind, id } => Self::Exists { kind, id },
            Refusal::Taken { key, owner } => Self::Taken { key, owner },
            Refusal::Exceeded { counter, value, amount, limit } => Self::Exceeded { counter, value, amount, limit },
        }
    }
}

impl From<Error> for CommitError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict { kind, id } => write!(f, "{kind} `{id}` changed meanwhile"),
            Self::Exists { kind, id } => write!(f, "{kind} `{id}` exists already"),
            Self::Taken { key, owner } => write!(f, "`{key}` is held by `{owner}`"),
            Self::Exceeded { counter, value, amount, limit } => {
                write!(f, "`{counter}` is at {value}; {amount:+} would pass the limit of {limit}")
            }
            Self::Failed(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl std::error::Error for CommitError {}

impl From<CommitError> for Error {
    /// For where the caller has nothing better to say; an operation that knows what a claim or counter means should
    /// say that. The owner of a claim is not told: it may belong to somebody else.
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict { kind, id } => {
                Self::conflict("changed_meanwhile", format!("{kind} `{id}` was changed by somebody else meanwhile"))
                    .next("look at it again and repeat the request if it is still wanted", None)
            }
            CommitError::Exists { kind, id } => {
                Self::conflict("already_exists", format!("{kind} `{id}` exists already"))
            }
            CommitError::Taken { key, .. } => Self::conflict("already_taken", "Already in use by something else")
                .detail(format!("`{key}` is taken"))
                .next("choose another name or address, or remove what uses it", None),
            CommitError::Exceeded { counter, value, amount, limit } => {
                Self::new(ErrorKind::Quota, "limit_exceeded", "A limit stands against it")
                    .reason(&counter, "limit", format!("used {value}, wanted {amount} more, limit {limit}"))
                    .next("free something, or ask an operator for a higher limit", None)
            }
            CommitError::Failed(error) => error,
        }
    }
}

/// Why a watch cannot go on.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchError {
    /// The changes asked for are no longer (or, after a restore, not) known: list again and watch from
    /// [`crate::Store::revision`].
    Compacted {
        /// The oldest revision from which a watch may start.
        oldest: Revision,
    },
    /// The disk failed, or the store was closed.
    Failed(Error),
}

impl fmt::Display for WatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compacted { oldest } => write!(f, "changes are kept from revision {oldest} on"),
            Self::Failed(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl std::error::Error for WatchError {}

impl From<Error> for WatchError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<WatchError> for Error {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Compacted { oldest } => {
                Self::new(ErrorKind::Precondition, "compacted", "The changes after that revision are not kept any more")
                    .detail(format!("the oldest revision to watch from is {oldest}"))
                    .next("list again what you follow, and start again from now", Some("nephos event watch".into()))
            }
            WatchError::Failed(error) => error,
        }
    }
}

/// The store was closed.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "shutting_down", "The cloud is shutting down").next("try again shortly", None)
}
