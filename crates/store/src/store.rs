//! The handle to the database.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use futures_util::TryStreamExt;
use nephos_types::{Error, ErrorKind, Page, Result};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Backend, Change, ChangeQuery, CommitError, Committed, Kind, Kinds, Query, Report, Revision, Transaction, Watch,
    backend::{Loaded, RawAdd, RawClaim, Sequence},
    commit::{Committer, Message, Waiting},
    error::closed,
    follow::Followed,
    image::Image,
    record::Record,
    stats::{Counting, Stats},
    watch::Feed,
};

/// How many transactions may wait before `commit` itself waits.
const QUEUE: usize = 1024;

/// What is kept, and how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long the audit trail is kept.
    pub keep_audit: Duration,
    /// How many changes of audited kinds are kept at most, counted in revisions.
    pub keep_audit_changes: u64,
    /// How far back a watch may start, in revisions; changes of kinds that are not audited are dropped after that.
    pub keep_changes: u64,
    /// How often the change log is trimmed.
    pub trim_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keep_audit: Duration::from_secs(90 * 86400),
            keep_audit_changes: 2_000_000,
            keep_changes: 100_000,
            trim_every: Duration::from_secs(600),
        }
    }
}

/// The cloud resource database. Cheap to clone; all clones are one.
///
/// When the last clone is dropped it closes by itself, some time later; [`Store::close`] waits for it.
#[derive(Clone)]
pub struct Store {
    image: Arc<Image>,
    feed: Arc<Feed>,
    backend: Arc<dyn Backend>,
    queue: mpsc::Sender<Message>,
    counting: Arc<Counting>,
    followed: Option<Arc<Followed>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Store {
    /// Reads everything into memory and starts the committer on the current tokio runtime.
    ///
    /// Fails if the data holds kinds that are not registered or were written by a newer version.
    pub async fn open(backend: impl Backend, kinds: Kinds) -> Result<Self> {
        Self::open_with(backend, kinds, Options::default()).await
    }

    /// Like [`Store::open`], with other options.
    pub async fn open_with(backend: impl Backend, kinds: Kinds, options: Options) -> Result<Self> {
        if !kinds.twice.is_empty() {
            return Err(Error::bug(format!("Several kinds have one name: {}", kinds.twice.join(", "))));
        }
        let backend: Arc<dyn Backend> = Arc::new(backend);
        let image = Arc::new(Image::new(kinds));
        let feed = Arc::new(Feed::new());
        let seen = match load(&*backend, &image, &feed).await {
            Ok(seen) => seen,
            Err(error) => {
                let _ = backend.close().await;
                return Err(error);
            }
        };

        let (queue, waiting) = mpsc::channel(QUEUE);
        let counting = Arc::new(Counting::default());
        let committer = Committer {
            backend: backend.clone(),
            image: image.clone(),
            feed: feed.clone(),
            counting: counting.clone(),
            options,
            seen: watch::Sender::new(seen),
            broken: None,
        };
        let followed = backend.shared().map(|_| Arc::new(Followed::new(committer.seen.subscribe())));
        tokio::spawn(committer.run(waiting));
        Ok(Self { image, feed, backend, queue, counting, followed })
    }

    /// The record with this id.
    #[must_use]
    pub fn get<K: Kind>(&self, id: K::Id) -> Option<Arc<Record<K>>> {
        self.image.table::<K>()?.get(id)
    }

    /// A page of the records that satisfy a query, ordered by id.
    #[must_use]
    pub fn list<K: Kind>(&self, query: &Query) -> Page<Arc<Record<K>>> {
        self.image.table::<K>().map_or_else(|| Page { items: vec![], next: None }, |table| table.list(query))
    }

    /// How many records satisfy a query, whatever its limit.
    #[must_use]
    pub fn count<K: Kind>(&self, query: &Query) -> usize {
        self.image.table::<K>().map_or(0, |table| table.count(query))
    }

    /// A number that grows whenever a record of the kind is written: what was read after this number was had is still
    /// so while the number is the same. Costs one load; begins anew with each start.
    #[must_use]
    pub fn generation<K: Kind>(&self) -> u64 {
        self.image.table::<K>().map_or(0, crate::table::Table::generation)
    }

    /// Who holds a unique claim.
    #[must_use]
    pub fn owner(&self, claim: &str) -> Option<String> {
        self.image.owner(claim)
    }

    /// The claims whose key begins with `prefix`, with their owners, ordered, after a key.
    #[must_use]
    pub fn claims(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<(String, String)> {
        self.image.claims(prefix, after, limit)
    }

    /// A counter's value; 0 if nothing was ever added.
    #[must_use]
    pub fn counter(&self, counter: &str) -> i64 {
        self.image.counter(counter)
    }

    /// The counters that are not zero and whose name begins with `prefix`, ordered, after a name.
    #[must_use]
    pub fn counters(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<(String, i64)> {
        self.image.counters(prefix, after, limit)
    }

    /// The newest revision that is visible. To follow a list, take this first, then list, then watch from it.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.feed.newest()
    }

    /// Waits until memory has everything that any process had committed when this was called, so that whoever was told
    /// of a change elsewhere finds it here. Callers share a round trip to the server; without other processes it costs
    /// nothing.
    ///
    /// # Errors
    /// If that cannot be found out now; what is in memory may then be a little old.
    pub async fn catch_up(&self) -> Result<()> {
        match (&self.followed, self.backend.shared()) {
            (Some(followed), Some(shared)) => followed.catch_up(shared).await,
            _ => Ok(()),
        }
    }

    /// How many batches of other processes have been brought into memory: whatever was derived from memory before this
    /// number changed may be old. Stays 0 without other processes.
    #[must_use]
    pub fn followed(&self) -> u64 {
        self.counting.now(0).followed
    }

    /// What was committed so far, and what waits.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.counting.now(self.queue.max_capacity() - self.queue.capacity())
    }

    /// Follows the changes after a revision, or from now on.
    ///
    /// Every watch wakes for every batch of commits, whatever its filter: for thousands of followers, use one watch
    /// and tell them.
    #[must_use]
    pub fn watch(&self, from: Option<Revision>) -> Watch {
        Watch::new(self.feed.clone(), self.backend.clone(), self.image.clone(), from)
    }

    /// Entries of the change log, from disk.
    pub async fn changes(&self, query: &ChangeQuery) -> Result<Vec<Change>> {
        let rows = self.backend.changes(query.filter.clone()).await?;
        rows.into_iter().map(|row| Change::decode(&self.image, row)).collect()
    }

    /// Applies a transaction whole or not at all. When this answers `Ok`, it is on disk and visible to every read.
    ///
    /// Once it waits in the queue it will be decided even if the caller no longer waits for the answer.
    pub async fn commit(&self, transaction: Transaction) -> Result<Committed, CommitError> {
        if transaction.is_empty() {
            return Ok(Committed::nothing(self.revision()));
        }
        let prepared = transaction.prepare()?;
        if let Some(unknown) = prepared.raw.writes.iter().find(|write| self.image.table_by_name(write.kind).is_none()) {
            return Err(Error::bug(format!("Kind `{}` is not registered with `Kinds`", unknown.kind)).into());
        }
        let (answer, decided) = oneshot::channel();
        let message = Message::Commit(Waiting { prepared, answer });
        self.queue.send(message).await.map_err(|_| closed())?;
        decided.await.map_err(|_| closed())?
    }

    /// Writes a consistent copy of the database to a file that must not exist yet, while commits go on.
    pub async fn backup(&self, path: impl Into<PathBuf>) -> Result<()> {
        self.backend.backup(path.into()).await
    }

    /// Compares memory with disk, checks the indexes and the storage. Commits wait meanwhile.
    pub async fn verify(&self) -> Result<Report> {
        self.ask(Message::Verify).await
    }

    /// Drops from the change log what is past its time; happens by itself every [`Options::trim_every`].
    pub async fn trim(&self) -> Result<()> {
        self.ask(Message::Trim).await
    }

    /// Finishes what was handed over and lets go of files and locks. Later commits fail, reads still answer.
    pub async fn close(&self) -> Result<()> {
        self.backend.hurry();
        self.ask(Message::Close).await
    }

    /// Waits until the store can no longer be used, and says why: it was closed, or (on a backend that several
    /// processes share) it can no longer follow the others. The process should then end and be started again.
    pub async fn ended(&self) -> Error {
        self.feed.ended().await
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<Result<T>>) -> Message) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(message(answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

/// Fills the image; decoding runs on all cores. Answers the newest batch that is in it.
async fn load(backend: &dyn Backend, image: &Arc<Image>, feed: &Feed) -> Result<Sequence> {
    let mut seen = Sequence::default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let unknown: BTreeSet<String> = backend
        .load()
        .map_ok(|chunk| {
            for item in &chunk {
                if let Loaded::Position { newest, compacted, sequence } = *item {
                    seen = sequence;
                    feed.set_newest(newest);
                    feed.set_compacted(compacted);
                }
            }
            let image = image.clone();
            async move {
                tokio::task::spawn_blocking(move || load_chunk(&image, chunk))
                    .await
                    .map_err(|error| Error::internal("Reading the database failed", error))?
            }
        })
        .try_buffer_unordered(cores)
        .try_fold(BTreeSet::new(), |mut all, some| async move {
            all.extend(some);
            Ok(all)
        })
        .await?;
    if unknown.is_empty() {
        return Ok(seen);
    }
    let names: Vec<String> = unknown.into_iter().take(20).collect();
    Err(Error::new(ErrorKind::Unsupported, "unknown_kind", "The data holds kinds of records that this program lacks")
        .detail(names.join(", "))
        .next("start the version of Nephos that wrote this data, or a later one", None))
}

/// Puts a chunk into the image; answers the kinds that are not registered.
fn load_chunk(image: &Image, chunk: Vec<Loaded>) -> Result<BTreeSet<String>> {
    let mut unknown = BTreeSet::new();
    let (mut claims, mut counters) = (vec![], vec![]);
    for item in chunk {
        match item {
            Loaded::Position { .. } => {}
            Loaded::Record(raw) => match image.table_by_name(&raw.kind) {
                Some(table) => table.load(&raw)?,
                None => drop(unknown.insert(raw.kind)),
            },
            Loaded::Claim { key, owner } => claims.push(RawClaim::Take { key, owner }),
            Loaded::Counter { key, value } => {
                counters.push(RawAdd { key, amount: value, bound: crate::Bound::Any });
            }
        }
    }
    image.apply_claims(claims.iter());
    image.apply_adds(counters.iter());
    Ok(unknown)
}
