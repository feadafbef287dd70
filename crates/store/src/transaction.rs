//! Transactions: values that say what must still be so and what shall change.

use std::{any::Any, collections::HashSet, fmt, sync::Arc};

use nephos_types::{Error, ErrorKind, Id, Result, Timestamp};

use crate::{
    Kind, Revision,
    backend::{Bound, RawAdd, RawClaim, RawExpectation, RawTransaction, RawWrite},
    change::{Action, Author},
    record::{Draft, Edit, Meta, Record},
    stored,
    table::{Posting, postings},
};

/// What one transaction may hold.
pub mod limits {
    /// Bytes in one record's stored form.
    pub const RECORD_BYTES: usize = 1 << 20;
    /// Bytes in all records of one transaction.
    pub const TRANSACTION_BYTES: usize = 16 << 20;
    /// Records written; likewise expectations, claims and counter steps.
    pub const WRITES: usize = 1000;
    /// Bytes in the key of a claim or counter, in a claim's owner and in an index value.
    pub const KEY_BYTES: usize = 512;
    /// Values of all indexes of one record together.
    pub const INDEX_VALUES: usize = 256;
}

/// What must still be so, and what shall change; applied whole or not at all by [`crate::Store::commit`].
///
/// Cheap to clone. A record may be written once in a transaction.
#[derive(Clone)]
pub struct Transaction {
    author: Arc<Author>,
    expectations: Vec<RawExpectation>,
    writes: Vec<Arc<dyn AnyWrite>>,
    claims: Vec<RawClaim>,
    adds: Vec<RawAdd>,
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("author", &self.author)
            .field("expectations", &self.expectations)
            .field("writes", &self.writes.iter().map(|write| write.describe()).collect::<Vec<_>>())
            .field("claims", &self.claims)
            .field("adds", &self.adds)
            .finish()
    }
}

impl Transaction {
    /// An empty one, made by `author`.
    #[must_use]
    pub fn new(author: impl Into<Arc<Author>>) -> Self {
        Self { author: author.into(), expectations: vec![], writes: vec![], claims: vec![], adds: vec![] }
    }

    /// Creates a record; fails with `Exists` if the id is in use.
    #[must_use]
    pub fn create<K: Kind>(mut self, draft: Draft<K>) -> Self {
        let Draft { id, project, name, labels, body } = draft;
        let (revision, time) = (Revision::ZERO, Timestamp::default());
        let meta = Meta { id, project, name, labels, revision, created_at: time, updated_at: time };
        self.writes.push(Arc::new(Write { action: Action::Created, record: Record { meta, body } }));
        self
    }

    /// Gives a record a new body; fails with `Conflict` if it changed since it was read.
    #[must_use]
    pub fn update<K: Kind>(self, record: &Record<K>, body: K) -> Self {
        let record = Record { meta: record.meta.clone(), body };
        self.save(Edit { record })
    }

    /// Writes a changed record; fails with `Conflict` if it changed since it was read.
    #[must_use]
    pub fn save<K: Kind>(mut self, edit: Edit<K>) -> Self {
        self.writes.push(Arc::new(Write { action: Action::Updated, record: edit.record }));
        self
    }

    /// Deletes a record; fails with `Conflict` if it changed since it was read.
    #[must_use]
    pub fn delete<K: Kind>(mut self, record: &Record<K>) -> Self {
        self.writes.push(Arc::new(Write { action: Action::Deleted, record: record.clone() }));
        self
    }

    /// Fails with `Conflict` if the record changed since it was read; writes nothing.
    #[must_use]
    pub fn expect<K: Kind>(mut self, record: &Record<K>) -> Self {
        let (kind, id, revision) = (K::NAME, record.meta.id.to_string(), record.meta.revision);
        self.expectations.push(RawExpectation { kind, id, revision });
        self
    }

    /// Takes a unique key; fails with `Taken` if another owner holds it. Taking it again for the same owner is fine.
    #[must_use]
    pub fn claim(mut self, key: impl Into<String>, owner: impl ToString) -> Self {
        self.claims.push(RawClaim::Take { key: key.into(), owner: owner.to_string() });
        self
    }

    /// Gives a key back. Nothing happens if this owner does not hold it, so that an undo can be repeated.
    #[must_use]
    pub fn release(mut self, key: impl Into<String>, owner: impl ToString) -> Self {
        self.claims.push(RawClaim::Release { key: key.into(), owner: owner.to_string() });
        self
    }

    /// Adds to a counter; fails with `Exceeded` if the bound stands against it. Counters begin at 0 and commute.
    #[must_use]
    pub fn add(mut self, counter: impl Into<String>, amount: i64, bound: Bound) -> Self {
        self.adds.push(RawAdd { key: counter.into(), amount, bound });
        self
    }

    /// And all of another transaction after it; the author stays.
    #[must_use]
    pub fn then(mut self, other: Self) -> Self {
        self.expectations.extend(other.expectations);
        self.writes.extend(other.writes);
        self.claims.extend(other.claims);
        self.adds.extend(other.adds);
        self
    }

    /// Who makes the change.
    #[must_use]
    pub fn author(&self) -> &Arc<Author> {
        &self.author
    }

