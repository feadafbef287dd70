//! Copies of a guest's root file system.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::Stdio,
};

use nephos_driver::{DiskFormat, Snapshot, SnapshotRequest};
use nephos_host::files::gone;
use nephos_types::{Error, ErrorKind};
use tokio::process::Command;

use crate::{
    guest::{Guest, unknown},
    host::Host,
    ids,
    keeper::{self, Root, copy::Request},
};

impl Host {
    /// Copies what a guest sees, as it is at one moment, into an archive. A running one stands still meanwhile.
    pub(crate) async fn snapshot(&self, guest: &Guest, request: &SnapshotRequest) -> Result<Snapshot, Error> {
        let unreadable = |error| Error::internal("The server's state cannot be read", error);
        let base = {
            let now = guest.now();
            if let Some(reason) = &now.unknown {
                return Err(unknown(reason));
            }
            now.record.base.clone()
        };
        let machine = guest.machine();
        let seat = guest.now().record.life.keeper().map(|(_, seat)| seat.ids);
        let free = if self.surroundings.mapped { ids::FIRST } else { ids::STORED };
        let wanted = Request {
            keeper: machine.as_ref().map(|machine| machine.keeper().clone()),
            root: Root { base: self.bases.root(&base), disk: guest.folder.disk() },
            rescued: guest.now().record.rescue.is_some(),
            ids: seat.unwrap_or(free),
            mapped: self.surroundings.mapped,
            max_bytes: self.bases.max_bytes(),
            program: self.bases.program(&base).map_err(unreadable)?,
        };
        let mut still = false;
        if let Some(machine) = &machine
            && !machine.group.is_frozen().map_err(unreadable)?
        {
            machine
                .group
                .freeze()
                .await
                .map_err(|error| Error::internal("The server could not be held still", error))?;
            still = true;
        }
        let outcome = copy(&self.surroundings.keeper, &wanted, &request.file).await;
        if let (true, Some(machine)) = (still, &machine)
            && let Err(error) = machine.group.thaw()
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(Error::internal("The server cannot go on", error));
        }
        // No process of it was in the middle of writing, and what it had written was seen.
        outcome.map(|()| Snapshot { format: DiskFormat::Tar, frozen: request.freeze })
    }
}

/// Makes the archive, whole or not at all.
async fn copy(keeper: &Path, request: &Request, file: &Path) -> Result<(), Error> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::StorageFull => {
            Error::new(ErrorKind::Capacity, "node_disk_full", "The node's disk is full").source(error)
        }
        _ => Error::internal("The server's disk could not be copied", error),
    };
    let request = serde_json::to_string(request).map_err(|error| failed(error.into()))?;
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let fresh = Fresh(name.into());
    gone(fs::remove_file(&fresh.0)).map_err(failed)?;
    let out = File::options().write(true).create_new(true).open(&fresh.0).map_err(failed)?;
    let mut command = Command::new(keeper);
    command.args([keeper::COMMAND, "copy", &request]).env_clear().kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(out).stderr(Stdio::piped());
    // `output` would put a pipe in the file's place.
    let copying = async { command.spawn()?.wait_with_output().await };
    let output = copying.await.map_err(failed)?;
    if !output.status.success() {
        let why: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(2000).collect();
        if why.contains("os error 28") {
            return Err(Error::new(ErrorKind::Capacity, "node_disk_full", "The node's disk is full").detail(why));
        }
        return Err(
            Error::new(ErrorKind::Internal, "snapshot_failed", "The server's disk could not be copied").detail(why)
        );
    }
    fs::rename(&fresh.0, file).map_err(failed)
}

/// A file that is being written; gone if it did not get its name.
struct Fresh(std::path::PathBuf);

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
