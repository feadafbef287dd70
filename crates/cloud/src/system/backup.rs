//! A copy of the whole cloud's state while it runs, and making a data folder of it.
//!
//! The copy is a tar archive: `database` (a consistent copy by SQLite's own backup), `keys/`, the credentials files, and
//! `images/`. Images are immutable files that the database names, so they may be read after it. Guests' disks are not
//! in it: they live on nodes and are backed up as volumes are.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::stream;
use nephos_ops::{Download, system::BackUp};
use nephos_types::{Error, ErrorKind, Result};
use tokio::sync::mpsc;

use super::System;
use crate::session::Session;

/// Name of the database in archive and data folder.
const DATABASE: &str = "nephos.db";
/// Folders that are copied whole.
const FOLDERS: [&str; 2] = ["keys", "node"];
/// Files of those folders that belong to this machine's guests and not to the cloud.
const IMAGES: &str = "images";
/// Files beside them.
const FILES: [&str; 5] = ["clouds.yaml", "openrc", "openrc-admin", "aws-credentials", "policy.toml"];
/// How much is read ahead of a slow client.
const CHUNKS_AHEAD: usize = 16;
const CHUNK: usize = 256 << 10;

/// The command that reads what this writes.
pub const RESTORED_BY: &str = "nephos restore";

/// Hands what tar writes to the client, in pieces; a client that left ends the writing.
struct Outlet {
    chunks: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl io::Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.chunks.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

pub(super) async fn back_up(system: Arc<System>, _: Session, input: BackUp) -> Result<Download> {
    let scratch = tempfile::Builder::new()
        .prefix(".backup-")
        .tempdir_in(&system.data)
        .map_err(|error| Error::internal("the data folder has no room for a copy of the database", error))?;
    let copy = scratch.path().join(DATABASE);
    system.store.backup(&copy).await?;
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let data = system.data.clone();
    tokio::task::spawn_blocking(move || {
        let failed = sender.clone();
        let outlet = Outlet { chunks: sender, buffer: vec![] };
        if let Err(error) = write(outlet, &copy, &data, input.without_images) {
            tracing::warn!(error = %error, "a backup was not completed");
            let _ = failed.blocking_send(Err(error));
        }
        drop(scratch);
    });
    let body =
        stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|chunk| (chunk, receiver)) });
    Ok(Download { body: Box::pin(body), length: None, content_type: "application/x-tar" })
}

fn write(outlet: Outlet, database: &Path, data: &Path, without_images: bool) -> io::Result<()> {
    let mut archive = tar::Builder::new(outlet);
    archive.follow_symlinks(false);
    archive.append_path_with_name(database, DATABASE)?;
    for name in FILES {
        let path = data.join(name);
        if path.is_file() {
            archive.append_path_with_name(path, name)?;
        }
    }
    for folder in FOLDERS {
        append_files(&mut archive, data, Path::new(folder), false)?;
    }
    if !without_images {
        append_files(&mut archive, data, Path::new(IMAGES), true)?;
    }
    io::Write::flush(&mut archive.into_inner()?)
}

/// Appends the plain files of a folder of the data folder, and of its folders if `deep`.
fn append_files(archive: &mut tar::Builder<Outlet>, data: &Path, folder: &Path, deep: bool) -> io::Result<()> {
    let entries = match fs::read_dir(data.join(folder)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = folder.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() && deep {
            append_files(archive, data, &name, deep)?;
        } else if kind.is_file() {
            match archive.append_path_with_name(entry.path(), &name) {
                // Deleted since the database was copied: an upload given up, or an image on its way out.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Makes a data folder out of a backup. The folder must be empty or absent. Returns how many files it holds.
pub fn restore(archive: impl io::Read, data: &Path) -> Result<usize> {
    let refuse = |title: &'static str, detail: String| Error::new(ErrorKind::Invalid, "restore", title).detail(detail);
    let broken = |error: io::Error| {
        Error::new(ErrorKind::Invalid, "restore", "The backup cannot be restored").detail(error.to_string())
    };
    if fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(refuse("The data folder is not empty", format!("{} holds files", data.display()))
            .next("name a folder that is empty or does not exist, with --data", None));
    }
    // Built beside it and renamed at the end, so that a restore that ends half-way leaves no half cloud.
    let parent = data.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(broken)?;
    let scratch = tempfile::Builder::new()
        .prefix(".restore-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(broken)?;
    let mut files = 0;
    for entry in tar::Archive::new(archive).entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path: PathBuf = entry.path().map_err(broken)?.into_owned();
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || !entry.header().entry_type().is_file() {
            return Err(refuse("This is not a backup of a cloud", format!("it holds `{}`", path.display())));
        }
        let target = scratch.path().join(&path);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(broken)?;
        }
        entry.set_preserve_permissions(true);
        entry.unpack(&target).map_err(broken)?;
        fs::File::open(&target).and_then(|file| file.sync_all()).map_err(broken)?;
        files += 1;
    }
    if !scratch.path().join(DATABASE).is_file() {
        return Err(refuse("This is not a backup of a cloud", format!("it holds no `{DATABASE}`")));
    }
    let _ = fs::remove_dir(data);
    fs::rename(scratch.keep(), data).map_err(broken)?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(vec![]);
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_backup_becomes_a_data_folder() {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("data");
        let backup = archive(&[(DATABASE, b"db"), ("keys/token", b"k"), ("images/img-1", b"bytes")]);
        assert_eq!(restore(&*backup, &data).unwrap(), 3);
        assert_eq!(fs::read(data.join("images/img-1")).unwrap(), b"bytes");
        assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(restore(&*backup, &data).unwrap_err().kind, ErrorKind::Invalid, "the folder is not empty any more");
    }

    #[test]
    fn hostile_and_broken_archives_leave_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("data");
        let whole = archive(&[(DATABASE, &[7; 4096])]);
        for bad in [archive(&[("../escape", b"x")]), archive(&[("/etc/x", b"x")]), archive(&[]), whole[..1000].to_vec()]
        {
            assert!(restore(&*bad, &data).is_err());
            assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        }
    }
}
