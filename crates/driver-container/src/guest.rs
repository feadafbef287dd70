//! What is kept of a guest on disk.
//!
//! ```text
//! guests/<id>/            the agent's own: nobody else may write here
//!     spec.json           what it should be
//!     record.json         what it is: switched off, being started, which keeper
//!     disk.img            what it has written: an ext4 file system, stored with unmapped ids
//!     config/             its configuration drive
//!     console.log[.1]     what it wrote to its console, and what was before that
//!     run/                its keeper's working folder
//!         task.json       what the keeper is told
//!         config.json     what the runtime is told (the bundle)
//!         state.json      what the keeper says
//!         control.sock  console.sock  errors.log  runtime/  lower/  disk/  upper/  rootfs/
//! ```
//!
//! Invariants: `spec.json`, `record.json` and `state.json` are replaced as a whole or not at all. Nothing in here can be
//! reached from inside the guest except through its mounts of `disk.img` and `config/`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nephos_driver::GuestSpec;
use nephos_types::{ServerId, Timestamp};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::process::Identity;

const SPEC: &str = "spec.json";
const RECORD: &str = "record.json";
const RUN: &str = "run";

/// A definition holds a configuration drive of at most 8 MiB, which JSON may make a few times longer.
const MAX_STATE: u64 = 64 << 20;
/// A console log that takes more than this begins anew, keeping the former one.
pub(crate) const LOG_LIMIT: u64 = 1 << 20;

/// What a guest is, as far as it must be known after a restart of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Since when it runs or does not.
    pub(crate) since: Timestamp,
    /// How it ended, if it ended by itself.
    pub(crate) ended: Option<String>,
    /// Where in its life it is.
    pub(crate) life: Life,
    /// The unpacked image that it stands on.
    pub(crate) base: String,
}

/// Where in its life a guest is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Life {
    /// No process.
    Off,
    /// A keeper is about to be started; whether it was is not recorded yet.
    Starting,
    /// This keeper runs it.
    Running { keeper: Identity, seat: Seat },
    /// This keeper runs it and has been told to end it: its end is no crash.
    Stopping { keeper: Identity, seat: Seat },
}

/// What of the machine a running guest has for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seat {
    /// The machine's user id that its root is; the others follow.
    pub(crate) ids: u32,
    /// The CPUs that it runs on; empty for all.
    pub(crate) cpus: Vec<u32>,
}

impl Life {
    pub(crate) fn keeper(&self) -> Option<(&Identity, &Seat)> {
        match self {
            Self::Running { keeper, seat } | Self::Stopping { keeper, seat } => Some((keeper, seat)),
            Self::Off | Self::Starting => None,
        }
    }
}

impl Record {
    /// Switched off, just now.
    pub(crate) fn off(base: &str, ended: Option<String>) -> Self {
        Self { since: Timestamp::now(), ended, life: Life::Off, base: base.to_owned() }
    }
}

/// One guest's folder.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn new(guests: &Path, id: ServerId) -> Self {
        Self { path: guests.join(id.to_string()) }
    }

    /// Makes the folder and `run/`; nothing happens where they exist.
    pub(crate) fn create(&self) -> io::Result<()> {
        for path in [self.path.clone(), self.run()] {
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.path.join(RUN)
    }

    /// The keeper's working folder, as a descriptor: what is reached through it needs no path, hence no short one.
    pub(crate) fn open_run(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(rustix::fs::open(self.run(), flags, Mode::empty())?)
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.path.join("disk.img")
    }

    pub(crate) fn console_log_path(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// The configuration drive's files.
    pub(crate) fn config(&self) -> PathBuf {
        self.path.join("config")
    }

    /// Whether there is a definition, readable or not.
    pub(crate) fn has_spec(&self) -> bool {
        self.path.join(SPEC).exists()
    }

    pub(crate) fn spec(&self) -> io::Result<Option<GuestSpec>> {
        read(&self.path.join(SPEC))
    }

    pub(crate) fn write_spec(&self, spec: &GuestSpec) -> io::Result<()> {
        replace(&self.path.join(SPEC), spec)
    }

    pub(crate) fn record(&self) -> io::Result<Option<Record>> {
        read(&self.path.join(RECORD))
    }

    pub(crate) fn write_record(&self, record: &Record) -> io::Result<()> {
        replace(&self.path.join(RECORD), record)
    }

    /// Makes everything be gone. The guest is, as soon as its folder has another name; what is left of it is
    /// [swept](sweep) later.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(REMOVED);
        let removed = self.path.with_file_name(name);
        match fs::rename(&self.path, &removed) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // Left over from an earlier try.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
                fs::remove_dir_all(&removed)?;
                fs::rename(&self.path, &removed)?;
            }
            Err(error) => return Err(error),
        }
        gone(fs::remove_dir_all(&removed))
    }

    /// Removes what an earlier run has left in `run/`.
    pub(crate) fn clear_run(&self) -> io::Result<()> {
        gone(fs::remove_dir_all(self.run()))?;
        DirBuilder::new().mode(0o700).create(self.run())
    }

    /// Connects to a socket in `run/`. The address goes through a descriptor, because a socket's path may have at most
    /// 107 bytes and the data folder's may be longer.
    pub(crate) async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        let run = self.open_run()?;
        UnixStream::connect(format!("/proc/self/fd/{}/{name}", run.as_raw_fd())).await
    }

    /// The last bytes of the console log, at most `max`.
    pub(crate) fn console_log(&self, max: usize) -> io::Result<Vec<u8>> {
        let mut wanted = (max as u64).min(LOG_LIMIT);
        let mut pieces = vec![];
        for name in ["console.log", "console.log.1"] {
            let mut file = match File::open(self.path.join(name)) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let length = file.metadata()?.len();
            let take = wanted.min(length);
            file.seek(SeekFrom::Start(length - take))?;
            let mut bytes = vec![];
            // What is written meanwhile is not part of the answer.
            file.take(take).read_to_end(&mut bytes)?;
            wanted -= take;
            pieces.insert(0, bytes);
        }
        Ok(pieces.concat())
    }
}

/// A whole JSON file; `None` if there is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![];
    file.take(MAX_STATE).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// The file has the old content or the new one, whatever happens.
pub(crate) fn replace(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_data()?;
    fs::rename(&fresh, path)
}

/// What is not there need not be removed.
pub(crate) fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Ending of the name of a folder whose guest has been removed.
const REMOVED: &str = ".removed";

/// The guests that have a folder. Finishes removals that were interrupted.
pub(crate) fn sweep(guests: &Path) -> io::Result<Vec<ServerId>> {
    let mut found = vec![];
    for entry in fs::read_dir(guests)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(REMOVED) {
            fs::remove_dir_all(entry.path())?;
        } else if let Ok(id) = name.parse() {
            found.push(id);
        }
    }
    Ok(found)
}
