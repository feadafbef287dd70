//! Reading beside the writer: loading, the change log, backups.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::stream;
use nephos_types::{Error, Result, Timestamp};
use rusqlite::{Connection, Row, ToSql};
use tokio::sync::{Semaphore, mpsc};

use super::{
    apply::signed,
    blocking,
    connection::{beside, create_private, open_reader, sync_folder},
    failed,
};
use crate::{
    Author, Revision,
    backend::{BoxFuture, BoxStream, ChangeFilter, Loaded, RawChange, RawRecord, Sequence},
    change::Action,
    error::closed,
};

/// At most this many connections read at a time.
const READERS: u32 = 4;
/// Items in one chunk of a load.
const CHUNK: usize = 1024;

/// Connections for reading, opened when needed and kept for the next.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::default(), permits: Arc::new(Semaphore::new(READERS as usize)) }
    }

    /// Runs work on a connection, away from the async threads.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let readers = self.clone();
        Box::pin(async move {
            let permit = readers.permits.clone().acquire_owned().await.map_err(|_| closed())?;
            blocking(move || {
                let idle = readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let connection = match idle {
                    Some(connection) => connection,
                    None => open_reader(&readers.path)?,
                };
                let result = work(&connection);
                readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
                drop(permit);
                result
            })
            .await
        })
    }

    /// Waits for those at work and closes all.
    pub(super) async fn close(&self) {
        // Fails only if this was called before.
        if let Ok(all) = self.permits.acquire_many(READERS).await {
            all.forget();
            self.permits.close();
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Everything there is, from one read transaction.
pub(super) fn load(readers: Arc<Readers>) -> BoxStream<Result<Vec<Loaded>>> {
    let (send, receive) = mpsc::channel(4);
    tokio::spawn(async move {
        let failures = send.clone();
        if let Err(error) = readers.run(move |connection| send_all(connection, &send)).await {
            let _ = failures.send(Err(error)).await;
        }
    });
    Box::pin(stream::unfold(receive, |mut receive| async { receive.recv().await.map(|chunk| (chunk, receive)) }))
}

fn send_all(connection: &Connection, send: &mpsc::Sender<Result<Vec<Loaded>>>) -> Result<()> {
    let broken = failed("The database cannot be read");
    let sql = connection.unchecked_transaction().map_err(&broken)?;
    let each = |query: &str, item: fn(&Row<'_>) -> rusqlite::Result<Loaded>| -> Result<bool> {
        let mut statement = sql.prepare(query).map_err(&broken)?;
        let mut rows = statement.query_map([], item).map_err(&broken)?;
        loop {
            let chunk: Vec<Loaded> = rows.by_ref().take(CHUNK).collect::<rusqlite::Result<_>>().map_err(&broken)?;
            if chunk.is_empty() {
                return Ok(true);
            }
            if send.blocking_send(Ok(chunk)).is_err() {
                return Ok(false);
            }
        }
    };
    // In the order of the file: sorting would cost more than inserting unsorted into memory.
    let _ = each("SELECT newest, compacted FROM position", position)?
        && each("SELECT kind, id, revision, data FROM record", record)?
        && each("SELECT key, owner FROM claim", claim)?
        && each("SELECT key, value FROM counter", counter)?;
    Ok(())
}

pub(super) fn position(row: &Row<'_>) -> rusqlite::Result<Loaded> {
    Ok(Loaded::Position { newest: revision(row, 0)?, compacted: revision(row, 1)?, sequence: Sequence::default() })
}

pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<Loaded> {
    Ok(Loaded::Record(RawRecord { kind: row.get(0)?, id: row.get(1)?, revision: revision(row, 2)?, data: row.get(3)? }))
}

pub(super) fn claim(row: &Row<'_>) -> rusqlite::Result<Loaded> {
    Ok(Loaded::Claim { key: row.get(0)?, owner: row.get(1)? })
}

pub(super) fn counter(row: &Row<'_>) -> rusqlite::Result<Loaded> {
    Ok(Loaded::Counter { key: row.get(0)?, value: row.get(1)? })
}

pub(super) fn changes(connection: &Connection, filter: &ChangeFilter) -> Result<Vec<RawChange>> {
    let broken = failed("The change log cannot be read");
    let mut sql = String::from(
        "SELECT revision, together, at, actor, source, operation, request, kind, id, project, action,
                before_revision, before, after
         FROM change WHERE revision > ?",
    );
    let mut values: Vec<Box<dyn ToSql>> = vec![Box::new(signed(filter.after.0))];
    if let Some(before) = filter.before {
        sql.push_str(" AND revision < ?");
        values.push(Box::new(signed(before.0)));
    }
    for (column, value) in
        [("kind", &filter.kind), ("id", &filter.id), ("project", &filter.project), ("actor", &filter.actor)]
    {
        if let Some(value) = value {
            sql.push_str(" AND ");
            sql.push_str(column);
            sql.push_str(" = ?");
            values.push(Box::new(value.clone()));
        }
    }
    sql.push_str(if filter.newest_first { " ORDER BY revision DESC LIMIT ?" } else { " ORDER BY revision LIMIT ?" });
    values.push(Box::new(i64::try_from(filter.limit).unwrap_or(i64::MAX)));
    let read = || -> rusqlite::Result<Vec<RawChange>> {
        let mut statement = connection.prepare_cached(&sql)?;
        statement.query_map(rusqlite::params_from_iter(&values), change)?.collect()
    };
    read().map_err(&broken)
}

pub(super) fn change(row: &Row<'_>) -> rusqlite::Result<RawChange> {
    Ok(RawChange {
        revision: revision(row, 0)?,
        commit: revision(row, 1)?,
        at: Timestamp::from_micros(row.get(2)?),
        author: Author { actor: row.get(3)?, source: row.get(4)?, operation: row.get(5)?, request: row.get(6)? },
        kind: row.get(7)?,
        id: row.get(8)?,
        project: row.get(9)?,
        action: Action::from_code(row.get(10)?),
        before_revision: row.get::<_, Option<i64>>(11)?.map(|revision| Revision(revision.unsigned_abs())),
        before: row.get(12)?,
        after: row.get(13)?,
    })
}

fn revision(row: &Row<'_>, column: usize) -> rusqlite::Result<Revision> {
    Ok(Revision(row.get::<_, i64>(column)?.unsigned_abs()))
}

/// A compact copy from one read transaction, complete and flushed before it gets its name.
pub(super) fn backup(connection: &Connection, path: &Path) -> Result<()> {
    let unusable = |error: std::io::Error| {
        Error::internal(format!("The backup {} cannot be written", path.display()), error)
            .next("choose a folder that exists and has space", None)
    };
    if path.exists() {
        return Err(Error::conflict("backup_exists", "A backup never overwrites a file")
            .detail(format!("{} exists", path.display()))
            .next("choose another name", None));
    }
    let partial = beside(path, ".partial");
    // What a broken-off backup left; a backup under way to the same name would be the caller's mistake.
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(unusable(error)),
        _ => {}
    }
    let copy = || -> Result<()> {
        let file = create_private(&partial).map_err(unusable)?;
        let target = partial.to_str().ok_or_else(|| {
            Error::invalid("invalid_path", "The backup's path is not readable text").next("choose another path", None)
        })?;
        let broken = failed("The backup cannot be written");
        // `query_only` would also forbid writing the copy.
        connection.pragma_update(None, "query_only", false).map_err(&broken)?;
        let copied = connection.execute("VACUUM INTO ?1", [target]);
        connection.pragma_update(None, "query_only", true).map_err(&broken)?;
        copied.map_err(&broken)?;
        file.sync_all()
            .and_then(|()| std::fs::rename(&partial, path))
            .and_then(|()| sync_folder(path))
            .map_err(unusable)
    };
    copy().inspect_err(|_| drop(std::fs::remove_file(&partial)))
}
