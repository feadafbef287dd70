//! Opening the file: lock, settings, format, upgrades, inspection.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nephos_types::{Error, ErrorKind, Result};
use rusqlite::{Connection, OpenFlags};

use crate::Revision;

use super::failed;

/// Marks the file as ours (`NEPH`), as `file(1)` and SQLite know it.
const APPLICATION_ID: i32 = 0x4e45_5048;

/// What brings a file from format `i` to `i + 1`; a new file is of format 0. Never edit one that was released.
const UPGRADES: &[&str] = &["
    CREATE TABLE position (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        newest INTEGER NOT NULL,
        compacted INTEGER NOT NULL
    ) STRICT;
    INSERT INTO position (one, newest, compacted) VALUES (1, 0, 0);
    CREATE TABLE record (
        place INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        revision INTEGER NOT NULL,
        data TEXT NOT NULL,
        UNIQUE (kind, id)
    ) STRICT;
    CREATE TABLE claim (key TEXT PRIMARY KEY, owner TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE counter (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE change (
        revision INTEGER PRIMARY KEY,
        together INTEGER NOT NULL,
        at INTEGER NOT NULL,
        actor TEXT NOT NULL,
        source TEXT NOT NULL,
        operation TEXT NOT NULL,
        request TEXT NOT NULL,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        project TEXT,
        action INTEGER NOT NULL,
        audited INTEGER NOT NULL,
        before_revision INTEGER,
        before TEXT,
        after TEXT
    ) STRICT;
    CREATE INDEX change_by_id ON change (id, revision);
    CREATE INDEX change_by_project ON change (project, revision) WHERE project IS NOT NULL;
"];

/// What [`super::Sqlite::inspect`] found in a sound file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSummary {
    /// The version of the file's format.
    pub format: u32,
    /// The newest revision in it.
    pub newest: Revision,
    /// How many records of each kind.
    pub records: Vec<(String, u64)>,
}

/// How long a lock may outlive the process that took it.
const LEFT_BEHIND: Duration = Duration::from_secs(5);

/// Holds the lock on a store's file while it lives.
pub(super) struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would leave it locked while a process being started still has a copy of the descriptor.
        let _ = self.file.unlock();
    }
}

impl Lock {
    /// Takes it, or says who has it.
    pub(super) fn take(database: &Path) -> Result<Self> {
        let path = beside(database, ".lock");
        let unusable = |error: std::io::Error| {
            Error::internal(format!("The lock file {} cannot be used", path.display()), error)
                .next("check that the data folder exists and belongs to you", None)
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(unusable)?;
        let begin = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = file.rewind().and_then(|()| (&mut file).take(20).read_to_string(&mut holder));
                    let holder = holder.trim();
                    // A process that was killed while it started another one leaves the lock to that one, until it has
                    // become another program: for milliseconds.
                    let ended = !holder.is_empty() && !Path::new("/proc").join(holder).exists();
                    if ended && begin.elapsed() < LEFT_BEHIND {
                        pause();
                        continue;
                    }
                    let error = Error::conflict("store_locked", "The data folder is in use by another Nephos process")
                        .detail(format!("{} is locked by process {holder}", path.display()))
                        .next("stop that process, or choose another data folder with --data", None);
                    return Err(error);
                }
                Err(TryLockError::Error(error)) => return Err(unusable(error)),
            }
        }
        // For the message above only; the lock is what counts.
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(unusable)?;
        Ok(Self { file })
    }
}

#[allow(clippy::disallowed_methods, reason = "opening a database blocks anyway, and is done on a thread for that")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

/// `<path><suffix>`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes a new, empty file that only its owner may read; fails if there is one.
pub(super) fn create_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes a file's entry in its folder durable.
pub(super) fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// The connection that writes; creates and upgrades the file.
pub(super) fn open_writer(path: &Path) -> Result<Connection> {
    let unusable = |error: std::io::Error| {
        Error::internal(format!("The database {} cannot be opened", path.display()), error)
            .next("check that the data folder exists and belongs to you", None)
    };
    match create_private(path) {
        Ok(file) => file.sync_all().and_then(|()| sync_folder(path)).map_err(unusable)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unusable(error)),
    }
    let broken = failed("The database cannot be opened");
    let mut connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(&broken)?;
    settle(&connection).map_err(&broken)?;
    let format = format(&connection, path)?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)).map_err(&broken)?;
    if mode != "wal" {
        return Err(Error::bug(format!("The file system under {} cannot hold a write-ahead log", path.display()))
            .next("put the data folder on a local file system", None));
    }
    connection.pragma_update(None, "synchronous", "full").map_err(&broken)?;
    // 16 MiB of log between checkpoints; what a checkpoint leaves is cut back to that.
    connection.pragma_update(None, "wal_autocheckpoint", 4000).map_err(&broken)?;
    connection.pragma_update_and_check(None, "journal_size_limit", 16 << 20, |_| Ok(())).map_err(&broken)?;
    upgrade(&mut connection, format).map_err(failed("The database cannot be upgraded"))?;
    Ok(connection)
}

