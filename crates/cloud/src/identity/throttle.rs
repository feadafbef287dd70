//! Failed logins, counted in the store, so that whoever guesses gets no more tries by asking several processes.
//!
//! A login of somebody who has not failed writes nothing. What is kept of a key is a keyed hash of 64 bits: no name that
//! somebody mistyped (it may be a password) is in the database. There are never many more records than [`CAPACITY`]:
//! when there is no room, those whose wait ended first go.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use nephos_auth::{
    Vault,
    throttle::{Failures, Limits, too_many_attempts},
};
use nephos_store::{Author, CommitError, Draft, Kind, Query, Record, Store, Transaction};
use nephos_types::{Error, FailedLoginsId, Id, Result, Timestamp};
use serde::{Deserialize, Serialize};

/// Keys of each guard whose failures are remembered.
const CAPACITY: usize = 20_000;
/// How many go at once when there is no room, so that the cost of finding them is spread.
const MADE_ROOM: usize = 500;
/// How often a change of a record that others change, too, is tried: each time another one was counted.
const ROUNDS: usize = 100;

/// What failures are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Guard {
    /// Whoever somebody says to be.
    User,
    /// Where the call comes from.
    Address,
}

impl Guard {
    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Address => "address",
        }
    }

    fn limits(self) -> &'static Limits {
        match self {
            Self::User => &Limits::USER,
            Self::Address => &Limits::ADDRESS,
        }
    }
}

/// The failures of one user or address, under a keyed hash of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FailedLogins {
    guard: Guard,
    failures: Failures,
}

impl Kind for FailedLogins {
    type Id = FailedLoginsId;
    const NAME: &'static str = "failed_logins";
    const AUDITED: bool = false;
    const INDEXES: &'static [&'static str] = &["guard"];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            "guard" => vec![record.body.guard.name().to_owned()],
            _ => vec![],
        }
    }
}

/// Counts failures and holds up those who have many.
pub(super) struct Throttle {
    store: Store,
    /// How many processes share what may be under way.
    processes: fn(&Store) -> usize,
    /// Tries of this process that have no outcome yet.
    under_way: Mutex<HashMap<FailedLoginsId, usize>>,
    /// One at a time makes room.
    making_room: tokio::sync::Mutex<()>,
}

/// A try under way. Dropped without a verdict it counts as it did when it began.
#[must_use]
pub(super) struct Attempt<'a> {
    throttle: &'a Throttle,
    guard: Guard,
    id: FailedLoginsId,
    /// It counts as a failure already.
    counted: bool,
}

impl Throttle {
    pub(super) fn new(store: Store, processes: fn(&Store) -> usize) -> Self {
        Self { store, processes, under_way: Mutex::default(), making_room: tokio::sync::Mutex::default() }
    }

