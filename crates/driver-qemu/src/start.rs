//! Starting a guest.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::Stdio,
    sync::Arc,
};

use nephos_driver::{DiskFormat, GuestSpec, refusal};
use nephos_types::{Bytes, Error, Timestamp};
use tokio::sync::mpsc;

use crate::{
    command_line, config_drive, disk,
    folder::{Folder, Launched, Life, Record},
    guest::Guest,
    host::Host,
    machine::Machine,
    process::{Launch, Process},
    qmp::Event,
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
        let saved = guest.now().record.life == Life::Suspended;
        let launched = if saved { self.suspended_as(guest, &spec)? } else { self.as_defined(&spec).await };
        guest.set(|record| record.life = if saved { Life::Resuming } else { Life::Starting })?;
        match self.launch(guest, launched, &spec, saved).await {
            Ok((machine, events)) => {
                guest.set(|record| {
                    record.since = Timestamp::now();
                    record.ended = None;
                })?;
                self.watch(guest, Arc::new(machine), events);
                Ok(())
            }
            Err(error) => {
                guest.set(|record| match record.life {
                    Life::Resuming => record.life = Life::Suspended,
                    // It may have run for a moment, so that its memory is of no use any more.
                    _ if saved => *record = Record::off(Some(format!("crashed: {error}"))),
                    _ => record.life = Life::Off,
                })?;
                Err(error)
            }
        }
    }

    /// How a guest is started from off.
    async fn as_defined(&self, spec: &GuestSpec) -> Launched {
        Launched {
            spec: spec.clone(),
            accelerator: self.accelerator().await,
            machine: command_line::MACHINE.to_owned(),
        }
    }

    /// Starts the guest's QEMU; it has ended if this fails.
    async fn launch(
        &self,
        guest: &Guest,
        launched: Launched,
        spec: &GuestSpec,
        saved: bool,
    ) -> Result<(Machine, mpsc::Receiver<Event>), Error> {
        let (program, rights) = (self.config.qemu.clone(), self.users.rights(guest.id, &launched.accelerator));
        let (folder, size) = (guest.folder.clone(), disk::wanted_size(&spec.disk)?);
        let spawned = blocking(move || {
            if !saved {
                folder.write_launched(&launched).map_err(unwritable)?;
            }
            let prepared = Prepared::new(&folder, &launched.spec, size)?;
            let arguments = command_line::arguments(&command_line::Launch {
                spec: &launched.spec,
                machine: &launched.machine,
                accelerator: &launched.accelerator,
                base: prepared.base.as_ref().map(|(file, format)| (file.as_raw_fd(), *format)),
                config_drive: prepared.config_drive.as_ref().map(AsRawFd::as_raw_fd),
                paused: prepared.grow.is_some(),
                incoming: saved,
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
        let (process, grow) = spawned.await?;
        let running = Life::Running { process: process.identity().clone() };
        if !saved {
            guest.set(|record| record.life = running.clone())?;
        }
        let (machine, events) = Machine::started(guest.id, guest.folder.clone(), process).await?;
        let begun = async {
            if saved {
                self.load_memory(guest, &machine).await?;
            }
            if let Some(size) = grow {
                let failed = |error| Error::internal("The server's disk could not be made larger", error);
                machine.grow_disk(size).await.map_err(failed)?;
            }
            if saved {
                // From here on the memory is not that of the disk any more: what ends now has crashed.
                guest.set(|record| record.life = running)?;
                guest.folder.sync().map_err(unwritable)?;
            }
            if saved || grow.is_some() {
                machine.go().await.map_err(|error| Error::internal("The server could not be made to run", error))?;
            }
            Ok(())
        };
        if let Err(error) = begun.await {
            let _ = machine.process().kill();
            machine.process().ended().await;
            return Err(error);
        }
        if saved && let Err(error) = guest.folder.remove_memory() {
            tracing::warn!(id = %guest.id, %error, "a memory that is of no use any more is still there");
        }
        Ok((machine, events))
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
    fn new(folder: &Folder, spec: &GuestSpec, wanted: Bytes) -> Result<Self, Error> {
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
        let current = disk::current_size(folder, spec.disk.incarnation).map_err(unwritable)?;
        let grow = current.is_some_and(|current| current < wanted).then_some(wanted);
        let run = folder.open_run().map_err(unwritable)?;
        let errors = File::create(folder.errors()).map_err(unwritable)?;
        Ok(Self { run, base, config_drive, errors, grow })
    }
}