    /// Whether it does and expects nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.expectations.is_empty() && self.writes.is_empty() && self.claims.is_empty() && self.adds.is_empty()
    }

    /// Checks the bounds and brings everything into stored form.
    pub(crate) fn prepare(self) -> Result<Prepared> {
        let counts = [self.writes.len(), self.expectations.len(), self.claims.len(), self.adds.len()];
        if counts.into_iter().any(|count| count > limits::WRITES) {
            return Err(too_large(format!(
                "{} writes, {} expectations, {} claims, {} counter steps; at most {} of each are accepted",
                counts[0],
                counts[1],
                counts[2],
                counts[3],
                limits::WRITES
            )));
        }
        for claim in &self.claims {
            let (RawClaim::Take { key, owner } | RawClaim::Release { key, owner }) = claim;
            check_key("A claim's key", key)?;
            check_key("A claim's owner", owner)?;
        }
        for add in &self.adds {
            check_key("A counter's name", &add.key)?;
        }

        let at = Timestamp::now();
        let mut writes = Vec::with_capacity(self.writes.len());
        let mut effects = Vec::with_capacity(self.writes.len());
        let mut seen = HashSet::with_capacity(self.writes.len());
        let mut bytes = 0;
        for write in &self.writes {
            let (raw, effect) = write.prepare(at)?;
            bytes += raw.data.as_ref().map_or(0, String::len);
            if !seen.insert((raw.kind, effect.bits)) {
                return Err(Error::bug(format!("{} `{}` is written twice in one transaction", raw.kind, raw.id)));
            }
            writes.push(raw);
            effects.push(effect);
        }
        if bytes > limits::TRANSACTION_BYTES {
            return Err(too_large(format!("{bytes} bytes; at most {} are accepted", limits::TRANSACTION_BYTES)));
        }
        let Self { author, expectations, claims, adds, .. } = self;
        let raw = Arc::new(RawTransaction { author, at, expectations, writes, claims, adds });
        Ok(Prepared { raw, effects, bytes })
    }
}

/// A transaction in stored form, and what it will be in memory.
pub(crate) struct Prepared {
    pub(crate) raw: Arc<RawTransaction>,
    /// One for each write.
    pub(crate) effects: Vec<Effect>,
    /// The size of the stored forms.
    pub(crate) bytes: usize,
}

/// What a write does in memory.
pub(crate) struct Effect {
    pub(crate) bits: u64,
    /// A `Record<K>` without its revision; `None` deletes.
    pub(crate) record: Option<Box<dyn Any + Send + Sync>>,
}

trait AnyWrite: Send + Sync {
    fn describe(&self) -> String;
    fn prepare(&self, at: Timestamp) -> Result<(RawWrite, Effect)>;
}

struct Write<K: Kind> {
    action: Action,
    /// As it shall be, except for the times and its revision, which is still the one that was read.
    record: Record<K>,
}

impl<K: Kind> AnyWrite for Write<K> {
    fn describe(&self) -> String {
        format!("{:?} {} {}", self.action, K::NAME, self.record.meta.id)
    }

    fn prepare(&self, at: Timestamp) -> Result<(RawWrite, Effect)> {
        let mut meta = self.record.meta.clone();
        let id = meta.id.to_string();
        let mut raw = RawWrite {
            kind: K::NAME,
            id,
            action: self.action,
            expected: meta.revision,
            project: meta.project.map(|project| project.to_string()),
            data: None,
            audited: K::AUDITED,
        };
        let bits = meta.id.bits();
        if self.action == Action::Deleted {
            return Ok((raw, Effect { bits, record: None }));
        }
        meta.updated_at = at;
        if self.action == Action::Created {
            meta.created_at = at;
        }
        let data = stored::encode(&meta, &self.record.body)?;
        if data.len() > limits::RECORD_BYTES {
            return Err(too_large(format!(
                "{} `{}` has {} bytes; at most {} are accepted",
                K::NAME,
                raw.id,
                data.len(),
                limits::RECORD_BYTES
            )));
        }
        // What memory gets is what the next start will read, and what cannot be read back is refused now.
        let record = stored::decode::<K>(&raw.id, Revision::ZERO, &data)?;
        check_index_values(&record)?;
        raw.data = Some(data);
        Ok((raw, Effect { bits, record: Some(Box::new(record)) }))
    }
}

fn check_index_values<K: Kind>(record: &Record<K>) -> Result<()> {
    let postings = postings(record);
    let values = postings.iter().filter_map(|posting| match posting {
        Posting::Index(_, value) => Some(value),
        _ => None,
    });
    let (mut count, mut longest) = (0, 0);
    for value in values {
        count += 1;
        longest = longest.max(value.len());
    }
    if count > limits::INDEX_VALUES || longest > limits::KEY_BYTES {
        return Err(too_large(format!(
            "{} `{}` has {count} index values of up to {longest} bytes; at most {} of {} are accepted",
            K::NAME,
            record.meta.id,
            limits::INDEX_VALUES,
            limits::KEY_BYTES
        )));
    }
    Ok(())
}

fn check_key(what: &str, key: &str) -> Result<()> {
    if key.is_empty() || key.len() > limits::KEY_BYTES || key.chars().any(char::is_control) {
        let shown: String = key.chars().take(64).collect();
        return Err(Error::invalid("invalid_key", format!("{what} cannot be used")).detail(format!(
            "{shown:?}: 1 to {} bytes without control characters are accepted, this has {}",
            limits::KEY_BYTES,
            key.len()
        )));
    }
    Ok(())
}

fn too_large(detail: String) -> Error {
    Error::new(ErrorKind::TooLarge, "transaction_too_large", "More than one transaction can hold")
        .detail(detail)
        .next("store less in one record, or split the change", None)
}