    /// Begins a try; refuses it while the key has to wait, or has too many under way. A refusal lengthens nothing.
    pub(super) async fn attempt(&self, vault: &Vault, guard: Guard, key: &str) -> Result<Attempt<'_>> {
        let id = FailedLoginsId::from_bits(vault.fingerprint(guard.name(), key));
        let limits = guard.limits();
        let mut attempt = self.begin(guard, id)?;
        for _ in 0..ROUNDS {
            let now = Timestamp::now();
            let known = self.store.get::<FailedLogins>(id);
            let failures = known.as_ref().map_or(Failures::default(), |known| known.body.failures.now(limits, now));
            let wait = failures.wait(limits, now);
            if !wait.is_zero() {
                return Err(too_many_attempts(wait));
            }
            let (Some(known), true) = (known, limits.one_by_one && failures.count >= limits.free) else {
                return Ok(attempt);
            };
            let counted = FailedLogins { guard, failures: failures.and_one(limits, now) };
            if self.commit(Transaction::new(author()).update(&known, counted)).await? {
                attempt.counted = true;
                return Ok(attempt);
            }
        }
        Err(too_many_attempts(limits.first))
    }

    /// Takes a place among the tries that are under way.
    fn begin(&self, guard: Guard, id: FailedLoginsId) -> Result<Attempt<'_>> {
        let share = (guard.limits().at_once / (self.processes)(&self.store).max(1)).max(1);
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let count = under_way.entry(id).or_default();
        if *count >= share {
            return Err(too_many_attempts(guard.limits().first));
        }
        *count += 1;
        Ok(Attempt { throttle: self, guard, id, counted: false })
    }

    /// Whether it was committed, and not decided on something that has changed meanwhile.
    async fn commit(&self, transaction: Transaction) -> Result<bool> {
        match self.store.commit(transaction).await {
            Ok(_) => Ok(true),
            Err(CommitError::Conflict { .. } | CommitError::Exists { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes those whose wait ended first, when there are too many.
    async fn make_room(&self, guard: Guard) -> Result<()> {
        let query = Query::all().index("guard", guard.name());
        if self.store.count::<FailedLogins>(&query) < CAPACITY {
            return Ok(());
        }
        let _turn = self.making_room.lock().await;
        if self.store.count::<FailedLogins>(&query) < CAPACITY {
            return Ok(());
        }
        let mut all = self.store.list::<FailedLogins>(&query).items;
        let place = MADE_ROOM.min(all.len());
        if place < all.len() {
            all.select_nth_unstable_by_key(place, |record| record.body.failures.until);
        }
        let gone = all.iter().take(place).fold(Transaction::new(author()), |all, one| all.delete(one));
        // Where somebody changed one of them, the next one tries again.
        self.commit(gone).await.map(drop)
    }

    /// Deletes what no longer counts; to be called now and then. Returns how many records went.
    pub(super) async fn sweep(&self) -> Result<usize> {
        let now = Timestamp::now();
        let all = self.store.list::<FailedLogins>(&Query::all()).items;
        let mut gone = 0;
        for record in all.iter().filter(|one| one.body.failures.are_forgotten(one.body.guard.limits(), now)) {
            // One that changed since has failed again.
            gone += usize::from(self.commit(Transaction::new(author()).delete(record)).await?);
        }
        Ok(gone)
    }
}

impl Attempt<'_> {
    /// The try failed: the next ones wait. An error if that could not be kept; then nobody may be told of the failure.
    pub(super) async fn failed(self) -> Result<()> {
        if self.counted {
            return Ok(());
        }
        let (throttle, guard) = (self.throttle, self.guard);
        for _ in 0..ROUNDS {
            let known = throttle.store.get::<FailedLogins>(self.id);
            let failures = known.as_ref().map_or(Failures::default(), |known| known.body.failures);
            let body = FailedLogins { guard, failures: failures.and_one(guard.limits(), Timestamp::now()) };
            let transaction = Transaction::new(author());
            let transaction = match known {
                Some(known) => transaction.update(&known, body),
                None => {
                    throttle.make_room(guard).await?;
                    transaction.create(Draft::new(self.id, body))
                }
            };
            if throttle.commit(transaction).await? {
                return Ok(());
            }
        }
        Err(Error::bug("a failed login could not be counted"))
    }

    /// The try succeeded: earlier failures are forgotten.
    pub(super) async fn succeeded(self) {
        for _ in 0..ROUNDS {
            let Some(known) = self.throttle.store.get::<FailedLogins>(self.id) else { return };
            match self.throttle.commit(Transaction::new(author()).delete(&known)).await {
                Ok(true) => return,
                Ok(false) => {}
                // Who has proved to be somebody gets in; the failures are forgotten later.
                Err(error) => return tracing::warn!(error = %error.chain(), "failed logins could not be forgotten"),
            }
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut under_way = self.throttle.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = under_way.get_mut(&self.id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                under_way.remove(&self.id);
            }
        }
    }
}

fn author() -> Author {
    Author::new("cloud").operation("token.create")
}

#[cfg(test)]
mod tests {
    use nephos_auth::KeyRing;
    use nephos_store::{Kinds, Sqlite};

    use super::*;

    async fn open() -> (tempfile::TempDir, Store, Vault) {
        let folder = tempfile::tempdir().unwrap();
        let backend = Sqlite::open(folder.path().join("db")).await.unwrap();
        let store = Store::open(backend, Kinds::new().with::<FailedLogins>()).await.unwrap();
        (folder, store, Vault::new(KeyRing::ephemeral().unwrap()))
    }

    fn known(store: &Store) -> usize {
        store.count::<FailedLogins>(&Query::all())
    }

    #[tokio::test]
    async fn tries_under_way_are_shared_among_processes_and_successes_write_nothing() {
        let (_folder, store, vault) = open().await;
        let throttle = Throttle::new(store.clone(), |_| 4);
        let mut tries = vec![];
        while let Ok(attempt) = throttle.attempt(&vault, Guard::User, "ada").await {
            tries.push(attempt);
        }
        assert_eq!(tries.len(), Limits::USER.at_once / 4);
        throttle.attempt(&vault, Guard::User, "bob").await.unwrap().succeeded().await;
        for attempt in tries {
            attempt.succeeded().await;
        }
        assert_eq!(store.revision().0, 0);
        assert!(throttle.under_way.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn past_the_free_ones_a_try_counts_until_it_has_succeeded() {
        let (_folder, store, vault) = open().await;
        let throttle = Throttle::new(store.clone(), |_| 1);
        for _ in 0..Limits::USER.free {
            throttle.attempt(&vault, Guard::User, "ada").await.unwrap().failed().await.unwrap();
        }
        let attempt = throttle.attempt(&vault, Guard::User, "ada").await.unwrap();
        assert!(attempt.counted);
        let id = attempt.id;
        let count = |store: &Store| store.get::<FailedLogins>(id).map(|one| one.body.failures.count);
        // Given up by its caller, it stays counted.
        drop(attempt);
        assert_eq!(count(&store), Some(6));
        // When the wait is over, only one of two gets the next try.
        let record = store.get::<FailedLogins>(id).unwrap();
        let failures = Failures { count: 9, until: Timestamp::now() };
        let over = FailedLogins { guard: Guard::User, failures };
        store.commit(Transaction::new(author()).update(&record, over)).await.unwrap();
        let begin = || throttle.attempt(&vault, Guard::User, "ada");
        let (one, other) = tokio::join!(begin(), begin());
        assert!(one.is_ok() != other.is_ok());
        one.or(other).unwrap().succeeded().await;
        assert_eq!((count(&store), known(&store)), (None, 0));
    }

    #[tokio::test]
    async fn the_database_is_not_filled_and_those_who_wait_stay() {
        let (_folder, store, vault) = open().await;
        let throttle = Throttle::new(store.clone(), |_| 1);
        let now = Timestamp::now();
        let mut drafts = (1..=CAPACITY as u64).map(|bits| {
            let failures = Failures { count: 1, until: now };
            Draft::new(FailedLoginsId::from_bits(bits), FailedLogins { guard: Guard::Address, failures })
        });
        while let Some(first) = drafts.next() {
            let all = drafts.by_ref().take(999).fold(Transaction::new(author()).create(first), Transaction::create);
            store.commit(all).await.unwrap();
        }
        let waits = store.get::<FailedLogins>(FailedLoginsId::from_bits(1)).unwrap();
        let failures = Failures { count: 40, until: now.plus(Limits::ADDRESS.longest) };
        let body = FailedLogins { guard: Guard::Address, failures };
        store.commit(Transaction::new(author()).update(&waits, body)).await.unwrap();

        throttle.attempt(&vault, Guard::Address, "198.51.100.1").await.unwrap().failed().await.unwrap();
        assert_eq!(known(&store), CAPACITY - MADE_ROOM + 1);
        assert!(store.get::<FailedLogins>(FailedLoginsId::from_bits(1)).is_some());
        // Each guard has room of its own.
        throttle.attempt(&vault, Guard::User, "ada").await.unwrap().failed().await.unwrap();
        assert_eq!(known(&store), CAPACITY - MADE_ROOM + 2);

        let record = store.get::<FailedLogins>(FailedLoginsId::from_bits(1)).unwrap();
        let failures = Failures { count: 40, until: Timestamp::from_micros(0) };
        let body = FailedLogins { guard: Guard::Address, failures };
        store.commit(Transaction::new(author()).update(&record, body)).await.unwrap();
        assert_eq!(throttle.sweep().await.unwrap(), 1);
    }
}
