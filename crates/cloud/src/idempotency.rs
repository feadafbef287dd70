//! Repeatable creations: what a caller's idempotency key made, kept for a day.
//!
//! The record is committed in the transaction that makes the thing, so there is never one without the other. Its id is
//! derived from user and key, so two calls at once cannot both commit, and no index is needed to find it. Key and input
//! are kept as one hash only: an input may hold a password, which must not be guessable from the database.

use std::time::Duration;

use nephos_store::{Author, Draft, Kind, Query, Record, Store, Transaction};
use nephos_types::{Error, Id, IdempotencyId, Result, Timestamp, UserId, WorkflowId};
use ring::digest;
use serde::{Deserialize, Serialize};

/// How long a key is remembered.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The longest key, in bytes.
const MAX_KEY: usize = 255;

/// What a creating call made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The kind's name in the store.
    pub kind: String,
    /// The id, as text.
    pub id: String,
    /// The workflow that went on with it.
    pub workflow: Option<WorkflowId>,
}

impl Made {
    /// The id of what was made, of the kind that the caller expects.
    pub fn id<K: Kind>(&self) -> Result<K::Id> {
        if self.kind == K::NAME {
            self.id.parse()
        } else {
            Err(Error::bug(format!("an idempotency key remembers a {} where a {} was expected", self.kind, K::NAME)))
        }
    }
}

/// The stored form.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Idempotency {
    user: UserId,
    /// Hexadecimal SHA-256 over key, operation and input.
    fingerprint: String,
    made: Made,
    expires_at: Timestamp,
}

impl Kind for Idempotency {
    type Id = IdempotencyId;
    const NAME: &'static str = "idempotency";
    const AUDITED: bool = false;
}

/// A call that carries a key.
#[derive(Clone, Debug)]
pub(crate) struct Repeatable {
    id: IdempotencyId,
    user: UserId,
    fingerprint: String,
}

impl Repeatable {
    pub(crate) fn new(user: UserId, key: &str, fingerprint: [u8; 32]) -> Result<Self> {
        if key.is_empty() || key.len() > MAX_KEY || key.chars().any(char::is_control) {
            return Err(Error::invalid("invalid_idempotency_key", "Not a usable idempotency key")
                .detail("a key has 1 to 255 bytes and no control characters; a random UUID is a good one"));
        }
        let hash = digest::digest(&digest::SHA256, format!("{user}\0{key}").as_bytes());
        let bits = hash.as_ref().iter().take(8).fold(0u64, |bits, byte| (bits << 8) | u64::from(*byte));
        let mut salted = digest::Context::new(&digest::SHA256);
        salted.update(&fingerprint);
        salted.update(key.as_bytes());
        Ok(Self { id: IdempotencyId::from_bits(bits), user, fingerprint: hex(salted.finish().as_ref()) })
    }

    /// The writes that remember what was made; an expired record of the same key is replaced.
    pub(crate) fn remember(&self, store: &Store, transaction: Transaction, made: Made) -> Transaction {
        let body = Idempotency {
            user: self.user,
            fingerprint: self.fingerprint.clone(),
            made,
            expires_at: Timestamp::now().plus(KEPT),
        };
        match store.get::<Idempotency>(self.id) {
            Some(old) if expired(&old) => transaction.update(&old, body),
            // Where a live record appeared meanwhile, the creation fails, which is what decides the race.
            _ => transaction.create(Draft::new(self.id, body)),
        }
    }
}

/// SHA-256 over an operation's name and input.
pub(crate) fn fingerprint(operation: &str, input: &impl Serialize) -> Result<[u8; 32]> {
    let input = serde_json::to_vec(input).map_err(|error| Error::internal("an input could not be rendered", error))?;
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(operation.as_bytes());
    hash.update(&[0]);
    hash.update(&input);
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(hash.finish().as_ref());
    Ok(fingerprint)
}

/// What the key made before; an error if it was used for something else.
pub(crate) fn made(store: &Store, call: &Repeatable) -> Result<Option<Made>> {
    let Some(record) = store.get::<Idempotency>(call.id) else { return Ok(None) };
    if expired(&record) {
        return Ok(None);
    }
    let known = &record.body;
    if known.user == call.user && known.fingerprint == call.fingerprint {
        return Ok(Some(known.made.clone()));
    }
    Err(Error::conflict("idempotency_mismatch", "This idempotency key was used for another request")
        .detail("within 24 hours a key stands for one operation with one input")
        .next("use a new key, or repeat the request exactly as it was", None))
}

fn expired(record: &Record<Idempotency>) -> bool {
    record.body.expires_at <= Timestamp::now()
}

/// Deletes what has expired; to be called now and then. Returns how many records went.
pub async fn sweep(store: &Store) -> Result<usize> {
    let mut after = None;
    let mut gone = 0;
    loop {
        let mut query = Query::all().limit(1000);
        if let Some(after) = after {
            query = query.after(after);
        }
        let page = store.list::<Idempotency>(&query);
        for record in page.items.iter().filter(|record| expired(record)) {
            let transaction = Transaction::new(Author::new("cloud").operation("idempotency.sweep")).delete(record);
            // A record that changed since was replaced by a live one and stays.
            gone += usize::from(store.commit(transaction).await.is_ok());
        }
        match page.items.last() {
            Some(last) if page.next.is_some() => after = Some(last.meta.id),
            _ => return Ok(gone),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