/// A connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    let broken = failed("The database cannot be opened for reading");
    // Read-write, because a read-only connection cannot always take part in a write-ahead log; query_only forbids it.
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(&broken)?;
    settle(&connection).and_then(|()| connection.pragma_update(None, "query_only", true)).map_err(&broken)?;
    Ok(connection)
}

/// Settings that all connections have.
fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    // KiB; most reads are served from the image.
    connection.pragma_update(None, "cache_size", -8192)
}

/// The file's format; refuses files that are not ours or from the future.
fn format(connection: &Connection, path: &Path) -> Result<usize> {
    let broken = failed("The database cannot be read");
    let read = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let (id, version) = (read("application_id").map_err(&broken)?, read("user_version").map_err(&broken)?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(&broken)?;
    if id != APPLICATION_ID && (id, version, tables) != (0, 0, 0) {
        return Err(Error::new(ErrorKind::Unsupported, "not_a_store", "This file is not a Nephos database")
            .detail(path.display().to_string())
            .next("choose another data folder with --data", None));
    }
    match usize::try_from(version) {
        Ok(format) if format <= UPGRADES.len() => Ok(format),
        _ => Err(Error::new(ErrorKind::Unsupported, "newer_data", "The database was written by a newer Nephos")
            .detail(format!("it has format {version}, this program knows up to {}", UPGRADES.len()))
            .next("start the version that wrote it, or a later one", None)),
    }
}

fn upgrade(connection: &mut Connection, from: usize) -> rusqlite::Result<()> {
    if from == UPGRADES.len() {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for (format, statements) in (1..).zip(UPGRADES).skip(from) {
        tracing::info!(format, "upgrading the format of the database");
        transaction.execute_batch(statements)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", UPGRADES.len() as i64)?;
    transaction.commit()
}

/// What is wrong with the file, in words.
pub(super) fn check(connection: &Connection) -> Result<Vec<String>> {
    let broken = failed("The database cannot be checked");
    let texts = |sql: &str| -> rusqlite::Result<Vec<String>> {
        connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
    };
    let mut problems = texts("PRAGMA integrity_check(100)").map_err(&broken)?;
    problems.retain(|line| line != "ok");
    problems.extend(
        texts(
            "SELECT 'record ' || r.id || ' has revision ' || r.revision || ', its last change ' || max(c.revision)
             FROM record r JOIN change c ON c.kind = r.kind AND c.id = r.id
             GROUP BY r.kind, r.id HAVING max(c.revision) <> r.revision LIMIT 100",
        )
        .map_err(&broken)?,
    );
    problems.extend(
        texts(
            "SELECT 'change log: ' || count(*) || ' entries after revision ' || p.compacted || ', newest ' || p.newest
             FROM position p LEFT JOIN change c ON c.revision > p.compacted
             HAVING count(c.revision) <> p.newest - p.compacted",
        )
        .map_err(&broken)?,
    );
    problems.extend(
        texts(
            "SELECT 'change log: transaction ' || together || ' is incomplete'
             FROM change, position WHERE together > newest
             UNION SELECT 'record ' || id || ' is newer than the database' FROM record, position WHERE revision > newest
             LIMIT 100",
        )
        .map_err(&broken)?,
    );
    Ok(problems)
}

/// Reads a file that nobody has open; it stays as it is.
pub(super) fn inspect(path: &Path) -> Result<FileSummary> {
    let broken = failed("The database cannot be read");
    if !path.is_file() {
        return Err(Error::new(ErrorKind::NotFound, "file_not_found", "There is no such file")
            .detail(path.display().to_string()));
    }
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(&broken)?;
    settle(&connection).map_err(&broken)?;
    let format = format(&connection, path)?;
    if format == 0 {
        return Err(Error::new(ErrorKind::Unsupported, "not_a_store", "This file is not a Nephos database")
            .detail(format!("{} is empty", path.display())));
    }
    let problems = check(&connection)?;
    if !problems.is_empty() {
        return Err(Error::new(ErrorKind::Internal, "database_damaged", "The database file is damaged")
            .detail(problems.into_iter().take(5).collect::<Vec<_>>().join("; "))
            .next("use another backup", None));
    }
    let newest: i64 = connection.query_row("SELECT newest FROM position", [], |row| row.get(0)).map_err(&broken)?;
    let records = connection
        .prepare("SELECT kind, count(*) FROM record GROUP BY kind ORDER BY kind")
        .and_then(|mut statement| {
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?;
            rows.collect()
        })
        .map_err(&broken)?;
    Ok(FileSummary {
        format: u32::try_from(format).unwrap_or(u32::MAX),
        newest: Revision(newest.unsigned_abs()),
        records,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_left_behind_by_a_dead_process_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("db");
        let mut left = File::create(beside(&database, ".lock")).unwrap();
        // Process ids end far below this.
        write!(left, "999999999").unwrap();
        left.lock().unwrap();
        let waiting = std::thread::spawn(move || Lock::take(&database).map(|_| ()));
        pause();
        left.unlock().unwrap();
        waiting.join().unwrap().unwrap();
    }
}
