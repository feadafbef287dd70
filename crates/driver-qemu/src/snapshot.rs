//! Snapshots: a guest's root disk as a file of its own.
//!
//! The copying is QEMU's, for a guest that is off a QEMU without a machine: images are read by nothing less confined
//! than a guest.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use nephos_driver::{Accelerator, DiskFormat, GuestSpec, Snapshot, SnapshotRequest, refusal};
use nephos_host::{
    process::Process,
    work::{blocking, unwritable},
};
use nephos_types::Error;
use tokio::sync::oneshot;

use crate::{
    command_line,
    copy::{Moment, copy_disk},
    disk,
    folder::COPY_SOCKET,
    freeze::Freezer,
    guest::Guest,
    host::Host,
    launch::Launch,
    machine::connect,
    qmp::Client,
};

impl Host {
    /// Ends early when `given_up` does.
    pub(crate) async fn snapshot(
        &self,
        guest: &Arc<Guest>,
        request: SnapshotRequest,
        given_up: oneshot::Receiver<()>,
    ) -> Result<Snapshot, Error> {
        guest.must_be_known()?;
        let spec = guest.now().spec.clone().ok_or_else(|| refusal::unknown_guest(guest.id))?;
        let size = disk::current_size(&guest.folder, spec.disk.incarnation).map_err(unwritable)?;
        let size =
            size.ok_or_else(|| Error::internal("The server has no disk", io::Error::from(io::ErrorKind::NotFound)))?;
        let file = request.file;
        let target = blocking(move || Target::create(&file).map_err(unwritable)).await?;
        let frozen = match guest.machine() {
            Some(machine) => {
                let freezer = Freezer { guest, machine: &machine, wanted: request.freeze };
                let qmp = machine.qmp().map_err(|error| Error::internal("QEMU cannot be spoken to", error))?;
                copy_disk(qmp, &target.file, size, &freezer, given_up).await?
            }
            None => {
                let reader = self.disk_reader(guest, &spec).await?;
                let copied = copy_disk(&reader.qmp, &target.file, size, &Unheld, given_up).await;
                reader.end().await;
                copied?
            }
        };
        blocking(move || target.keep().map_err(unwritable)).await?;
        Ok(Snapshot { format: DiskFormat::Qcow2, frozen })
    }

    /// A QEMU that reads the disk of a guest that is off.
    async fn disk_reader(&self, guest: &Guest, spec: &Arc<GuestSpec>) -> Result<Reader, Error> {
        let (program, rights) = (self.config.qemu.clone(), self.users.rights(guest.id, &Accelerator::None));
        let (folder, id, disk) = (guest.folder.clone(), guest.id, spec.disk.clone());
        let process = blocking(move || {
            let base = disk::open_base(disk.base.as_ref())?;
            folder.clear_socket(COPY_SOCKET).map_err(unwritable)?;
            let run = folder.open_run().map_err(unwritable)?;
            let fd = base.as_ref().map(|(file, format)| (file.as_raw_fd(), *format));
            let launch = Launch {
                program: &program,
                arguments: &command_line::disk_reader(id, disk.incarnation, fd),
                folder: run.as_fd(),
                rights: &rights,
                inherited: &fd.map(|(fd, _)| fd).into_iter().collect::<Vec<_>>(),
                output: Stdio::null(),
                errors: File::create(folder.errors()).map_err(unwritable)?.into(),
                limits: None,
            };
            let process = launch.spawn().and_then(Process::of_child);
            Ok(Killed(process.map_err(|error| Error::internal("QEMU could not be started", error))?))
        })
        .await?;
        let connected = connect(&guest.folder, COPY_SOCKET, &process.0).await;
        let (qmp, _) = connected.map_err(|error| Error::internal("The server's disk could not be read", error))?;
        Ok(Reader { process, qmp })
    }
}

/// A QEMU that reads a disk.
struct Reader {
    process: Killed,
    qmp: Client,
}

impl Reader {
    /// It has written nothing, so that it may end in any way.
    async fn end(self) {
        let _ = self.process.0.kill();
        self.process.0.ended().await;
    }
}

/// A process that ends with its holder.
struct Killed(Process);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

/// Nobody is asked to hold anything still.
struct Unheld;

impl Moment for Unheld {
    async fn hold(&self) -> bool {
        false
    }
    async fn release(&self) {}
}

/// A file that is being made: gone again unless it is kept.
struct Target {
    file: File,
    fresh: PathBuf,
    path: PathBuf,
}

impl Target {
    fn create(path: &Path) -> io::Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let fresh = path.with_file_name(name);
        let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        Ok(Self { file, fresh, path: path.to_owned() })
    }

    /// Puts it in its place, whole.
    fn keep(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.fresh, &self.path)?;
        match self.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Not there any more if it was kept.
        let _ = fs::remove_file(&self.fresh);
    }
}
