//! The live feed: every change in order, without gaps or duplicates, from any kept revision.
//!
//! Recent changes are kept in a bounded ring in memory. A watcher pulls; it is never pushed to, so a slow one costs
//! nobody anything: when the ring has moved on, it reads from the disk until it has caught up.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use nephos_types::{Error, ProjectId};
use tokio::sync::watch;

use crate::{
    Backend, Kind, Revision,
    backend::ChangeFilter,
    change::Change,
    error::{WatchError, closed},
    image::Image,
};

/// The ring holds at most this many changes, and at most about this many bytes of stored forms.
const RING_CHANGES: usize = 8192;
const RING_BYTES: usize = 16 << 20;
/// How many changes a watcher takes at once.
const CHUNK: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Position {
    newest: Revision,
    closed: bool,
}

#[derive(Default)]
struct Ring {
    changes: VecDeque<(Arc<Change>, usize)>,
    bytes: usize,
}

/// What the committer publishes to.
pub(crate) struct Feed {
    ring: RwLock<Ring>,
    compacted: AtomicU64,
    /// Why nothing can be followed any more.
    failure: OnceLock<Error>,
    position: watch::Sender<Position>,
}

impl Feed {
    pub(crate) fn new() -> Self {
        let position = watch::Sender::new(Position { newest: Revision::ZERO, closed: false });
        Self { ring: RwLock::default(), compacted: AtomicU64::new(0), failure: OnceLock::new(), position }
    }

    pub(crate) fn newest(&self) -> Revision {
        self.position.borrow().newest
    }

    pub(crate) fn compacted(&self) -> Revision {
        Revision(self.compacted.load(Ordering::Acquire))
    }

    pub(crate) fn set_compacted(&self, compacted: Revision) {
        self.compacted.fetch_max(compacted.0, Ordering::AcqRel);
    }

    pub(crate) fn set_newest(&self, newest: Revision) {
        self.position.send_modify(|position| position.newest = newest);
    }

    /// Adds changes with their sizes; their revisions follow the newest without a gap.
    pub(crate) fn publish(&self, changes: Vec<(Arc<Change>, usize)>) {
        let Some(newest) = changes.last().map(|(change, _)| change.revision) else { return };
        {
            let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
            ring.bytes += changes.iter().map(|(_, size)| size).sum::<usize>();
            ring.changes.extend(changes);
            while ring.changes.len() > RING_CHANGES || ring.bytes > RING_BYTES {
                let Some((_, size)) = ring.changes.pop_front() else { break };
                ring.bytes -= size;
            }
        }
        self.set_newest(newest);
    }

    pub(crate) fn close(&self) {
        self.position.send_modify(|position| position.closed = true);
    }

    /// Ends because the image cannot be kept up to date any more.
    pub(crate) fn fail(&self, error: Error) {
        let _ = self.failure.set(error);
        self.close();
    }

    /// Waits for the end, and says why.
    pub(crate) async fn ended(&self) -> Error {
        let _ = self.position.subscribe().wait_for(|position| position.closed).await;
        self.reason()
    }

    pub(crate) fn reason(&self) -> Error {
        self.failure.get().cloned().unwrap_or_else(closed)
    }

    /// Some changes after a revision, if the ring still has the next one.
    fn recent(&self, after: Revision) -> Option<VecDeque<Arc<Change>>> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let first = ring.changes.front()?.0.revision;
        let skip = usize::try_from(after.next().0.checked_sub(first.0)?).ok()?;
        Some(ring.changes.iter().skip(skip).take(CHUNK).map(|(change, _)| change.clone()).collect())
    }
}

/// A position in the feed, and what it takes to move on.
pub struct Watch {
    feed: Arc<Feed>,
    backend: Arc<dyn Backend>,
    image: Arc<Image>,
    signal: watch::Receiver<Position>,
    cursor: Revision,
    ahead: VecDeque<Arc<Change>>,
    kinds: Vec<&'static str>,
    project: Option<ProjectId>,
}

impl Watch {
    pub(crate) fn new(feed: Arc<Feed>, backend: Arc<dyn Backend>, image: Arc<Image>, from: Option<Revision>) -> Self {
        let signal = feed.position.subscribe();
        let cursor = from.unwrap_or_else(|| feed.newest());
        Self { feed, backend, image, signal, cursor, ahead: VecDeque::new(), kinds: vec![], project: None }
    }

    /// Only changes of this kind (and of others named likewise).
    #[must_use]
    pub fn kind<K: Kind>(mut self) -> Self {
        self.kinds.push(K::NAME);
        self
    }

    /// Only changes of what a project owns.
    #[must_use]
    pub fn project(mut self, project: ProjectId) -> Self {
        self.project = Some(project);
        self
    }

    /// All changes up to here were delivered or did not match; a later watch may start from it.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.cursor
    }

    /// Whether this place is still (or, after a restore, again) known, without waiting for a change.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] if not.
    pub fn is_kept(&self) -> Result<(), WatchError> {
        let known = self.cursor <= self.feed.newest() && self.cursor >= self.feed.compacted();
        if known { Ok(()) } else { Err(self.compacted()) }
    }

    /// The next change; waits for it. May be dropped and called again without losing anything.
    pub async fn next(&mut self) -> Result<Arc<Change>, WatchError> {
        loop {
            while let Some(change) = self.ahead.pop_front() {
                self.cursor = change.revision;
                if self.wants(&change) {
                    return Ok(change);
                }
            }
            let position = *self.signal.borrow_and_update();
            self.is_kept()?;
            if self.cursor < position.newest {
                self.ahead = match self.feed.recent(self.cursor) {
                    Some(recent) => recent,
                    None => self.read_disk(position.newest).await?,
                };
                continue;
            }
            if position.closed || self.signal.changed().await.is_err() {
                return Err(WatchError::Failed(self.feed.reason()));
            }
        }
    }

    fn wants(&self, change: &Change) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&change.kind.as_str()))
            && self.project.is_none_or(|project| change.project == Some(project))
    }

    async fn read_disk(&self, newest: Revision) -> Result<VecDeque<Arc<Change>>, WatchError> {
        // The disk may be ahead of the image; what is not published yet is left for later.
        let filter =
            ChangeFilter { after: self.cursor, before: Some(newest.next()), limit: CHUNK, ..ChangeFilter::default() };
        let rows = self.backend.changes(filter).await?;
        let mut changes = VecDeque::with_capacity(rows.len());
        let mut due = self.cursor.next();
        for row in rows {
            if row.revision != due {
                break;
            }
            due = due.next();
            changes.push_back(Arc::new(Change::decode(&self.image, row)?));
        }
        // Trimmed while this watcher was on its way.
        if changes.is_empty() { Err(self.compacted()) } else { Ok(changes) }
    }

    fn compacted(&self) -> WatchError {
        WatchError::Compacted { oldest: self.feed.compacted() }
    }
}
