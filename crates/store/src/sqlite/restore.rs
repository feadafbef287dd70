//! Making a store file out of a backup.

use std::path::Path;

use nephos_types::{Error, ErrorKind, Result};

use super::{
    connection::{FileSummary, Lock, beside, create_private, inspect, open_writer, sync_folder},
    failed,
};

/// How far the revisions of a restored store are above those of its backup: more than a cloud makes between a backup
/// and the day it is needed.
const LEAP: i64 = 1 << 32;

pub(super) fn restore(backup: &Path, path: &Path) -> Result<FileSummary> {
    let summary = inspect(backup)?;
    let _lock = Lock::take(path)?;
    if path.exists() {
        return Err(Error::new(ErrorKind::Conflict, "store_exists", "A restore never overwrites a database")
            .detail(format!("{} exists", path.display()))
            .next("move the data folder away, or restore into an empty one", None));
    }
    let partial = beside(path, ".partial");
    let copied = copy(backup, &partial, path);
    if copied.is_err() {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(beside(&partial, suffix));
        }
    }
    copied.map(|()| summary)
}

/// Copies to `partial`, and gives it its name when it is complete.
fn copy(backup: &Path, partial: &Path, path: &Path) -> Result<()> {
    let unusable = |error: std::io::Error| {
        Error::internal(format!("The backup cannot be copied to {}", path.display()), error)
            .next("check that the data folder exists, belongs to you and has space", None)
    };
    // Logs of files that are gone: SQLite would replay them into the new one.
    for stray in ["", "-wal", "-shm"]
        .map(|end| beside(partial, end))
        .iter()
        .chain(&["-wal", "-shm"].map(|end| beside(path, end)))
    {
        match std::fs::remove_file(stray) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(unusable(error)),
            _ => {}
        }
    }
    let mut from = std::fs::File::open(backup).map_err(unusable)?;
    let mut to = create_private(partial).map_err(unusable)?;
    std::io::copy(&mut from, &mut to).and_then(|_| to.sync_all()).map_err(unusable)?;

    let broken = failed("The backup cannot be prepared");
    let connection = open_writer(partial)?;
    connection.execute("UPDATE position SET newest = newest + ?1", [LEAP]).map_err(&broken)?;
    connection.execute("UPDATE position SET compacted = newest", []).map_err(&broken)?;
    // Moves the log into the file and removes it.
    connection.close().map_err(|(_, error)| broken(error))?;
    std::fs::rename(partial, path).and_then(|()| sync_folder(path)).map_err(unusable)
}
