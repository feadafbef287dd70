//! The committer: one task that folds waiting transactions into batches, has them written, and only then shows and
//! acknowledges them.
//!
//! While one batch is being flushed, the next gathers in the queue; there is no timer. The order is: disk, image, feed,
//! answer.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use nephos_types::{Error, Result, Timestamp};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{
    Backend, CommitError, Kind, Options, Revision,
    backend::{Accepted, Loaded, RawTransaction, Sequence, Trim},
    change::{Change, Snapshot},
    error::closed,
    follow,
    image::Image,
    postgres::SUPERSEDED,
    record::Record,
    stats::Counting,
    table::{AnyRecord, Outcome, Pending},
    transaction::Prepared,
    verify::{Comparison, Report},
    watch::Feed,
};

/// The most transactions and bytes that one flush pays for.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 4 << 20;
/// The most rows of the change log that are dropped between two batches.
const TRIM_ROWS: usize = 2000;
/// How long to wait before asking again what other processes wrote, when that could not be found out.
const AGAIN: Duration = Duration::from_millis(200);

/// What a commit achieved.
#[derive(Clone)]
pub struct Committed {
    /// Of the transaction's last write; all its effects are visible to watches up to here.
    pub revision: Revision,
    records: Vec<Arc<dyn AnyRecord>>,
}

impl std::fmt::Debug for Committed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committed").field("revision", &self.revision).finish_non_exhaustive()
    }
}

impl Committed {
    pub(crate) fn nothing(revision: Revision) -> Self {
        Self { revision, records: vec![] }
    }

    /// A record as this commit wrote it.
    #[must_use]
    pub fn record<K: Kind>(&self, id: K::Id) -> Option<Arc<Record<K>>> {
        self.records
            .iter()
            .filter_map(|record| record.clone().as_any().downcast::<Record<K>>().ok())
            .find(|record| record.meta.id == id)
    }
}

/// What can be asked of the committer.
pub(crate) enum Message {
    Commit(Waiting),
    /// Compares memory with disk while nothing is committed.
    Verify(oneshot::Sender<Result<Report>>),
    /// Drops what is past its time from the change log.
    Trim(oneshot::Sender<Result<()>>),
    /// Finishes what came before and closes the backend.
    Close(oneshot::Sender<Result<()>>),
}

/// A transaction and who waits for it.
pub(crate) struct Waiting {
    pub(crate) prepared: Prepared,
    pub(crate) answer: oneshot::Sender<Result<Committed, CommitError>>,
}

pub(crate) struct Committer {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) image: Arc<Image>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) counting: Arc<Counting>,
    pub(crate) options: Options,
    /// The newest batch that is in the image; always 0 when nobody else writes.
    pub(crate) seen: watch::Sender<Sequence>,
    /// Why the image can no longer follow the other processes.
    pub(crate) broken: Option<Error>,
}

