//! What is kept of a guest on disk.
//!
//! ```text
//! guests/<id>/            the agent's own: nobody else may write here
//!     spec.json           what it should be
//!     record.json         what it is: switched off, being started, which process
//!     launched.json       how it was started last
//!     memory              what was in its memory, if it is suspended
//!     kernel  initrd      copies of what it boots directly
//!     config.img          its configuration drive, opened by the agent and inherited
//!     errors.log          what QEMU wrote to its standard error
//!     run/                QEMU's working folder, owned by the guest's user
//!         rescue.qcow2  variables.fd
//!         disk.qcow2 (disk-1.qcow2, …)  console.log  console.sock  qmp.sock  agent.sock
//!         display.sock
//! ```
//!
//! Invariants: `spec.json` and `record.json` are replaced as a whole or not at all. What lies in `run/` may have been
//! put there by a guest that broke out into its QEMU: it is never followed as a link, and nothing that the agent decides
//! by is read from there.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nephos_driver::{Accelerator, GuestSpec};
use nephos_host::{files, process::Identity};
use nephos_types::{ServerId, Timestamp};
use rustix::fs::{FallocateFlags, Gid, Mode, OFlags, Uid};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

/// A root disk, in `run/`: each incarnation has a file of its own, so that there is always one whole disk that fits the
/// definition.
pub(crate) fn disk_file(incarnation: u64) -> String {
    match incarnation {
        0 => "disk.qcow2".to_owned(),
        number => format!("disk-{number}.qcow2"),
    }
}

/// The throw-away disk of a guest in rescue, in `run/`.
pub(crate) const RESCUE: &str = "rescue.qcow2";
/// The variables of the UEFI firmware, in `run/`.
pub(crate) const VARIABLES: &str = "variables.fd";
/// The kernel that is loaded directly.
pub(crate) const KERNEL: &str = "kernel";
/// Its first root file system.
pub(crate) const INITRD: &str = "initrd";

/// Where another process than the guest's own listens, in `run/`.
pub(crate) const COPY_SOCKET: &str = "copy.sock";
/// What the guest wrote to its serial console, in `run/`.
pub(crate) const CONSOLE_LOG: &str = "console.log";
/// The serial console, in `run/`.
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";
/// QMP, in `run/`.
pub(crate) const QMP_SOCKET: &str = "qmp.sock";
/// The screen, in `run/`.
pub(crate) const DISPLAY_SOCKET: &str = "display.sock";
/// The guest agent, in `run/`.
pub(crate) const AGENT_SOCKET: &str = "agent.sock";

const SPEC: &str = "spec.json";
const RECORD: &str = "record.json";
const LAUNCHED: &str = "launched.json";
const MEMORY: &str = "memory";
const RUN: &str = "run";

/// So much of a console log is kept at least.
pub(crate) const LOG_KEPT: u64 = 1 << 20;
/// A console log that takes more than this is shortened to [`LOG_KEPT`].
const LOG_LIMIT: u64 = 4 << 20;

/// What a guest is, as far as it must be known after a restart of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Since when it runs or does not.
    pub(crate) since: Timestamp,
    /// How it ended, if it ended by itself.
    pub(crate) ended: Option<String>,
    /// Where in its life it is.
    pub(crate) life: Life,
    /// Whether its file systems may be held still.
    #[serde(default)]
    pub(crate) frozen: bool,
}

/// Where in its life a guest is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Life {
    /// No process.
    Off,
    /// A process is about to be started; whether it was is not recorded yet.
    Starting,
    /// This process runs it.
    Running { process: Identity },
    /// This process runs it and has been told to end: its end is no crash.
    Stopping { process: Identity },
    /// This process saves its memory, which is worth nothing yet.
    Suspending {
        process: Identity,
        /// Whether it stood still before.
        paused: bool,
    },
    /// Its memory is saved, and no process may run it without that. The one that saved it may not have ended yet.
    Suspended,
    /// A process is about to be started from the memory, and runs nothing before that is recorded.
    Resuming,
}

/// How a run of a guest was started: what it must be started with again to go on from its memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Launched {
    /// The definition then.
    pub(crate) spec: GuestSpec,
    /// The accelerator then.
    pub(crate) accelerator: Accelerator,
    /// The kind of machine, with its version as soon as there is a memory.
    pub(crate) machine: String,
}

