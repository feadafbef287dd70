//! A copy of the whole cloud's state while it runs, and making a data folder of it.
//!
//! The copy is a tar archive: `nephos.db` (a consistent copy by SQLite's own backup), `keys/`, the files of `node/`, the
//! credentials and configuration files, `images/`, and at the end `SHA256SUMS` of all of them: an archive without it was
//! cut off. Guests'
//! disks are not in it: they live on nodes, and servers of a node that has lost them begin anew from their image.
//!
//! Images are immutable files that the database names. All that are there before and after the database is copied are
//! held by hard links, so that one that is deleted meanwhile is not missed.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::stream;
use nephos_ops::{Download, system::BackUp};
use nephos_store::Sqlite;
use nephos_types::{Error, ErrorKind, Result};
use ring::digest;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::System;
use crate::{control::DATABASE, session::Session};

/// Folders whose files are copied. Below `node` are this machine's guests, which do not belong to the cloud's state.
const FOLDERS: [&str; 2] = ["keys", "node"];
/// The folder of images.
const IMAGES: &str = "images";
/// Files beside them.
const FILES: [&str; 6] = ["clouds.yaml", "openrc", "openrc-admin", "aws-credentials", "policy.toml", "nephos.toml"];
/// The last file of an archive: a line with SHA-256 in hexadecimal, two spaces and the name, for each of the others.
const SUMS: &str = "SHA256SUMS";
/// More than the sums of a million files.
const MOST_SUMS: u64 = 256 << 20;
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
    let folder = |within: &Path| {
        tempfile::Builder::new()
            .prefix(".backup-")
            .tempdir_in(within)
            .map_err(|error| Error::internal("the data folder has no room for a copy of the database", error))
    };
    let scratch = folder(&system.data)?;
    let copy = scratch.path().join(DATABASE);
    // Links do not lead to another file system, on which images may be.
    let links = folder(&system.images)?;
    let held = links.path().to_owned();
    if !input.without_images {
        hold_images(&system.images, &held).await?;
    }
    system.store.backup(&copy).await?;
    if !input.without_images {
        hold_images(&system.images, &held).await?;
    }
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let data = system.data.clone();
    tokio::task::spawn_blocking(move || {
        let failed = sender.clone();
        let outlet = Outlet { chunks: sender, buffer: vec![] };
        if let Err(error) = write(outlet, &copy, &data, &held) {
            tracing::warn!(error = %error, "a backup was not completed");
            let _ = failed.blocking_send(Err(error));
        }
        drop((scratch, links));
    });
    let body =
        stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|chunk| (chunk, receiver)) });
    Ok(Download { body: Box::pin(body), length: None, content_type: "application/x-tar" })
}

/// Links all images that are complete into a folder, besides those that are there already.
async fn hold_images(images: &Path, held: &Path) -> Result<()> {
    let (images, held) = (images.to_owned(), held.to_owned());
    let linking = move || {
        for (name, path) in files_of(&images)? {
            match fs::hard_link(path, held.join(name)) {
                // Held already, or deleted since it was listed.
                Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {}
                other => other?,
            }
        }
        Ok(())
    };
    let linked: io::Result<()> = tokio::task::spawn_blocking(linking)
        .await
        .map_err(|error| Error::internal("the backup was broken off", error))?;
    linked.map_err(|error| Error::internal("the images could not be held for the backup", error))
}

/// The plain files of a folder by name, without hidden ones: those are not complete yet.
fn files_of(folder: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
            && entry.file_type()?.is_file()
        {
            files.insert(name, entry.path());
        }
    }
    Ok(files)
}

/// Computes the sum of what is read or written through it.
struct Summed<T> {
    inner: T,
    sum: digest::Context,
    length: u64,
}

impl<T> Summed<T> {
    fn new(inner: T) -> Self {
        Self { inner, sum: digest::Context::new(&digest::SHA256), length: 0 }
    }

    fn take_in(&mut self, bytes: &[u8]) {
        self.sum.update(bytes);
        self.length += bytes.len() as u64;
    }

    fn sum(self) -> String {
        hex::encode(self.sum.finish())
    }
}

