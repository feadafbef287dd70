//! What is kept of a guest on disk.
//!
//! ```text
//! guests/<id>/            the agent's own: nobody else may write here
//!     spec.json           what it should be
//!     record.json         what it is: switched off, being started, which keeper
//!     disk.img            what it has written: an ext4 file system, stored with unmapped ids
//!     rescue.img          the same while it is in rescue: thrown away with its next start
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
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use nephos_driver::GuestSpec;
use nephos_host::{files, process::Identity};
use nephos_types::{ServerId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

const SPEC: &str = "spec.json";
const RECORD: &str = "record.json";
const RUN: &str = "run";

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
    /// The one that it runs from instead, in rescue.
    #[serde(default)]
    pub(crate) rescue: Option<String>,
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
        Self { since: Timestamp::now(), ended, life: Life::Off, base: base.to_owned(), rescue: None }
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

    pub(crate) fn disk(&self) -> PathBuf {
        self.path.join("disk.img")
    }

    /// The throw-away disk of a guest in rescue.
    pub(crate) fn rescue_disk(&self) -> PathBuf {
        self.path.join("rescue.img")
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
        files::read(&self.path.join(SPEC))
    }

    pub(crate) fn write_spec(&self, spec: &GuestSpec) -> io::Result<()> {
        files::replace(&self.path.join(SPEC), spec)
    }

    pub(crate) fn record(&self) -> io::Result<Option<Record>> {
        files::read(&self.path.join(RECORD))
    }

    pub(crate) fn write_record(&self, record: &Record) -> io::Result<()> {
        files::replace(&self.path.join(RECORD), record)
    }

    /// Makes everything be gone.
    pub(crate) fn remove(&self) -> io::Result<()> {
        files::remove(&self.path)
    }

    /// Removes what an earlier run has left in `run/`.
    pub(crate) fn clear_run(&self) -> io::Result<()> {
        files::gone(fs::remove_dir_all(self.run()))?;
        DirBuilder::new().mode(0o700).create(self.run())
    }

    /// Connects to a socket in `run/`.
    pub(crate) async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        files::connect(&self.run(), name).await
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