impl Record {
    /// Switched off, just now.
    pub(crate) fn off(ended: Option<String>) -> Self {
        Self { since: Timestamp::now(), ended, life: Life::Off, frozen: false }
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

    /// Makes the folder and `run/`, the latter for this owner; nothing happens where they exist.
    pub(crate) fn create(&self, owner: Option<(Uid, Gid)>) -> io::Result<()> {
        for path in [self.path.clone(), self.path.join(RUN)] {
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        if let Some((uid, gid)) = owner {
            rustix::fs::fchown(self.open_run()?, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// The working folder, as a descriptor: what is reached through it needs no path, hence no short one.
    pub(crate) fn open_run(&self) -> io::Result<OwnedFd> {
        files::open_folder(&self.path.join(RUN))
    }

    /// The working folder's path as the kernel shows it.
    pub(crate) fn run_path(&self) -> io::Result<PathBuf> {
        self.path.join(RUN).canonicalize()
    }

    pub(crate) fn config_drive(&self) -> PathBuf {
        self.path.join("config.img")
    }

    pub(crate) fn errors(&self) -> PathBuf {
        self.path.join("errors.log")
    }

    /// Whether there is a definition, readable or not.
    pub(crate) fn has_spec(&self) -> bool {
        self.path.join(SPEC).exists()
    }

    pub(crate) fn has_disk(&self, incarnation: u64) -> bool {
        matches!(self.open_in_run(&disk_file(incarnation), false), Ok(Some(_)))
    }

    /// Throws all disks away but this one.
    pub(crate) fn keep_only_disk(&self, incarnation: u64) -> io::Result<()> {
        let kept = disk_file(incarnation);
        let run = self.open_run()?;
        for entry in fs::read_dir(self.path.join(RUN))? {
            let name = entry?.file_name();
            let is_disk = name.to_str().is_some_and(|name| name.starts_with("disk") && name.contains(".qcow2"));
            if is_disk && name != kept.as_str() {
                rustix::fs::unlinkat(&run, &name, rustix::fs::AtFlags::empty())?;
            }
        }
        Ok(())
    }

    pub(crate) fn spec(&self) -> io::Result<Option<GuestSpec>> {
        self.read(SPEC)
    }

    pub(crate) fn write_spec(&self, spec: &GuestSpec) -> io::Result<()> {
        files::replace(&self.path.join(SPEC), spec)
    }

    pub(crate) fn record(&self) -> io::Result<Option<Record>> {
        self.read(RECORD)
    }

    pub(crate) fn write_record(&self, record: &Record) -> io::Result<()> {
        files::replace(&self.path.join(RECORD), record)
    }

    pub(crate) fn launched(&self) -> io::Result<Option<Launched>> {
        self.read(LAUNCHED)
    }

    pub(crate) fn write_launched(&self, launched: &Launched) -> io::Result<()> {
        files::replace(&self.path.join(LAUNCHED), launched)
    }

    /// An empty file for the memory.
    pub(crate) fn create_memory(&self) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(self.path.join(MEMORY))
    }

    /// The saved memory.
    pub(crate) fn open_memory(&self) -> io::Result<File> {
        File::open(self.path.join(MEMORY))
    }

    pub(crate) fn has_memory(&self) -> bool {
        self.path.join(MEMORY).exists()
    }

    pub(crate) fn remove_memory(&self) -> io::Result<()> {
        self.remove_copy(MEMORY)
    }

    /// How many bytes the file system still takes.
    pub(crate) fn room(&self) -> io::Result<u64> {
        let known = rustix::fs::statvfs(&self.path)?;
        Ok(known.f_bavail.saturating_mul(known.f_frsize))
    }

    /// What was replaced or made in the folder stays so even if the machine loses power.
    pub(crate) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    pub(crate) fn write_config_drive(&self, image: &[u8]) -> io::Result<()> {
        files::replace_bytes(&self.config_drive(), image)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        files::read(&self.path.join(name))
    }

    /// Makes everything be gone.
    pub(crate) fn remove(&self) -> io::Result<()> {
        files::remove(&self.path)
    }

    /// Removes what an earlier process has left where it listened; QEMU would refuse to listen there.
    pub(crate) fn clear_sockets(&self) -> io::Result<()> {
        [QMP_SOCKET, CONSOLE_SOCKET, DISPLAY_SOCKET, AGENT_SOCKET].iter().try_for_each(|name| self.clear_socket(name))
    }

    pub(crate) fn clear_socket(&self, name: &str) -> io::Result<()> {
        files::gone(fs::remove_file(self.path.join(RUN).join(name)))
    }

    /// Connects to a socket in `run/`.
    pub(crate) async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        files::connect(&self.path.join(RUN), name).await
    }

    /// A file in `run/`, as long as it is a plain one.
    pub(crate) fn open_in_run(&self, name: &str, write: bool) -> io::Result<Option<File>> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        // Without NONBLOCK, opening a named pipe would wait for its other end.
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(self.open_run()?, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("{name} is not a plain file")));
        }
        Ok(Some(file))
    }

