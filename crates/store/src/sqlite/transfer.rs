//! Everything out of a file that nobody has open, and everything into a new one.

use std::path::{Path, PathBuf};

use nephos_types::{Error, ErrorKind, Result};
use rusqlite::{Connection, params};

use super::{
    apply::signed,
    blocking,
    connection::{self, Lock, beside, create_private, open_writer, sync_folder},
    failed,
    read::{change, claim, counter, position, record},
};
use crate::{
    backend::Loaded,
    transfer::{Row, Rows, SendRows, Summary},
};

/// Rows that are sent at once.
const CHUNK: usize = 1024;

/// Sends all rows of a file that nobody has open; refuses one that is in use or damaged.
pub(crate) async fn export(path: PathBuf, send: SendRows) -> Result<()> {
    blocking(move || {
        let result = export_now(&path, &send);
        if let Err(error) = &result {
            let _ = send.blocking_send(Err(error.clone()));
        }
        result
    })
    .await
}

fn export_now(path: &Path, send: &SendRows) -> Result<()> {
    if !path.is_file() {
        return Err(Error::new(ErrorKind::NotFound, "file_not_found", "There is no such file")
            .detail(path.display().to_string()));
    }
    let _lock = Lock::take(path)?;
    // For writing, so that a log that a killed process left is taken in.
    let connection = open_writer(path)?;
    let problems = connection::check(&connection)?;
    if !problems.is_empty() {
        return Err(Error::new(ErrorKind::Internal, "database_damaged", "The database file is damaged")
            .detail(problems.into_iter().take(5).collect::<Vec<_>>().join("; "))
            .next("use a backup", None));
    }
    each_row(&connection, |rows| Ok(send.blocking_send(Ok(rows)).is_ok()))
}

/// Hands out all rows in the order of their keys, until nobody wants more.
fn each_row(connection: &Connection, mut hand: impl FnMut(Vec<Row>) -> Result<bool>) -> Result<()> {
    let broken = failed("The database cannot be read");
    let mut each = |sql: &str, item: fn(&rusqlite::Row<'_>) -> rusqlite::Result<Row>| -> Result<bool> {
        let mut statement = connection.prepare(sql).map_err(&broken)?;
        let mut rows = statement.query_map([], item).map_err(&broken)?;
        loop {
            let chunk: Vec<Row> = rows.by_ref().take(CHUNK).collect::<rusqlite::Result<_>>().map_err(&broken)?;
            if chunk.is_empty() {
                return Ok(true);
            }
            if !hand(chunk)? {
                return Ok(false);
            }
        }
    };
    let _ = each("SELECT newest, compacted FROM position", |row| position(row).map(Row::Live))?
        && each("SELECT kind, id, revision, data FROM record ORDER BY kind, id", |row| record(row).map(Row::Live))?
        && each("SELECT key, owner FROM claim ORDER BY key", |row| claim(row).map(Row::Live))?
        && each("SELECT key, value FROM counter ORDER BY key", |row| counter(row).map(Row::Live))?
        && each(
            "SELECT revision, together, at, actor, source, operation, request, kind, id, project, action,
                    before_revision, before, after, audited
             FROM change ORDER BY revision",
            |row| Ok(Row::Change { change: change(row)?, audited: row.get(14)? }),
        )?;
    Ok(())
}

/// Makes a new file of rows; it gets its name when it is complete.
pub(crate) async fn import(path: PathBuf, rows: Rows) -> Result<()> {
    blocking(move || import_now(&path, rows)).await
}

fn import_now(path: &Path, rows: Rows) -> Result<()> {
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
    let remove = || {
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(beside(&partial, end));
        }
    };
    remove();
    let copy = || -> Result<()> {
        drop(create_private(&partial).map_err(unusable)?);
        let mut connection = open_writer(&partial)?;
        fill(&mut connection, rows)?;
        // Moves the log into the file and removes it.
        connection.close().map_err(|(_, error)| failed("The backup cannot be written")(error))?;
        std::fs::File::open(&partial)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&partial, path))
            .and_then(|()| sync_folder(path))
            .map_err(unusable)
    };
    copy().inspect_err(|_| remove())
}

fn fill(connection: &mut Connection, mut rows: Rows) -> Result<()> {
    let broken = failed("The backup cannot be written");
    let sql = connection.transaction().map_err(&broken)?;
    let mut sent = Summary::default();
    while let Some(chunk) = rows.blocking_recv() {
        let chunk = chunk?;
        sent.add(&chunk);
        for row in &chunk {
            insert(&sql, row).map_err(&broken)?;
        }
    }
    let mut arrived = Summary::default();
    each_row(&sql, |rows| {
        arrived.add(&rows);
        Ok(true)
    })?;
    sent.compare(arrived)?;
    sql.commit().map_err(&broken)
}

fn insert(sql: &Connection, row: &Row) -> rusqlite::Result<()> {
    match row {
        Row::Live(Loaded::Position { newest, compacted, .. }) => sql
            .prepare_cached("UPDATE position SET newest = ?1, compacted = ?2")?
            .execute([signed(newest.0), signed(compacted.0)])?,
        Row::Live(Loaded::Record(record)) => sql
            .prepare_cached("INSERT INTO record (kind, id, revision, data) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![record.kind, record.id, signed(record.revision.0), record.data])?,
        Row::Live(Loaded::Claim { key, owner }) => {
            sql.prepare_cached("INSERT INTO claim (key, owner) VALUES (?1, ?2)")?.execute([key, owner])?
        }
        Row::Live(Loaded::Counter { key, value }) => {
            sql.prepare_cached("INSERT INTO counter (key, value) VALUES (?1, ?2)")?.execute(params![key, value])?
        }
        Row::Change { change, audited } => sql
            .prepare_cached(
                "INSERT INTO change (revision, together, at, actor, source, operation, request, kind, id, project,
                                     action, audited, before_revision, before, after)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            )?
            .execute(params![
                signed(change.revision.0),
                signed(change.commit.0),
                change.at.as_micros(),
                change.author.actor,
                change.author.source,
                change.author.operation,
                change.author.request,
                change.kind,
                change.id,
                change.project,
                change.action.code(),
                audited,
                change.before_revision.map(|revision| signed(revision.0)),
                change.before,
                change.after,
            ])?,
    };
    Ok(())
}
