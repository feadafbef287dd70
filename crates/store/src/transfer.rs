//! Everything from one engine to the other: the change log, claims, counters and revisions as they are.
//!
//! Both ways are one transaction, and what arrived is read back and compared before it is kept.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::Arc,
};

use nephos_types::{Error, Result};
use tokio::sync::mpsc;

use crate::{
    backend::{Loaded, RawChange, RawRecord},
    postgres::{self, Target},
    sqlite,
};

/// A row on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// Of one of the tables from which memory is filled; the position comes first.
    Live(Loaded),
    /// Of the change log.
    Change { change: RawChange, audited: bool },
}

/// Rows in the order of their keys, table after table.
pub(crate) type Rows = mpsc::Receiver<Result<Vec<Row>>>;
pub(crate) type SendRows = mpsc::Sender<Result<Vec<Row>>>;

/// How many rows there are of each table, and what they hold.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Records.
    pub records: u64,
    /// Claims.
    pub claims: u64,
    /// Counters.
    pub counters: u64,
    /// Entries of the change log.
    pub changes: u64,
    digest: u64,
}

impl Summary {
    /// Counts rows in; their order matters.
    pub(crate) fn add(&mut self, rows: &[Row]) {
        for row in rows {
            let mut hasher = DefaultHasher::new();
            self.digest.hash(&mut hasher);
            match row {
                Row::Live(Loaded::Position { newest, compacted, .. }) => (newest, compacted).hash(&mut hasher),
                Row::Live(Loaded::Record(RawRecord { kind, id, revision, data })) => {
                    self.records += 1;
                    (kind, id, revision, data).hash(&mut hasher);
                }
                Row::Live(Loaded::Claim { key, owner }) => {
                    self.claims += 1;
                    (key, owner).hash(&mut hasher);
                }
                Row::Live(Loaded::Counter { key, value }) => {
                    self.counters += 1;
                    (key, value).hash(&mut hasher);
                }
                Row::Change { change, audited } => {
                    self.changes += 1;
                    let author = &change.author;
                    (change.revision, change.commit, change.at.as_micros(), audited).hash(&mut hasher);
                    (&author.actor, &author.source, &author.operation, &author.request).hash(&mut hasher);
                    (&change.kind, &change.id, &change.project, change.action).hash(&mut hasher);
                    (change.before_revision, &change.before, &change.after).hash(&mut hasher);
                }
            }
            self.digest = hasher.finish();
        }
    }

    /// Whether what was read back is what was sent.
    pub(crate) fn compare(self, arrived: Self) -> Result<()> {
        if self == arrived {
            return Ok(());
        }
        Err(Error::bug("What arrived in the other database is not what was sent, so it was not kept")
            .detail(format!("sent {self:?}, arrived {arrived:?}")))
    }
}

/// From a PostgreSQL database to a new SQLite file, as a backup.
pub(crate) async fn postgres_to_sqlite(target: Arc<Target>, path: PathBuf) -> Result<()> {
    let (send, rows) = mpsc::channel(4);
    let reading = tokio::spawn(async move { postgres::export(&target, &send).await });
    let written = sqlite::import(path, rows).await;
    let read = reading.await.map_err(|error| Error::internal("Reading the database was broken off", error))?;
    // A reader that failed is why the writer did not get everything; it says so in the rows as well.
    written.and(read)
}

/// From an SQLite file to an empty PostgreSQL database.
pub(crate) async fn sqlite_to_postgres(path: &Path, target: &Target) -> Result<Summary> {
    let (send, rows) = mpsc::channel(4);
    let reading = tokio::spawn(sqlite::export(path.to_owned(), send));
    let written = postgres::import(target, rows).await;
    let read = reading.await.map_err(|error| Error::internal("Reading the database was broken off", error))?;
    // Whoever cannot write stops the reader; then the writer knows why.
    match (written, read) {
        (Ok(summary), Ok(())) => Ok(summary),
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}