    /// Makes a file in `run/` for this owner, whole or not at all, in the place of whatever is there.
    pub(crate) fn write_in_run(&self, name: &str, bytes: &[u8], owner: Option<(Uid, Gid)>) -> io::Result<()> {
        let run = self.open_run()?;
        let fresh = format!("{name}.new");
        self.remove_in_run(&fresh)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&run, &fresh, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(bytes)?;
        if let Some((uid, gid)) = owner {
            rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        file.sync_data()?;
        Ok(rustix::fs::renameat(&run, &fresh, &run, name)?)
    }

    /// Removes a file in `run/`, if it is there.
    pub(crate) fn remove_in_run(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(self.open_run()?, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Copies a file into the folder. The guest's user may read it where it is open.
    pub(crate) fn write_copy(&self, name: &str, mut from: File) -> io::Result<()> {
        let fresh = self.path.join(format!("{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&fresh)?;
        io::copy(&mut from, &mut file)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        fs::rename(&fresh, self.path.join(name))
    }

    pub(crate) fn open_copy(&self, name: &str) -> io::Result<File> {
        File::open(self.path.join(name))
    }

    pub(crate) fn remove_copy(&self, name: &str) -> io::Result<()> {
        files::gone(fs::remove_file(self.path.join(name)))
    }

    /// The last bytes of the console log, at most `max` and at most [`LOG_KEPT`].
    pub(crate) fn console_log(&self, max: usize) -> io::Result<Vec<u8>> {
        let Some(mut file) = self.open_in_run(CONSOLE_LOG, false)? else { return Ok(vec![]) };
        let length = file.metadata()?.len();
        let wanted = (max as u64).min(LOG_KEPT).min(length);
        file.seek(SeekFrom::Start(length - wanted))?;
        let mut bytes = Vec::with_capacity(usize::try_from(wanted).unwrap_or(0));
        // What is written meanwhile is not part of the answer.
        file.take(wanted).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Keeps the console log from filling the disk. QEMU appends to it all the time, so it is not rewritten: its
    /// beginning is turned into a hole, which takes no room and loses no byte that is written meanwhile.
    pub(crate) fn bound_console_log(&self) -> io::Result<()> {
        let Some(file) = self.open_in_run(CONSOLE_LOG, true)? else { return Ok(()) };
        let metadata = file.metadata()?;
        if metadata.blocks().saturating_mul(512) <= LOG_LIMIT {
            return Ok(());
        }
        let hole = metadata.len().saturating_sub(LOG_KEPT);
        match rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, hole) {
            Ok(()) => Ok(()),
            // A file system without holes: QEMU has opened the file for appending, so it goes on at the new end.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(0),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let guests = tempfile::tempdir().unwrap();
        let folder = Folder::new(guests.path(), ServerId::new());
        folder.create(None).unwrap();
        (guests, folder)
    }

    #[test]
    fn a_long_console_log_takes_little_room_and_keeps_its_end() {
        let (_guests, folder) = folder();
        let path = folder.path.join(RUN).join(CONSOLE_LOG);
        let mut log = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for line in 0..400_000 {
            writeln!(log, "line number {line:010}").unwrap();
        }
        let before = folder.console_log(100_000).unwrap();
        folder.bound_console_log().unwrap();
        assert!(log.metadata().unwrap().blocks() * 512 <= LOG_LIMIT, "it was made short");
        assert_eq!(folder.console_log(100_000).unwrap(), before, "its end is as it was");
        writeln!(log, "the end").unwrap();
        assert!(folder.console_log(100).unwrap().ends_with(b"0000399999\nthe end\n"), "writing goes on");
        assert_eq!(folder.console_log(usize::MAX).unwrap().len() as u64, LOG_KEPT, "answers are bounded");
    }

    #[test]
    fn links_in_the_guests_own_folder_are_not_followed() {
        let (guests, folder) = folder();
        let secret = guests.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        let log = folder.path.join(RUN).join(CONSOLE_LOG);
        symlink(&secret, &log).unwrap();
        assert!(folder.console_log(100).is_err());
        assert!(folder.bound_console_log().is_err());
        fs::remove_file(&log).unwrap();
        fs::hard_link(&secret, &log).unwrap();
        assert!(folder.console_log(100).is_err());
        folder.remove().unwrap();
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    }
}