impl<T: io::Read> io::Read for Summed<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.take_in(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// An archive that is being written, and the sums of what is in it.
struct Archive<W: io::Write> {
    tar: tar::Builder<W>,
    sums: String,
}

impl<W: io::Write> Archive<W> {
    fn new(outlet: W) -> Self {
        Self { tar: tar::Builder::new(outlet), sums: String::new() }
    }

    fn add(&mut self, path: &Path, name: &str) -> io::Result<()> {
        let file = fs::File::open(path)?;
        let metadata = file.metadata()?;
        self.add_content(io::Read::take(file, metadata.len()), metadata.len(), metadata.permissions().mode(), name)
    }

    fn add_content(&mut self, content: impl io::Read, length: u64, mode: u32, name: &str) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(length);
        header.set_mode(mode & 0o777);
        let mut content = Summed::new(content);
        self.tar.append_data(&mut header, name, &mut content)?;
        if content.length != length {
            return Err(io::Error::other(format!("{name} changed while it was copied")));
        }
        self.sums.push_str(&format!("{}  {name}\n", content.sum()));
        Ok(())
    }

    fn end(mut self) -> io::Result<W> {
        let sums = std::mem::take(&mut self.sums);
        self.add_content(sums.as_bytes(), sums.len() as u64, 0o600, SUMS)?;
        self.tar.into_inner()
    }
}

fn write(outlet: Outlet, database: &Path, data: &Path, held: &Path) -> io::Result<()> {
    let mut archive = Archive::new(outlet);
    archive.add(database, DATABASE)?;
    for name in FILES {
        let path = data.join(name);
        if path.is_file() {
            archive.add(&path, name)?;
        }
    }
    for folder in FOLDERS {
        for (name, path) in files_of(&data.join(folder))? {
            archive.add(&path, &format!("{folder}/{name}"))?;
        }
    }
    for (name, path) in files_of(held)? {
        archive.add(&path, &format!("{IMAGES}/{name}"))?;
    }
    io::Write::flush(&mut archive.end()?)
}

fn refused(title: &'static str, detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, "restore", title).detail(detail.into())
}

fn broken(error: io::Error) -> Error {
    refused("The backup cannot be restored", error.to_string())
}

/// Makes a data folder out of a backup, all of it or nothing. The folder must be empty or absent. Returns how many
/// files it holds.
pub async fn restore(archive: impl io::Read + Send + 'static, data: &Path) -> Result<usize> {
    if fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(refused("The data folder is not empty", format!("{} holds files", data.display()))
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
    let (scratch, files) = tokio::task::spawn_blocking(move || unpack(archive, &scratch).map(|files| (scratch, files)))
        .await
        .map_err(|error| Error::internal("the restore was broken off", error))??;
    let copy = scratch.path().join(COPY);
    // Checks it, and sees to it that nothing older is taken for newer.
    Sqlite::restore(&copy, scratch.path().join(DATABASE)).await?;
    fs::remove_file(copy).map_err(broken)?;
    let _ = fs::remove_dir(data);
    fs::rename(scratch.path(), data).map_err(broken)?;
    let _ = scratch.keep();
    fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(broken)?;
    Ok(files)
}

/// What the database of the archive is called until it has been checked.
const COPY: &str = ".nephos.db.copy";

/// Unpacks an archive and checks that it is whole. Returns how many files there are.
fn unpack(archive: impl io::Read, scratch: &TempDir) -> Result<usize> {
    let not_ours = |detail: String| refused("This is not a backup of a cloud", detail);
    let mut found = BTreeMap::new();
    let mut expected = None;
    for entry in tar::Archive::new(archive).entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path: PathBuf = entry.path().map_err(broken)?.into_owned();
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        let Some(name) = path.to_str().filter(|_| plain && entry.header().entry_type().is_file()) else {
            return Err(not_ours(format!("it holds `{}`", path.display())));
        };
        if name == SUMS {
            let mut text = String::new();
            io::Read::read_to_string(&mut io::Read::take(&mut entry, MOST_SUMS), &mut text).map_err(broken)?;
            expected = Some(text);
            continue;
        }
        let target = scratch.path().join(if name == DATABASE { COPY } else { name });
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(broken)?;
        }
        let mode = entry.header().mode().map_err(broken)? & 0o777;
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode | 0o600).open(&target).map_err(broken)?;
        let mut content = Summed::new(&mut entry);
        io::copy(&mut content, &mut file).map_err(broken)?;
        let sum = content.sum();
        file.set_permissions(fs::Permissions::from_mode(mode)).and_then(|()| file.sync_all()).map_err(broken)?;
        found.insert(name.to_owned(), sum);
    }
    if !found.contains_key(DATABASE) {
        return Err(not_ours(format!("it holds no `{DATABASE}`")));
    }
    let Some(expected) = expected else {
        return Err(refused("The backup is not complete", format!("its end, with `{SUMS}`, is missing"))
            .next("use another backup, or copy this one again from where it was made", None));
    };
    let expected: BTreeMap<&str, &str> =
        expected.lines().filter_map(|line| line.split_once("  ")).map(|(sum, name)| (name, sum)).collect();
    for (name, sum) in &expected {
        if found.get(*name).is_none_or(|found| found != sum) {
            return Err(refused("The backup is damaged", format!("`{name}` is not as it was backed up"))
                .next("use another backup, or copy this one again from where it was made", None));
        }
    }
    if let Some(name) = found.keys().find(|name| !expected.contains_key(name.as_str())) {
        return Err(not_ours(format!("it holds `{name}`")));
    }
    Ok(found.len())
}