impl Committer {
    /// Works until it is told to close or nobody can send any more.
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut trim = interval_at(Instant::now() + self.options.trim_every, self.options.trim_every);
        trim.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut held = None;
        let closing = loop {
            let message = match held.take() {
                Some(message) => Some(message),
                None => tokio::select! {
                    message = queue.recv() => message,
                    () = self.news() => {
                        let _ = self.follow(None).await;
                        continue;
                    }
                    _ = trim.tick() => {
                        match self.trim_some().await {
                            Ok(true) => trim.reset_after(Duration::from_millis(50)),
                            Ok(false) => {}
                            Err(error) => tracing::warn!(error = %error.chain(), "the change log was not trimmed"),
                        }
                        continue;
                    }
                },
            };
            match message {
                Some(Message::Commit(first)) => {
                    let (batch, other) = gather(first, &mut queue);
                    held = other;
                    let many = batch.len() > 1;
                    self.commit(batch).await;
                    if many {
                        // Those just answered are about to commit again: let them join one batch.
                        tokio::task::yield_now().await;
                    }
                }
                Some(Message::Verify(answer)) => {
                    let _ = answer.send(self.verify().await);
                }
                Some(Message::Trim(answer)) => {
                    let _ = answer.send(self.trim_all().await);
                }
                Some(Message::Close(answer)) => break Some(answer),
                None => break None,
            }
        };
        queue.close();
        while let Some(message) = queue.recv().await {
            if let Message::Commit(waiting) = message {
                let _ = waiting.answer.send(Err(closed().into()));
            }
        }
        let result = self.backend.close().await;
        self.feed.close();
        match (closing, result) {
            (Some(answer), result) => drop(answer.send(result)),
            (None, Ok(())) => {}
            (None, Err(error)) => tracing::error!(error = %error.chain(), "the store did not close cleanly"),
        }
    }

    fn seen(&self) -> Sequence {
        *self.seen.borrow()
    }

    /// Waits until other processes may have written something.
    async fn news(&self) {
        match self.backend.shared() {
            Some(shared) if self.broken.is_none() => shared.news(self.seen()).await,
            _ => std::future::pending().await,
        }
    }

    /// Shows what other processes wrote: up to a batch, however long that takes, or what there is now.
    async fn follow(&mut self, until: Option<Sequence>) -> Result<()> {
        let backend = self.backend.clone();
        let Some(shared) = backend.shared() else { return Ok(()) };
        while until.is_none_or(|until| self.seen() < until) {
            let batches = match shared.batches(self.seen()).await {
                Ok(batches) if batches.is_empty() && until.is_none() => return Ok(()),
                Ok(batches) if batches.is_empty() => return Err(self.give_up(follow::fell_behind())),
                Ok(batches) => batches,
                Err(error) if error.code == follow::fell_behind().code => return Err(self.give_up(error)),
                Err(error) if until.is_none() || error.code == closed().code => {
                    tracing::warn!(error = %error.chain(), "what other processes wrote cannot be read");
                    tokio::time::sleep(AGAIN).await;
                    return Err(error);
                }
                Err(_) => {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            for batch in batches {
                if until.is_some_and(|until| batch.sequence > until) {
                    break;
                }
                let sequence = batch.sequence;
                if sequence != self.seen().next() {
                    return Err(self.give_up(follow::fell_behind()));
                }
                follow::show(&self.image, &self.feed, batch).map_err(|error| self.give_up(error))?;
                self.counting.followed();
                self.seen.send_replace(sequence);
            }
        }
        Ok(())
    }

    /// From now on memory is older than the disk for good, so nothing may rest on it.
    fn give_up(&mut self, error: Error) -> Error {
        tracing::error!(error = %error.chain(), "the database cannot be used any more");
        self.broken = Some(error.clone());
        self.feed.fail(error.clone());
        error
    }

    async fn commit(&mut self, batch: Vec<Waiting>) {
        if let Some(error) = &self.broken {
            return fail(batch, error);
        }
        let raws = batch.iter().map(|waiting| waiting.prepared.raw.clone()).collect();
        match self.backend.apply(raws).await {
            Ok(applied) if applied.results.len() == batch.len() => {
                // What others wrote before comes first, and whoever is refused because of it must be able to read it.
                if let Err(error) = self.follow(Some(applied.follows)).await {
                    self.counting.batch(0, 0, batch.len());
                    return fail(batch, &error);
                }
                let results = applied.results;
                let committed = results.iter().filter(|result| result.is_ok()).count();
                self.counting.batch(committed, results.len() - committed, 0);
                let mut accepted = Vec::with_capacity(committed);
                for (waiting, result) in batch.into_iter().zip(results) {
                    match result {
                        Ok(position) => accepted.push((waiting, position)),
                        Err(refusal) => drop(waiting.answer.send(Err(refusal.into()))),
                    }
                }
                self.show(accepted);
                if let Some(own) = applied.sequence {
                    self.seen.send_replace(own);
                }
            }
            Ok(_) => {
                self.counting.batch(0, 0, batch.len());
                fail(batch, &Error::bug("The backend did not answer for each transaction"));
            }
            Err(error) if error.code == SUPERSEDED => {
                self.counting.batch(0, 0, batch.len());
                fail(batch, &self.give_up(error));
            }
            Err(error) => {
                self.counting.batch(0, 0, batch.len());
                tracing::error!(error = %error.chain(), transactions = batch.len(), "a batch could not be written");
                fail(batch, &error);
            }
        }
    }

    /// Image, feed, answer; for what is on disk.
    fn show(&self, accepted: Vec<(Waiting, Accepted)>) {
        let mut per_table: HashMap<&'static str, Vec<Pending>> = HashMap::new();
        let mut done: Vec<(Arc<RawTransaction>, u64, Revision, _)> = Vec::with_capacity(accepted.len());
        for (waiting, Accepted { last }) in accepted {
            let Waiting { prepared: Prepared { raw, effects, .. }, answer } = waiting;
            let first = last.0 + 1 - raw.writes.len() as u64;
            for ((write, effect), revision) in raw.writes.iter().zip(effects).zip(first..) {
                let pending = Pending { bits: effect.bits, revision: Revision(revision), record: effect.record };
                per_table.entry(write.kind).or_default().push(pending);
            }
            done.push((raw, first, last, answer));
        }

        let mut outcomes: HashMap<&'static str, std::vec::IntoIter<Outcome>> = HashMap::new();
        for (kind, writes) in per_table {
            if let Some(table) = self.image.table_by_name(kind) {
                outcomes.insert(kind, table.apply(writes).into_iter());
            }
        }
        self.image.apply_claims(done.iter().flat_map(|(raw, ..)| &raw.claims));
        self.image.apply_adds(done.iter().flat_map(|(raw, ..)| &raw.adds));

        let mut changes = vec![];
        let mut answers = Vec::with_capacity(done.len());
        for (raw, first, last, answer) in done {
            let mut records = Vec::with_capacity(raw.writes.len());
            for (write, revision) in raw.writes.iter().zip(first..) {
                let outcome = outcomes.get_mut(write.kind).and_then(Iterator::next);
                let Some(Outcome { before, after }) = outcome else { continue };
                records.extend(after.clone());
                // What stands for the change is about the stored forms that it keeps alive.
                let size = 512 + 2 * write.data.as_ref().map_or(512, String::len);
                let change = Change {
                    revision: Revision(revision),
                    commit: last,
                    at: raw.at,
                    author: raw.author.clone(),
                    kind: write.kind.to_owned(),
                    id: write.id.clone(),
                    project: write.project.as_ref().and_then(|project| project.parse().ok()),
                    action: write.action,
                    elsewhere: false,
                    before: before.filter(|_| write.audited).map(Snapshot::Typed),
                    after: after.map(Snapshot::Typed),
                };
                changes.push((Arc::new(change), size));
            }
            answers.push((answer, Committed { revision: last, records }));
        }
        self.feed.publish(changes);
        for (answer, committed) in answers {
            let _ = answer.send(Ok(committed));
        }
    }

    /// Drops some of what is past its time; whether there may be more.
    async fn trim_some(&self) -> Result<bool> {
        let newest = self.feed.newest().0;
        let age = i64::try_from(self.options.keep_audit.as_micros()).unwrap_or(i64::MAX);
        let trim = Trim {
            watch: Revision(newest.saturating_sub(self.options.keep_changes)),
            audit: Revision(newest.saturating_sub(self.options.keep_audit_changes)),
            before: Timestamp::from_micros(Timestamp::now().as_micros().saturating_sub(age)),
            rows: TRIM_ROWS,
        };
        let trimmed = self.backend.trim(trim).await?;
        self.feed.set_compacted(trimmed.compacted);
        Ok(trimmed.rows >= TRIM_ROWS)
    }

    async fn trim_all(&self) -> Result<()> {
        while self.trim_some().await? {}
        Ok(())
    }

    async fn verify(&mut self) -> Result<Report> {
        let mut chunks = self.backend.load();
        let Some(first) = chunks.next().await.transpose()? else {
            return Err(Error::bug("The backend did not say where it stands"));
        };
        // What the disk is compared with must be of the same moment.
        if let Some(Loaded::Position { sequence, .. }) = first.first() {
            self.follow(Some(*sequence)).await?;
        }
        let mut comparison = Comparison::new(&self.image, self.feed.newest());
        comparison.add(first);
        while let Some(chunk) = chunks.next().await {
            comparison.add(chunk?);
        }
        let mut report = comparison.finish();
        report.problems.extend(self.backend.check().await?);
        Ok(report)
    }
}

/// The first transaction and those that wait behind it, up to the bounds of a batch or to what is not a transaction.
fn gather(first: Waiting, queue: &mut mpsc::Receiver<Message>) -> (Vec<Waiting>, Option<Message>) {
    let mut bytes = first.prepared.bytes;
    let mut batch = vec![first];
    while batch.len() < BATCH && bytes < BATCH_BYTES {
        match queue.try_recv() {
            Ok(Message::Commit(next)) => {
                bytes += next.prepared.bytes;
                batch.push(next);
            }
            Ok(other) => return (batch, Some(other)),
            Err(_) => break,
        }
    }
    (batch, None)
}

fn fail(batch: Vec<Waiting>, error: &Error) {
    for waiting in batch {
        let _ = waiting.answer.send(Err(CommitError::Failed(error.clone())));
    }
}
