//! The store's backend on PostgreSQL, which several processes may share.
//!
//! Everything is in the schema `nephos` of one database. A batch is one SQL transaction that begins by locking the one
//! row of `position`, so batches of all processes follow each other, and revisions have one order. It takes two round
//! trips however many transactions it holds: one that locks and reads what they name, one that writes and commits.
//!
//! The row that each batch leaves in `batch` serves two ends. The other processes follow by it what was written, claims
//! and counters included. And whoever lost the connection while committing finds out by it, after locking the position
//! again, whether the commit happened: so an answer that was lost is neither repeated nor reported as a failure.
//!
//! Why tokio-postgres and not sqlx: it sends several statements without waiting for the answers in between, which sqlx
//! does not, and brings few other crates with it.

mod apply;
mod check;
mod connection;
mod listen;
mod plan;
mod read;
mod schema;
mod target;
mod transfer;
mod trim;
mod turn;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use nephos_types::Result;

use crate::{
    Backend, Revision,
    backend::{
        Applied, BoxFuture, BoxStream, ChangeFilter, Loaded, RawBatch, RawChange, RawTransaction, Sequence, Shared,
        Trim, Trimmed,
    },
    transfer::{Summary, postgres_to_sqlite, sqlite_to_postgres},
};
use listen::Listener;
use read::Readers;
use writer::Writer;

pub(crate) use target::Target;
pub(crate) use transfer::{export, import};
pub(crate) use turn::SUPERSEDED;
pub use turn::{Occupied, Turn};

/// A store in a PostgreSQL database.
pub struct Postgres {
    writer: Writer,
    readers: Readers,
    listener: Listener,
}

impl Postgres {
    /// Connects to a database by its URL, `postgres://user:password@host:port/database`, and prepares or upgrades the
    /// schema `nephos` in it.
    ///
    /// Of the usual parameters these are understood besides those that name the server: `sslmode` and `sslrootcert`.
    /// Connections to other machines are encrypted unless it says `sslmode=disable`, and the server's certificate
    /// must then be issued for its name by the authority in the file `sslrootcert`, or by one that the system trusts.
    ///
    /// Whoever opens it so writes whatever others do: for tests, and for programs that are alone.
    pub async fn open(url: &str) -> Result<Self> {
        Self::open_with(url, None).await
    }

    /// Likewise, to write only while nobody of another version has taken over; [`crate::Store::ended`] tells of that.
    pub async fn open_in_turn(url: &str, turn: Turn) -> Result<Self> {
        Self::open_with(url, Some(turn)).await
    }

    /// Looks who wrote last, and at the records of a kind, without changing anything. `None`: there is nothing yet.
    ///
    /// # Errors
    /// Also when the database was made by a newer version.
    pub async fn look(url: &str, kind: &str) -> Result<Option<Occupied>> {
        turn::look(&Target::parse(url)?, kind).await
    }

    /// The format of the database that this program makes, as part of what it writes.
    #[must_use]
    pub fn format() -> usize {
        schema::newest()
    }

    async fn open_with(url: &str, turn: Option<Turn>) -> Result<Self> {
        let target = Arc::new(Target::parse(url)?);
        schema::prepare(&target, turn.as_ref()).await?;
        Ok(Self {
            writer: Writer::new(target.clone(), turn),
            readers: Readers::new(target.clone()),
            listener: Listener::start(target),
        })
    }

    /// The server and database in words, without the password.
    pub fn describe(url: &str) -> Result<String> {
        Target::parse(url).map(|target| target.to_string())
    }

    /// Puts everything from an SQLite file that nobody has open into a database that holds nothing yet; all or nothing.
    pub async fn import(url: &str, from: impl AsRef<Path>) -> Result<Summary> {
        let target = Target::parse(url)?;
        schema::prepare(&target, None).await?;
        sqlite_to_postgres(from.as_ref(), &target).await
    }
}

impl Backend for Postgres {
    fn load(&self) -> BoxStream<Result<Vec<Loaded>>> {
        self.readers.load()
    }

    fn apply(&self, batch: Vec<Arc<RawTransaction>>) -> BoxFuture<'_, Result<Applied>> {
        Box::pin(self.writer.apply(batch))
    }

    fn shared(&self) -> Option<&dyn Shared> {
        Some(self)
    }

    fn changes(&self, filter: ChangeFilter) -> BoxFuture<'_, Result<Vec<RawChange>>> {
        Box::pin(async move { self.readers.changes(&filter).await })
    }

    fn trim(&self, trim: Trim) -> BoxFuture<'_, Result<Trimmed>> {
        Box::pin(self.writer.trim(trim))
    }

    /// The copy is an SQLite file, as that of every other backend.
    fn backup(&self, path: PathBuf) -> BoxFuture<'_, Result<()>> {
        Box::pin(postgres_to_sqlite(self.readers.target(), path))
    }

    fn check(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(self.readers.check())
    }

    fn hurry(&self) {
        self.writer.hurry();
        self.readers.hurry();
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.listener.stop();
            self.readers.close();
            self.writer.close().await;
            Ok(())
        })
    }
}

impl Shared for Postgres {
    fn batches(&self, after: Sequence) -> BoxFuture<'_, Result<Vec<RawBatch>>> {
        Box::pin(self.readers.batches(after))
    }

    fn newest(&self) -> BoxFuture<'_, Result<Sequence>> {
        Box::pin(self.readers.newest())
    }

    fn news(&self, after: Sequence) -> BoxFuture<'_, ()> {
        Box::pin(self.listener.news(after))
    }
}

/// SQL's integers are signed; revisions stay far below the half.
fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn revision(value: i64) -> Revision {
    Revision(value.unsigned_abs())
}
