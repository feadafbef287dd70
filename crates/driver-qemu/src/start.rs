//! Starting a guest.

use std::{os::fd::AsFd, process::Stdio, sync::Arc};

use nephos_driver::{Accelerator, DiskFormat, GuestSpec, refusal};
use nephos_host::{
    process::Process,
    work::{blocking, unwritable},
};
use nephos_types::{Error, Timestamp};
use tokio::sync::mpsc;

use crate::{
    command_line, disk,
    folder::{Launched, Life, RESCUE, Record},
    guest::Guest,
    host::Host,
    launch::Launch,
    machine::Machine,
    prepare::Prepared,
    qmp::Event,
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
        let uefi = self.uefi;
        if !saved {
            self.make_rescue(guest, &launched.spec).await?;
        }
        let spawned = blocking(move || {
            if !saved {
                folder.write_launched(&launched).map_err(unwritable)?;
            }
            let prepared = Prepared::new(&folder, &launched.spec, size, saved, uefi, rights.owner)?;
            let launch = Launch {
                program: &program,
                arguments: &prepared.arguments(&launched, saved),
                folder: prepared.run.as_fd(),
                rights: &rights,
                inherited: &prepared.inherited(),
                output: Stdio::null(),
                errors: prepared.errors.try_clone().map_err(unwritable)?.into(),
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
    /// Makes the throw-away disk that a guest in rescue boots from; of one that is not, nothing is left.
    async fn make_rescue(&self, guest: &Guest, spec: &GuestSpec) -> Result<(), Error> {
        let run = guest.folder.open_run().map_err(unwritable)?;
        match &spec.rescue {
            Some((path, format)) if *format != DiskFormat::Iso => {
                let size = disk::base_size(path, *format)?;
                let rights = self.users.rights(guest.id, &Accelerator::None);
                disk::create(&self.config.qemu_img, run.as_fd(), &rights, RESCUE, spec.rescue.as_ref(), size).await
            }
            _ => guest.folder.remove_in_run(RESCUE).map_err(unwritable),
        }
    }
}
