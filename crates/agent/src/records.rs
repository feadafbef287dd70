//! What the node remembers of each server: what it should be, and how far that has been brought.
//!
//! One file per server, replaced as a whole, so that a killed agent leaves the old or the new one. Files are flushed
//! to the disk in the background: a machine that loses power loses its guests too, and a file that is not whole then
//! counts as absent until the control plane says again what should be.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nephos_node_api::DesiredServer;
use nephos_types::{Error, Result, ServerId};
use serde::{Deserialize, Serialize};

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What it should be.
    pub(crate) desired: DesiredServer,
    /// The generation that has been reached.
    pub(crate) reached: u64,
    /// Reboots done, of those in `desired.reboots`.
    pub(crate) reboots: u64,
    /// Restarts after crashes.
    pub(crate) restarts: u64,
    /// The guest has ended by itself and stays off until somebody asks for it again.
    pub(crate) left_off: bool,
}

impl Record {
    /// Of a server that nothing has been done for.
    pub(crate) fn new(desired: DesiredServer) -> Self {
        Self { desired, reached: 0, reboots: 0, restarts: 0, left_off: false }
    }
}

/// Where records are kept.
#[derive(Clone)]
pub(crate) enum Records {
    /// Nowhere but in memory.
    Memory,
    /// In a folder.
    Disk(Arc<Folder>),
}

pub(crate) struct Folder {
    path: PathBuf,
    unflushed: Mutex<BTreeSet<PathBuf>>,
}

impl Records {
    /// In the folder `servers` below the agent's own, which is made if it is not there.
    pub(crate) fn open(data: Option<&Path>) -> Result<Self> {
        let Some(data) = data else { return Ok(Self::Memory) };
        let path = data.join("servers");
        private_folder(&path)?;
        Ok(Self::Disk(Arc::new(Folder { path, unflushed: Mutex::default() })))
    }

    /// All records that can be read.
    pub(crate) fn load(&self) -> Result<Vec<Record>> {
        let Self::Disk(folder) = self else { return Ok(vec![]) };
        let broken = |error| Error::internal("The agent's folder cannot be read", error);
        let mut records = vec![];
        for entry in fs::read_dir(&folder.path).map_err(broken)? {
            let path = entry.map_err(broken)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                let _ = fs::remove_file(&path);
                continue;
            }
            match fs::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|text| serde_json::from_slice::<Record>(&text).map_err(|error| error.to_string()))
            {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::warn!(file = %path.display(), error, "a server's record cannot be read; the control plane will say again what it should be");
                }
            }
        }
        Ok(records)
    }

    /// Keeps a record; blocks for the time of a small write.
    pub(crate) async fn save(&self, record: Record) -> Result<()> {
        let Self::Disk(folder) = self else { return Ok(()) };
        let folder = folder.clone();
        blocking(move || {
            let path = folder.file(record.desired.id);
            replace(&path, &serde_json::to_vec(&record).map_err(io::Error::other)?, false)?;
            folder.unflushed.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
            Ok(())
        })
        .await
    }

    /// Forgets a record.
    pub(crate) async fn remove(&self, id: ServerId) -> Result<()> {
        let Self::Disk(folder) = self else { return Ok(()) };
        let folder = folder.clone();
        blocking(move || match fs::remove_file(folder.file(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await
    }

    /// Brings to the disk what has been saved.
    pub(crate) async fn flush(&self) -> Result<()> {
        let Self::Disk(folder) = self else { return Ok(()) };
        let folder = folder.clone();
        blocking(move || {
            let files = std::mem::take(&mut *folder.unflushed.lock().unwrap_or_else(PoisonError::into_inner));
            if files.is_empty() {
                return Ok(());
            }
            for file in files {
                match fs::File::open(&file) {
                    Ok(file) => file.sync_all()?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            fs::File::open(&folder.path)?.sync_all()
        })
        .await
    }
}

impl Folder {
    fn file(&self, id: ServerId) -> PathBuf {
        self.path.join(format!("{id}.json"))
    }
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<()> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal("The agent's disk work was given up", error))?
        .map_err(|error| Error::internal("The agent's folder cannot be written", error))
}

/// Makes a folder that only its owner can read.
pub(crate) fn private_folder(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Error::internal("The agent's folder cannot be made", error).detail(path.display().to_string()))
}

/// Replaces a file that only its owner can read, as a whole.
pub(crate) fn replace(path: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(content)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&fresh, path)?;
    if let (true, Some(folder)) = (durable, path.parent()) {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}
