//! The store's backend on SQLite, in one file with a write-ahead log.
//!
//! One thread owns the writing connection and gets whole batches; readers have connections of their own, which the
//! write-ahead log lets run beside it. `synchronous=FULL`: when a commit answers, the log has been flushed.
//!
//! Why rusqlite and not sqlx: sqlx sends each statement to a worker and waits for its answer. A batch of 64
//! transactions has some 300 statements, and at more than 5,000 durable commits a second those hops would cost more
//! than the statements. rusqlite runs them in place on our thread; the only hop is one per batch.

mod apply;
mod connection;
mod read;
mod restore;
mod transfer;
mod trim;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use nephos_types::{Error, ErrorKind, Result};

use crate::{
    Backend,
    backend::{Applied, BoxFuture, BoxStream, ChangeFilter, Loaded, RawChange, RawTransaction, Trim, Trimmed},
};
use read::Readers;
use writer::Writer;

pub use connection::FileSummary;
pub(crate) use transfer::{export, import};

/// A store in an SQLite file. Holds a lock on `<file>.lock` while open.
pub struct Sqlite {
    writer: Writer,
    readers: Arc<Readers>,
}

impl Sqlite {
    /// Opens or creates the file (readable for its owner alone), upgrading its format if it is older.
    ///
    /// Fails if another process has it open, if it is not a Nephos database, or if a newer version wrote it.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        blocking(move || {
            let writer = Writer::open(&path)?;
            Ok(Self { writer, readers: Arc::new(Readers::new(path)) })
        })
        .await
    }

    /// Checks a file that nobody has open, such as a backup, without changing it.
    pub async fn inspect(path: impl AsRef<Path>) -> Result<FileSummary> {
        let path = path.as_ref().to_owned();
        blocking(move || connection::inspect(&path)).await
    }

    /// Makes a new store file out of a backup, after checking it; fails if there is one.
    ///
    /// Revisions go on far above those of the backup, so that a watch or an update that began before the restore is
    /// told so, and is not mistaken for one that knows what came after.
    pub async fn restore(backup: impl AsRef<Path>, path: impl Into<PathBuf>) -> Result<FileSummary> {
        let (backup, path) = (backup.as_ref().to_owned(), path.into());
        blocking(move || restore::restore(&backup, &path)).await
    }
}

impl Backend for Sqlite {
    fn load(&self) -> BoxStream<Result<Vec<Loaded>>> {
        read::load(self.readers.clone())
    }

    fn apply(&self, batch: Vec<Arc<RawTransaction>>) -> BoxFuture<'_, Result<Applied>> {
        self.writer.run(move |state| state.apply(&batch))
    }

    fn changes(&self, filter: ChangeFilter) -> BoxFuture<'_, Result<Vec<RawChange>>> {
        self.readers.run(move |connection| read::changes(connection, &filter))
    }

    fn trim(&self, trim: Trim) -> BoxFuture<'_, Result<Trimmed>> {
        self.writer.run(move |state| state.trim(trim))
    }

    fn backup(&self, path: PathBuf) -> BoxFuture<'_, Result<()>> {
        self.readers.run(move |connection| read::backup(connection, &path))
    }

    fn check(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        self.readers.run(connection::check)
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.readers.close().await;
            self.writer.close().await
        })
    }
}

/// Runs what waits for the disk away from the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal("Work on the database was broken off", error))?
}

/// An error of the engine as one of ours.
fn failed(what: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => {
            Error::new(ErrorKind::Unavailable, "disk_full", "The disk that holds the database is full")
                .source(error)
                .next("free some space on the disk of the data folder", None)
        }
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            Error::new(ErrorKind::Internal, "database_damaged", "The database file is damaged")
                .source(error)
                .next("restore the newest backup", Some("nephos restore FILE".to_owned()))
        }
        _ => Error::internal(what, error),
    }
}
