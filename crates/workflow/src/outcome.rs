//! What a step function answers: a value, that it waits, or why it failed.

use std::{sync::Arc, time::Duration};

use nephos_types::{Error, ErrorKind};

use crate::run::{MAX_KEYS, MAX_NAME, truncated};

/// A step's good answer: its value or a wait, and effects to commit together with the record of it.
#[derive(Debug)]
pub struct Done<T, E> {
    pub(crate) outcome: Outcome<T>,
    pub(crate) effects: Option<E>,
}

#[derive(Debug)]
pub(crate) enum Outcome<T> {
    Value(T),
    Wait { keys: Keys, recheck_after: Duration },
}

impl<T, E> Done<T, E> {
    /// The step is done and gives this to later steps.
    pub fn value(value: T) -> Self {
        Self { outcome: Outcome::Value(value), effects: None }
    }

    /// The step is not done: call it again when one of the keys is signalled, and after that time in any case.
    ///
    /// No keys make a mere delay, which survives restarts with its end unchanged.
    pub fn wait(keys: impl Into<Keys>, recheck_after: Duration) -> Self {
        Self { outcome: Outcome::Wait { keys: keys.into(), recheck_after }, effects: None }
    }

    /// Call the step again after this time.
    #[must_use]
    pub fn after(delay: Duration) -> Self {
        Self::wait(Keys::default(), delay)
    }

    /// With another value instead, once there is one.
    #[must_use]
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Done<U, E> {
        let outcome = match self.outcome {
            Outcome::Value(value) => Outcome::Value(change(value)),
            Outcome::Wait { keys, recheck_after } => Outcome::Wait { keys, recheck_after },
        };
        Done { outcome, effects: self.effects }
    }

    /// With effects that are committed together with this answer. Effects of a wait are, too.
    #[must_use]
    pub fn with(mut self, effects: E) -> Self {
        self.effects = Some(effects);
        self
    }
}

/// Signals to wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(pub(crate) Vec<Arc<str>>);

impl Keys {
    fn collect<K: Into<String>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self(keys.into_iter().take(MAX_KEYS).map(|key| truncated(key.into(), MAX_NAME).into()).collect())
    }
}

impl From<&str> for Keys {
    fn from(key: &str) -> Self {
        Self::collect([key])
    }
}

impl From<String> for Keys {
    fn from(key: String) -> Self {
        Self::collect([key])
    }
}

impl<K: Into<String>> From<Vec<K>> for Keys {
    fn from(keys: Vec<K>) -> Self {
        Self::collect(keys)
    }
}

impl<K: Into<String>, const N: usize> From<[K; N]> for Keys {
    fn from(keys: [K; N]) -> Self {
        Self::collect(keys)
    }
}

/// Why an attempt failed, and whether another may help.
#[derive(Clone, Debug)]
pub struct Failure {
    pub(crate) error: Error,
    pub(crate) retry: bool,
}

impl Failure {
    /// Another attempt may succeed; the step's retry policy says when and how often.
    #[must_use]
    pub fn retry(error: Error) -> Self {
        Self { error, retry: true }
    }

    /// No attempt will succeed.
    #[must_use]
    pub fn fatal(error: Error) -> Self {
        Self { error, retry: false }
    }

    /// Why.
    #[must_use]
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// Whether another attempt may help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retry
    }
}

impl From<Error> for Failure {
    /// Retried if the error's kind says that the same call may succeed later. A record that changed under a step
    /// ([`ErrorKind::Precondition`]) counts as such: the next attempt reads it again.
    fn from(error: Error) -> Self {
        let retry = error.retryable() || error.kind == ErrorKind::Precondition;
        Self { error, retry }
    }
}
