//! Starting a guest.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::Stdio,
    sync::Arc,
};

use nephos_driver::{DiskFormat, GuestSpec, refusal};
use nephos_types::{Bytes, Error, Timestamp};

use crate::{
    command_line, config_drive, disk,
    folder::{Folder, Life},
    guest::Guest,
    host::Host,
    machine::Machine,
    process::{Launch, Process},
    work::{blocking, unwritable},
};

impl Host {
    pub(crate) async fn start(&self, guest: &Arc<Guest>) -> Result<(), Error> {
        guest.must_be_known()?;
        if let Some(machine) = guest.machine() {
            // Somebody gave up stopping it.
            let process = machine.process().identity().clone();
            if matches!(guest.now().record.life, Life::Stopping { .. }) {
                guest.set(|record| record.life = Life::Running { process })?;
            }
            return self.unpause(guest, &machine).await;
        }
        let spec = guest.now().spec.clone().ok_or_else(|| refusal::unknown_guest(guest.id))?;
        let accelerator = self.accelerator().await;
        guest.set(|record| record.life = Life::Starting)?;
        let (program, rights) = (self.config.qemu.clone(), self.users.rights(guest.id, &accelerator));
        let (folder, wanted) = (guest.folder.clone(), spec.clone());
        let launched = blocking(move || {
            let prepared = Prepared::new(&folder, &wanted)?;
            let arguments = command_line::arguments(&command_line::Launch {
                spec: &wanted,
                accelerator: &accelerator,
                base: prepared.base.as_ref().map(|(file, format)| (file.as_raw_fd(), *format)),
                config_drive: prepared.config_drive.as_ref().map(AsRawFd::as_raw_fd),
                paused: prepared.grow.is_some(),
            });
            let inherited = prepared.base.iter().map(|(file, _)| file).chain(&prepared.config_drive);
            let launch = Launch {
                program: &program,
                arguments: &arguments,
                folder: prepared.run.as_fd(),
                rights: &rights,
                inherited: &inherited.map(AsRawFd::as_raw_fd).collect::<Vec<_>>(),
                output: Stdio::null(),
                errors: prepared.errors.into(),
                limits: None,
            };
            let start_failed = |error| Error::internal("QEMU could not be started", error);
            let process = launch.spawn().and_then(Process::of_child).map_err(start_failed)?;
            Ok((process, prepared.grow))
        });
        let outcome = async {
            let (process, grow) = launched.await?;
            let identity = process.identity().clone();
            guest.set(|record| record.life = Life::Running { process: identity })?;
            let (machine, events) = Machine::started(guest.id, guest.folder.clone(), process).await?;
            if let Some(size) = grow {
                let grown = async {
                    machine.grow_disk(size).await?;
                    machine.go().await
                };
                if let Err(error) = grown.await {
                    let _ = machine.process().kill();
                    machine.process().ended().await;
                    return Err(Error::internal("The server's disk could not be made larger", error));
                }
            }
            Ok((machine, events))
        };
        match outcome.await {
            Ok((machine, events)) => {
                guest.set(|record| {
                    record.since = Timestamp::now();
                    record.ended = None;
                })?;
                self.watch(guest, Arc::new(machine), events);
                Ok(())
            }
            Err(error) => {
                guest.set(|record| record.life = Life::Off)?;
                Err(error)
            }
        }
    }
}

/// What a start needs open.
struct Prepared {
    run: OwnedFd,
    base: Option<(File, DiskFormat)>,
    config_drive: Option<File>,
    errors: File,
    /// The size that the disk has to be given.
    grow: Option<Bytes>,
}

impl Prepared {
    fn new(folder: &Folder, spec: &GuestSpec) -> Result<Self, Error> {
        let base = disk::open_base(&spec.disk)?;
        let config_drive = if spec.config_drive.is_empty() {
            None
        } else {
            let image = config_drive::image(&spec.config_drive)
                .map_err(|error| Error::internal("The configuration drive cannot be made", error))?;
            folder.write_config_drive(&image).map_err(unwritable)?;
            Some(File::open(folder.config_drive()).map_err(unwritable)?)
        };
        folder.clear_sockets().map_err(unwritable)?;
        let wanted = disk::wanted_size(&spec.disk)?;
        let current = disk::current_size(folder, spec.disk.incarnation).map_err(unwritable)?;
        let grow = current.is_some_and(|current| current < wanted).then_some(wanted);
        let run = folder.open_run().map_err(unwritable)?;
        let errors = File::create(folder.errors()).map_err(unwritable)?;
        Ok(Self { run, base, config_drive, errors, grow })
    }
}
