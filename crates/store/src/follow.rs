//! Following other processes on a shared backend: bringing into the image and the feed what a batch of theirs did.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use nephos_types::{Error, ErrorKind, Result};
use tokio::sync::{Mutex, watch};

use crate::{
    backend::{RawBatch, Sequence, Shared},
    change::{Change, Snapshot},
    error::closed,
    image::Image,
    table::{Outcome, Pending},
    watch::Feed,
};

/// Shows a batch that another process wrote. An error means that nothing of it is visible.
pub(crate) fn show(image: &Image, feed: &Feed, batch: RawBatch) -> Result<()> {
    let mut per_table: HashMap<&'static str, Vec<Pending>> = HashMap::new();
    let mut tables = Vec::with_capacity(batch.changes.len());
    for change in &batch.changes {
        let table = image.table_by_name(&change.kind).ok_or_else(|| unknown(&change.kind))?;
        let pending = table.pending(&change.id, change.revision, change.after.as_deref())?;
        per_table.entry(table.name()).or_default().push(pending);
        tables.push((table.name(), table.audited()));
    }
    let projects = batch
        .changes
        .iter()
        .map(|change| change.project.as_ref().map(|project| project.parse()).transpose())
        .collect::<Result<Vec<_>>>()?;

    let mut outcomes: HashMap<&'static str, std::vec::IntoIter<Outcome>> = HashMap::new();
    for (kind, writes) in per_table {
        if let Some(table) = image.table_by_name(kind) {
            outcomes.insert(kind, table.apply(writes).into_iter());
        }
    }
    image.set_claims(batch.claims);
    image.set_counters(batch.counters);

    let mut changes = Vec::with_capacity(tables.len());
    for ((raw, (kind, audited)), project) in batch.changes.into_iter().zip(tables).zip(projects) {
        let Some(Outcome { before, after }) = outcomes.get_mut(kind).and_then(Iterator::next) else { continue };
        let size = 512 + 2 * raw.after.as_ref().map_or(512, String::len);
        let change = Change {
            revision: raw.revision,
            commit: raw.commit,
            at: raw.at,
            author: Arc::new(raw.author),
            kind: raw.kind,
            id: raw.id,
            project,
            action: raw.action,
            elsewhere: true,
            before: before.filter(|_| audited).map(Snapshot::Typed),
            after: after.map(Snapshot::Typed),
        };
        changes.push((Arc::new(change), size));
    }
    feed.publish(changes);
    Ok(())
}

/// How far the image has followed the other processes.
pub(crate) struct Followed {
    seen: watch::Receiver<Sequence>,
    /// The answer to the latest question, by the number of the question.
    asking: Mutex<(u64, Sequence)>,
    asked: AtomicU64,
}

impl Followed {
    pub(crate) fn new(seen: watch::Receiver<Sequence>) -> Self {
        Self { seen, asking: Mutex::default(), asked: AtomicU64::new(0) }
    }

    /// Waits until the image has what was committed when this was called.
    pub(crate) async fn catch_up(&self, shared: &dyn Shared) -> Result<()> {
        // A question that was put after this call began answers it, too, whoever put it.
        let mine = self.asked.load(Ordering::Acquire) + 1;
        let newest = {
            let mut answered = self.asking.lock().await;
            if answered.0 < mine {
                let question = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
                *answered = (question, shared.newest().await?);
            }
            answered.1
        };
        self.seen.clone().wait_for(|seen| *seen >= newest).await.map(drop).map_err(|_| closed())
    }
}

fn unknown(kind: &str) -> Error {
    Error::new(ErrorKind::Unsupported, "unknown_kind", "Another process writes a kind of records that this one lacks")
        .detail(kind)
        .next("run the same version of Nephos everywhere", None)
}

/// What this process should have followed is no longer kept.
pub(crate) fn fell_behind() -> Error {
    Error::new(ErrorKind::Precondition, "fell_behind", "This process stood still for so long that it cannot catch up")
        .next("start it again", None)
}
