//! The committer: one task that folds waiting transactions into batches, has them written, and only then shows and
//! acknowledges them.
//!
//! While one batch is being flushed, the next gathers in the queue; there is no timer. The order is: disk, image, feed,
//! answer.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use nephos_types::{Error, Result, Timestamp};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{
    Backend, CommitError, Kind, Options, Revision,
    backend::{Accepted, RawTransaction, Trim},
    change::{Change, Snapshot},
    error::closed,
    image::Image,
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
}

impl Committer {
    /// Works until it is told to close or nobody can send any more.
    pub(crate) async fn run(self, mut queue: mpsc::Receiver<Message>) {
        let mut trim = interval_at(Instant::now() + self.options.trim_every, self.options.trim_every);
        trim.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut held = None;
        let closing = loop {
            let message = match held.take() {
                Some(message) => Some(message),
                None => tokio::select! {
                    message = queue.recv() => message,
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

    async fn commit(&self, batch: Vec<Waiting>) {
        let raws = batch.iter().map(|waiting| waiting.prepared.raw.clone()).collect();
        match self.backend.apply(raws).await {
            Ok(results) if results.len() == batch.len() => {
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
            }
            Ok(_) => {
                self.counting.batch(0, 0, batch.len());
                fail(batch, &Error::bug("The backend did not answer for each transaction"));
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

    async fn verify(&self) -> Result<Report> {
        let mut comparison = Comparison::new(&self.image, self.feed.newest());
        let mut chunks = self.backend.load();
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
