//! Unpacked images: one folder per image file, shared by all guests that stand on it, never written to.
//!
//! Invariants: a folder that has its name is complete; an image is unpacked once, however many guests ask for it; a
//! folder that a guest stands on is not removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use nephos_driver::DiskFormat;
use nephos_host::files;
use nephos_types::{Error, ErrorKind as Kind};
use sha2::{Digest, Sha256};
use tokio::{process::Command, time::timeout};

use crate::{
    image::Program,
    keeper::unpack::{Limits, ROOT, Request},
};

const PROGRAM: &str = "program.json";
/// Beginning of the name of a folder that is being filled.
const UNFINISHED: &str = ".unpacking-";
/// The most that is read of what an unpacking process says.
const MAX_ANSWER: usize = 1 << 20;
/// Room on the disk that unpacking leaves for others.
const RESERVE: u64 = 1 << 30;

/// The folder of unpacked images.
pub(crate) struct Bases {
    folder: PathBuf,
    keeper: PathBuf,
    /// How long one that no guest stands on is kept.
    keep: Duration,
    limits: Limits,
    time_limit: Duration,
    /// Who is unpacking what.
    work: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Bases {
    /// Opens the folder, and clears what was left unfinished.
    pub(crate) fn open(folder: PathBuf, keeper: PathBuf, keep: Duration, limits: Limits) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let time_limit = Duration::from_secs(limits.seconds.saturating_mul(2));
        Ok(Self { folder, keeper, keep, limits, time_limit, work: Mutex::default() })
    }

    /// The tree of an unpacked image.
    pub(crate) fn root(&self, key: &str) -> PathBuf {
        self.folder.join(key).join(ROOT)
    }

    /// The most content of one image.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.limits.bytes
    }

    /// How an unpacked image is run.
    pub(crate) fn program(&self, key: &str) -> io::Result<Program> {
        files::read(&self.folder.join(key).join(PROGRAM))?.ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// Sees to it that an image is unpacked, and says under which key.
    pub(crate) async fn ensure(&self, image: &Path, format: DiskFormat) -> Result<String, Error> {
        if !format.is_root_file_system() {
            return Err(unusable("it is a disk, and containers need a root file system"));
        }
        let unreadable = |error: io::Error| {
            Error::new(Kind::Internal, "base_image_unreadable", "The base image cannot be read")
                .detail(format!("{}: {error}", image.display()))
        };
        let file = File::open(image).map_err(unreadable)?;
        let key = key(image, format, &file).map_err(unreadable)?;
        let work = self.work().entry(key.clone()).or_default().clone();
        let turn = work.clone().lock_owned().await;
        let outcome = if self.folder.join(&key).is_dir() { Ok(()) } else { self.unpack(&key, file, format).await };
        drop((turn, work));
        self.work().retain(|_, work| Arc::strong_count(work) > 1);
        outcome?;
        self.touch(&key);
        Ok(key)
    }

    fn work(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<tokio::sync::Mutex<()>>>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn unpack(&self, key: &str, image: File, format: DiskFormat) -> Result<(), Error> {
        let failed = |error: io::Error| match error.kind() {
            ErrorKind::StorageFull => {
                Error::new(Kind::Capacity, "node_disk_full", "The node's disk is full").source(error)
            }
            _ => Error::internal("The base image cannot be unpacked", error),
        };
        let room = rustix::fs::statvfs(&self.folder).map_err(|error| failed(error.into()))?;
        let room = room.f_bavail.saturating_mul(room.f_frsize).saturating_sub(RESERVE);
        let limits = Limits { bytes: self.limits.bytes.min(room), ..self.limits };
        let request = serde_json::to_string(&Request { format, limits }).map_err(|error| failed(error.into()))?;
        let unfinished = Unfinished(self.folder.join(format!("{UNFINISHED}{key}")));
        files::gone(fs::remove_dir_all(&unfinished.0)).map_err(failed)?;
        // Others may pass through, not look: inside, another user works.
        DirBuilder::new().mode(0o711).create(&unfinished.0).map_err(failed)?;
        let mut command = Command::new(&self.keeper);
        command.args([crate::keeper::COMMAND, "unpack", &request]).env_clear().current_dir(&unfinished.0);
        command.stdin(image).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.as_std_mut().process_group(0);
        let output = match timeout(self.time_limit, command.output()).await {
            Ok(output) => output.map_err(failed)?,
            Err(_) => return Err(unusable("unpacking it takes too long")),
        };
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            let why: String = why.trim().chars().take(2000).collect();
            if self.is_full(room) {
                return Err(Error::new(Kind::Capacity, "node_disk_full", "The node's disk is full").detail(why));
            }
            return Err(unusable(&if why.is_empty() { output.status.to_string() } else { why }));
        }
        if output.stdout.len() > MAX_ANSWER {
            return Err(unusable("it says too much about how it is run"));
        }
        let program: Program = serde_json::from_slice(&output.stdout).map_err(|error| failed(error.into()))?;
        files::replace(&unfinished.0.join(PROGRAM), &program).map_err(failed)?;
        fs::rename(&unfinished.0, self.folder.join(key)).map_err(failed)?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    fn is_full(&self, room_before: u64) -> bool {
        let room = rustix::fs::statvfs(&self.folder).map(|room| room.f_bavail.saturating_mul(room.f_frsize));
        room_before < self.limits.bytes && room.is_ok_and(|room| room < RESERVE + (RESERVE >> 4))
    }

    /// Notes that it was used just now.
    fn touch(&self, key: &str) {
        let touched = File::open(self.folder.join(key)).and_then(|folder| folder.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(%error, key, "the use of an unpacked image cannot be noted");
        }
    }

    /// Removes what no guest stands on and nobody has used for long.
    pub(crate) fn sweep(&self, used: &BTreeSet<String>) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(UNFINISHED) || used.contains(&name) || self.work().contains_key(&name) {
                continue;
            }
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            if age >= self.keep {
                let going = self.folder.join(format!("{UNFINISHED}removed-{name}"));
                fs::rename(entry.path(), &going)?;
                fs::remove_dir_all(&going)?;
            }
        }
        Ok(())
    }
}

/// A folder that is being filled; gone if it did not get its name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Which image it is: its file. Whoever puts another file in its place makes another image. When it was last changed
/// does not matter: by that the node's image cache notes when an image was last used.
fn key(path: &Path, format: DiskFormat, file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    hash.update(path.as_os_str().as_encoded_bytes());
    let file = file.metadata()?;
    // Not every file system knows.
    let made = file.created().ok().and_then(|made| made.duration_since(SystemTime::UNIX_EPOCH).ok());
    for number in [file.ino(), file.len()] {
        hash.update(number.to_le_bytes());
    }
    hash.update(made.unwrap_or_default().as_nanos().to_le_bytes());
    hash.update([u8::from(format == DiskFormat::Oci)]);
    Ok(hex::encode(hash.finalize().get(..16).unwrap_or_default()))
}

fn unusable(why: &str) -> Error {
    Error::invalid("base_image_unusable", "The base image cannot be used as a container's root file system").detail(why)
}