#[cfg(test)]
mod tests {
    use nephos_store::{Kinds, Store};

    use super::*;

    /// An archive as the cloud writes it, with a database that can be opened.
    async fn backup(files: &[(&str, &[u8])]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("copy");
        let sqlite = Sqlite::open(folder.path().join(DATABASE)).await.unwrap();
        let store = Store::open(sqlite, Kinds::new()).await.unwrap();
        store.backup(&database).await.unwrap();
        store.close().await.unwrap();
        let mut archive = Archive::new(vec![]);
        archive.add(&database, DATABASE).unwrap();
        for (name, content) in files {
            archive.add_content(*content, content.len() as u64, 0o400, name).unwrap();
        }
        archive.end().unwrap()
    }

    async fn restored(archive: &[u8], data: &Path) -> Result<usize> {
        restore(io::Cursor::new(archive.to_vec()), data).await
    }

    #[tokio::test]
    async fn a_backup_becomes_a_data_folder() {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("data");
        let backup = backup(&[("keys/token", b"k"), ("images/img-1", b"bytes")]).await;
        assert_eq!(restored(&backup, &data).await.unwrap(), 3);
        assert_eq!(fs::read(data.join("images/img-1")).unwrap(), b"bytes");
        assert_eq!(fs::metadata(data.join("keys/token")).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!data.join(COPY).exists());
        Sqlite::open(data.join(DATABASE)).await.unwrap();
        let again = restored(&backup, &data).await.unwrap_err();
        assert_eq!(again.title, "The data folder is not empty");
    }

    #[tokio::test]
    async fn hostile_and_broken_archives_leave_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("data");
        let whole = backup(&[("images/img-1", &[7; 2000])]).await;
        let image = whole.windows(2000).position(|bytes| bytes == [7; 2000]).unwrap();
        let mut changed = whole.clone();
        changed[image + 1000] ^= 1;
        let foreign = |name: &str| {
            let mut builder = tar::Builder::new(vec![]);
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(1);
            header.set_mode(0o600);
            header.set_cksum();
            builder.append(&header, &b"x"[..]).unwrap();
            builder.into_inner().unwrap()
        };
        let mut no_database = Archive::new(vec![]);
        no_database.add_content(&b"x"[..], 1, 0o600, DATABASE).unwrap();
        let bad = [
            foreign("../escape"),
            foreign("/etc/x"),
            foreign(DATABASE),
            vec![],
            no_database.end().unwrap(),
            changed,
            whole[..1000].to_vec(),
            whole[..image - 512].to_vec(),
            whole[..image + 1000].to_vec(),
            whole[..image + 2048].to_vec(),
        ];
        for (number, bad) in bad.iter().enumerate() {
            assert!(restored(bad, &data).await.is_err(), "{number}");
            assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0, "{number}");
        }
    }
}
