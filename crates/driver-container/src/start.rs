//! Starting a guest: its keeper, and what that is told.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    process::Stdio,
    sync::{Arc, PoisonError},
};

use nephos_driver::{GuestSpec, Interface, refusal};
use nephos_host::{
    files,
    process::Process,
    work::{blocking, unwritable},
};
use nephos_types::{Error, ErrorKind, Timestamp};

use crate::{
    bundle,
    cgroup::{self, Group},
    config_drive, disk,
    folder::{Folder, Life, Seat},
    guest::{Guest, unknown},
    host::Host,
    keeper::{self, Order, Root, Task},
    machine::{Machine, Sayings},
};

impl Host {
    /// Makes a guest run: from off it begins, a paused one goes on.
    pub(crate) async fn start(self: &Arc<Self>, guest: &Arc<Guest>) -> Result<(), Error> {
        let running = {
            let now = guest.now();
            if let Some(reason) = &now.unknown {
                return Err(unknown(reason));
            }
            now.machine.clone()
        };
        if let Some(machine) = running {
            // Somebody gave up stopping it.
            let stopping = match guest.now().record.life.clone() {
                Life::Stopping { keeper, seat } => Some(Life::Running { keeper, seat }),
                _ => None,
            };
            if let Some(life) = stopping {
                let _ = machine.order(Order::Stay).await;
                guest.set(|record| record.life = life)?;
            }
            return machine.group.thaw().map_err(|error| Error::internal("The server cannot go on", error));
        }
        let (spec, base) = {
            let now = guest.now();
            (now.spec.clone().ok_or_else(|| refusal::unknown_guest(guest.id))?, now.record.base.clone())
        };
        let seat = self.take_seat(guest.id, spec.vcpus)?;
        let outcome = self.launch(guest, &spec, &base, seat).await;
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).remove(&guest.id);
        match outcome {
            Ok((machine, sayings)) => {
                guest.set(|record| {
                    record.since = Timestamp::now();
                    record.ended = None;
                })?;
                self.watch(guest, Arc::new(machine), sayings);
                Ok(())
            }
            Err(error) => {
                guest.set(|record| record.life = Life::Off)?;
                Err(error)
            }
        }
    }

    async fn launch(
        self: &Arc<Self>,
        guest: &Guest,
        spec: &Arc<GuestSpec>,
        base: &str,
        seat: Seat,
    ) -> Result<(Machine, Sayings), Error> {
        disk::grow(&guest.folder, disk::wanted_size(&spec.disk)?).await?;
        let rescue = self.prepare_rescue(&guest.folder, spec).await?;
        guest.set(|record| {
            record.life = Life::Starting;
            record.rescue = rescue.clone();
        })?;
        let (host, folder, wanted) = (self.clone(), guest.folder.clone(), spec.clone());
        let (base, taken) = (base.to_owned(), seat.clone());
        let keeper = blocking(move || host.spawn_keeper(&folder, &wanted, &base, rescue.as_deref(), taken)).await?;
        let identity = keeper.identity().clone();
        guest.set(|record| record.life = Life::Running { keeper: identity, seat })?;
        let group = Group::find(&bundle::name(guest.id)).map_err(unwritable)?;
        Machine::started(guest.id, guest.folder.clone(), keeper, group).await
    }

    /// What a guest in rescue begins from: another image, and a disk that is empty each time.
    async fn prepare_rescue(&self, folder: &Folder, spec: &GuestSpec) -> Result<Option<String>, Error> {
        let disk = folder.rescue_disk();
        files::gone(fs::remove_file(&disk)).map_err(unwritable)?;
        let Some((image, format)) = &spec.rescue else { return Ok(None) };
        let base = self.bases.ensure(image, *format).await?;
        disk::create(&disk, disk::DEFAULT).await?;
        Ok(Some(base))
    }

    fn spawn_keeper(
        &self,
        folder: &Folder,
        spec: &GuestSpec,
        base: &str,
        rescue: Option<&str>,
        seat: Seat,
    ) -> Result<Process, Error> {
        let (root, disk) = match rescue {
            Some(rescue) => (rescue, folder.rescue_disk()),
            None => (base, folder.disk()),
        };
        let own = rescue.map(|_| Root { base: self.bases.root(base), disk: folder.disk() });
        let program = self.bases.program(root).map_err(|error| {
            Error::new(ErrorKind::Internal, "base_image_unreadable", "The unpacked image cannot be read").source(error)
        })?;
        folder.clear_run().map_err(unwritable)?;
        config_drive::write(folder, spec).map_err(unwritable)?;
        let run = folder.run();
        let forwards = spec.interfaces.iter().flat_map(|interface| match interface {
            Interface::User { forwards, .. } => forwards.clone(),
            Interface::Tap { .. } | Interface::Namespace { .. } => vec![],
        });
        let config = bundle::config(spec, &program, &seat);
        let task = Task {
            name: bundle::name(spec.id),
            runtime: self.surroundings.runtime.clone(),
            hidden: cgroup::second_beside_first().map_err(unwritable)?,
            root: Root { base: self.bases.root(root), disk },
            own,
            interactive: !program.is_init,
            config: (!spec.config_drive.is_empty()).then(|| folder.config()),
            seat,
            mapped: self.surroundings.mapped,
            forwards: forwards.collect(),
            log: folder.console_log_path(),
        };
        let prepare = || {
            files::replace(&run.join("config.json"), &config)?;
            files::replace(&run.join(keeper::TASK), &task)?;
            File::create(run.join(keeper::ERRORS))
        };
        let errors = prepare().map_err(unwritable)?;
        let mut command = std::process::Command::new(&self.surroundings.keeper);
        command.args([keeper::COMMAND, "run"]).env_clear().current_dir(&run);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        // SAFETY: setsid(2) is one system call: it neither allocates nor locks, so it may run between fork and exec.
        unsafe { command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from)) };
        let start_failed = |error| Error::internal("The container's keeper could not be started", error);
        command.spawn().and_then(Process::of_child).map_err(start_failed)
    }
}
