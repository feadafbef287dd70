//! The driver: guests by id, and the verbs.

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, TryLockError},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    Stream,
    future::{BoxFuture, join_all},
    stream,
};
use nephos_driver::{
    Accelerator, Capabilities, ComputeDriver, Console, DiskFormat, GuestEvent, GuestSpec, Observation, Power, Presence,
    StopMode, Usage, refusal,
};
use nephos_types::{Bytes, Error, ErrorKind, ServerId, Timestamp};
use tokio::{
    process::Command,
    sync::{broadcast, watch},
    task::{AbortHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use crate::{
    accelerator::Probe,
    command_line, config_drive, disk,
    guest::{self, Folder, Life, Record},
    machine::{Machine, Watcher, event_of_end},
    process::{Identity, Launch, Process},
    rights::Users,
};

/// Events that a slow listener may be behind.
const EVENTS: usize = 1024;
/// How long to wait for an earlier driver over the same folder to let go of it.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Whether hardware virtualisation is looked for.
#[derive(Clone, Debug)]
pub enum Acceleration {
    /// Yes, by booting the first of these Linux kernels that can be read, or else the host's own.
    Probe {
        /// Kernel files (`vmlinuz`).
        kernels: Vec<PathBuf>,
    },
    /// No: everything is emulated.
    Emulate,
}

/// What a driver is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of everything that is kept; made if it does not exist.
    pub state: PathBuf,
    /// QEMU's program, looked for in `PATH` if it has no slash.
    pub qemu: PathBuf,
    /// The disk tool's.
    pub qemu_img: PathBuf,
    /// Whether hardware virtualisation is looked for.
    pub acceleration: Acceleration,
}

impl Config {
    /// The usual programs, and the accelerator by a probe.
    #[must_use]
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            qemu: "qemu-system-x86_64".into(),
            qemu_img: "qemu-img".into(),
            acceleration: Acceleration::Probe { kernels: vec![] },
        }
    }
}

/// Runs guests as QEMU processes. Dropping it leaves them running.
pub struct QemuDriver {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    folder: PathBuf,
    version: String,
    users: Users,
    /// `None` while the probe runs.
    accelerator: watch::Sender<Option<Accelerator>>,
    guests: Mutex<BTreeMap<ServerId, Arc<Guest>>>,
    events: broadcast::Sender<GuestEvent>,
    _lock: File,
}

struct Guest {
    id: ServerId,
    folder: Folder,
    /// Held by whoever changes something about the guest.
    work: Arc<tokio::sync::Mutex<()>>,
    now: Mutex<Now>,
}

struct Now {
    spec: Option<Arc<GuestSpec>>,
    record: Record,
    machine: Option<Arc<Machine>>,
    watch: Option<AbortHandle>,
    /// Why nothing certain is known.
    unknown: Option<String>,
}

impl QemuDriver {
    /// Takes over a state folder: finds QEMU, adopts the guests that run, and begins to look for hardware
    /// virtualisation if that is not known yet.
    ///
    /// # Errors
    /// `qemu_missing` if QEMU cannot be run; `state_in_use` if another driver has the folder.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let version = version(&config.qemu).await?;
        version_of_disk_tool(&config.qemu_img).await?;
        let folder = config.state.join("guests");
        let unusable = |error| Error::internal("The folder of the node's servers cannot be used", error);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(unusable)?;
        let lock = lock(&config.state).await?;
        let inner = Arc::new(Inner {
            folder,
            version,
            users: Users::available(),
            accelerator: watch::Sender::new(None),
            guests: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            _lock: lock,
            config,
        });
        let driver = Self { inner };
        driver.adopt_all().await.map_err(unusable)?;
        match &driver.inner.config.acceleration {
            Acceleration::Emulate => {
                let reason = "hardware virtualisation is switched off by configuration".to_owned();
                driver.inner.accelerator.send_replace(Some(Accelerator::Tcg { reason }));
            }
            Acceleration::Probe { kernels } => {
                let (inner, kernels) = (Arc::downgrade(&driver.inner), kernels.clone());
                tokio::spawn(async move {
                    if let Some(inner) = inner.upgrade() {
                        inner.probe(&kernels).await;
                    }
                });
            }
        }
        Ok(driver)
    }

    /// Looks for hardware virtualisation again, e.g. when a kernel to try it with has become available. Guests that
    /// run stay as they are.
    pub async fn probe(&self, kernels: &[PathBuf]) -> Accelerator {
        self.inner.probe(kernels).await
    }

    async fn adopt_all(&self) -> io::Result<()> {
        let ids = guest::sweep(&self.inner.folder)?;
        join_all(ids.into_iter().map(|id| self.adopt(id))).await;
        Ok(())
    }

    /// Takes hold of a guest that is on disk, whatever an earlier agent was doing with it when it ended.
    async fn adopt(&self, id: ServerId) {
        let folder = Folder::new(&self.inner.folder, id);
        let spec = folder.spec().unwrap_or_else(|error| {
            tracing::error!(%id, %error, "a server's definition cannot be read; it must be defined again");
            None
        });
        let (record, process) = match find_process(&folder) {
            Ok(found) => found,
            Err(error) => {
                let reason = format!("its record cannot be read: {error}");
                tracing::error!(%id, reason, "a server's state is unknown");
                let guest = Guest::new(id, folder, spec, Record::off(None));
                guest.now().unknown = Some(reason);
                self.inner.guests().insert(id, Arc::new(guest));
                return;
            }
        };
        if spec.is_none() && process.is_none() && !folder.has_spec() {
            // Its making was interrupted before it existed.
            if let Err(error) = folder.remove() {
                tracing::warn!(%id, %error, "what is left of a server cannot be removed");
            }
            return;
        }
        if let Err(error) = folder.write_record(&record) {
            tracing::warn!(%id, %error, "a server's record cannot be written");
        }
        let guest = Arc::new(Guest::new(id, folder, spec, record));
        if let Some(process) = process {
            let (machine, events) = Machine::adopted(id, guest.folder.clone(), process).await;
            if machine.has_not_begun().await && machine.process().kill().is_ok() {
                machine.process().ended().await;
                if let Err(error) = guest.set(|record| *record = Record::off(None)) {
                    tracing::warn!(%id, %error, "a server's record cannot be written");
                }
            } else {
                self.inner.watch(&guest, Arc::new(machine), events);
                tracing::info!(%id, "adopted a running server");
            }
        }
        self.inner.guests().insert(id, guest);
    }
}

impl Drop for QemuDriver {
    /// Ends the watching, not the guests.
    fn drop(&mut self) {
        for guest in self.inner.guests().values() {
            let mut now = guest.now();
            if let Some(watch) = now.watch.take() {
                watch.abort();
            }
            now.machine = None;
        }
    }
}

impl Inner {
    fn guests(&self) -> MutexGuard<'_, BTreeMap<ServerId, Arc<Guest>>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guest(&self, id: ServerId) -> Option<Arc<Guest>> {
        self.guests().get(&id).cloned()
    }

    async fn probe(&self, kernels: &[PathBuf]) -> Accelerator {
        let probe = Probe {
            qemu: &self.config.qemu,
            version: &self.version,
            state: &self.config.state,
            users: self.users,
            kernels,
        };
        let accelerator = probe.run().await;
        tracing::info!(?accelerator, "accelerator");
        self.accelerator.send_replace(Some(accelerator.clone()));
        accelerator
    }

    /// What guests are run with; waits for the probe.
    async fn accelerator(&self) -> Accelerator {
        match self.accelerator.subscribe().wait_for(Option::is_some).await.map(|known| known.clone()) {
            Ok(Some(accelerator)) => accelerator,
            Ok(None) | Err(_) => Accelerator::Tcg { reason: "the probe was given up".to_owned() },
        }
    }

    /// Puts a running machine into a guest's hands and watches it.
    fn watch(&self, guest: &Arc<Guest>, machine: Arc<Machine>, events: tokio::sync::mpsc::Receiver<crate::qmp::Event>) {
        let watcher = Watch { guest: guest.clone(), events: self.events.clone() };
        let mut now = guest.now();
        now.machine = Some(machine.clone());
        now.watch = Some(tokio::spawn(machine.watch(events, watcher)).abort_handle());
    }

    async fn define(&self, spec: &GuestSpec) -> Result<(), Error> {
        spec.check()?;
        if spec.disk.base.as_ref().is_some_and(|(path, _)| !path.is_absolute()) {
            return Err(Error::invalid("invalid_guest", "The server's definition cannot be used").reason(
                "disk.base",
                "format",
                "an absolute path is needed",
            ));
        }
        let wanted = spec.disk.clone();
        let size = blocking(move || disk::wanted_size(&wanted)).await?;
        let existing = self.guest(spec.id);
        let folder = Folder::new(&self.folder, spec.id);
        let Some(guest) = existing else {
            let record = Record::off(None);
            let made = self.make(&folder, spec, size, Some(record.clone())).await;
            if made.is_err() {
                let _ = blocking(move || folder.remove().map_err(unwritable)).await;
                return made;
            }
            let guest = Guest::new(spec.id, folder, Some(spec.clone()), record);
            self.guests().insert(spec.id, Arc::new(guest));
            return Ok(());
        };
        let _work = guest.work.clone().lock_owned().await;
        let before = guest.now().spec.clone();
        if before.as_deref() == Some(spec) && folder.has_disk() {
            return Ok(());
        }
        if let Some(before) = &before {
            let base = |spec: &GuestSpec| {
                spec.disk.base.as_ref().and_then(|(path, _)| path.file_name().map(Path::new).map(PathBuf::from))
            };
            if before.disk.incarnation != spec.disk.incarnation {
                guest.must_be_off()?;
                folder.remove_disk().map_err(unwritable)?;
            } else if base(before) != base(spec) {
                return Err(Error::conflict("disk_in_use", "The server's disk is made from another image")
                    .detail("what is written on it only makes sense together with that image")
                    .next("delete the server and create it again", None));
            }
        }
        if disk::current_size(&folder).map_err(unwritable)?.is_some_and(|current| current > size) {
            return Err(Error::conflict("disk_cannot_shrink", "The server's disk is larger already")
                .detail(format!("it cannot be made {size} without losing what is on it")));
        }
        self.make(&folder, spec, size, None).await?;
        guest.now().spec = Some(Arc::new(spec.clone()));
        Ok(())
    }

    /// Makes what is not there yet, and writes the definition, last.
    async fn make(&self, folder: &Folder, spec: &GuestSpec, size: Bytes, fresh: Option<Record>) -> Result<(), Error> {
        let owner = self.users.owner(spec.id);
        folder.create(owner).map_err(unwritable)?;
        if !folder.has_disk() {
            let rights = self.users.rights(spec.id, &Accelerator::None);
            let run = folder.open_run().map_err(unwritable)?;
            disk::create(&self.config.qemu_img, run.as_fd(), &rights, &spec.disk, size).await?;
        }
        let (folder, spec) = (folder.clone(), spec.clone());
        let write = move || {
            if let Some(record) = fresh {
                folder.write_record(&record)?;
            }
            folder.write_spec(&spec)
        };
        blocking(move || write().map_err(unwritable)).await
    }

    async fn start(&self, guest: &Arc<Guest>) -> Result<(), Error> {
        let spec = {
            let mut now = guest.now();
            if let Some(reason) = &now.unknown {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "guest_unknown",
                    "It is not known whether the server runs",
                )
                .detail(reason.clone()));
            }
            if let Some(machine) = &now.machine {
                // Somebody gave up stopping it.
                let process = machine.process().identity().clone();
                if matches!(now.record.life, Life::Stopping { .. }) {
                    now.record.life = Life::Running { process };
                    guest.folder.write_record(&now.record).map_err(unwritable)?;
                }
                return Ok(());
            }
            now.spec.clone().ok_or_else(|| refusal::unknown_guest(guest.id))?
        };
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

    async fn stop(&self, guest: &Guest, mode: StopMode) -> Result<(), Error> {
        let Some(machine) = guest.end_is_wanted()? else { return Ok(()) };
        if let StopMode::Soft(grace) = mode
            && machine.ask_to_shut_down(grace).await
        {
            return Ok(());
        }
        machine.quit().await
    }

    async fn reboot(&self, guest: &Arc<Guest>, mode: StopMode) -> Result<(), Error> {
        let machine = guest.machine().ok_or_else(|| refusal::not_running(guest.id))?;
        match mode {
            StopMode::Hard => {
                machine.reset().await.map_err(|error| Error::internal("The server could not be reset", error))
            }
            StopMode::Soft(_) => {
                self.stop(guest, mode).await?;
                self.start(guest).await
            }
        }
    }

    async fn remove(&self, guest: &Guest) -> Result<(), Error> {
        if let Some(machine) = guest.end_is_wanted()? {
            machine.kill().await?;
        }
        let folder = guest.folder.clone();
        blocking(move || folder.remove().map_err(unwritable)).await?;
        self.guests().remove(&guest.id);
        Ok(())
    }
}

impl Guest {
    fn new(id: ServerId, folder: Folder, spec: Option<GuestSpec>, record: Record) -> Self {
        let now = Now { spec: spec.map(Arc::new), record, machine: None, watch: None, unknown: None };
        Self { id, folder, work: Arc::default(), now: Mutex::new(now) }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self) -> Option<Arc<Machine>> {
        self.now().machine.clone()
    }

    /// Changes the record, in memory and on disk.
    fn set(&self, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let mut now = self.now();
        change(&mut now.record);
        self.folder.write_record(&now.record).map_err(unwritable)
    }

    /// Refuses what needs a guest that is off, and known to be.
    fn must_be_off(&self) -> Result<(), Error> {
        let now = self.now();
        if now.machine.is_some() || now.unknown.is_some() { Err(refusal::running(self.id)) } else { Ok(()) }
    }

    /// Records that the end of the running machine is no crash; `None` if nothing runs.
    fn end_is_wanted(&self) -> Result<Option<Arc<Machine>>, Error> {
        let Some(machine) = self.machine() else { return Ok(None) };
        let process = machine.process().identity().clone();
        self.set(|record| record.life = Life::Stopping { process })?;
        Ok(Some(machine))
    }

    fn observe(&self) -> Presence {
        let now = self.now();
        if let Some(reason) = &now.unknown {
            return Presence::Unknown { reason: reason.clone() };
        }
        let pid = now.machine.as_ref().map(|machine| machine.process().identity().pid);
        Presence::Present(Observation {
            power: if pid.is_some() { Power::On } else { Power::Off },
            since: now.record.since,
            ended: now.record.ended.clone(),
            pid,
        })
    }
}

/// What a guest's watch does with what it sees.
struct Watch {
    guest: Arc<Guest>,
    events: broadcast::Sender<GuestEvent>,
}

impl Watcher for Watch {
    fn restarted(&self) {
        let _ = self.events.send(GuestEvent::Restarted(self.guest.id));
    }

    fn ended(&self, shut_down: bool, why: String) {
        let mut now = self.guest.now();
        let by_itself = !matches!(now.record.life, Life::Stopping { .. });
        let ended = by_itself.then(|| if shut_down { "shutdown".to_owned() } else { format!("crashed: {why}") });
        now.record = Record::off(ended);
        now.machine = None;
        now.watch = None;
        if let Err(error) = self.guest.folder.write_record(&now.record) {
            tracing::warn!(id = %self.guest.id, %error, "a server's record cannot be written");
        }
        drop(now);
        if by_itself {
            tracing::info!(id = %self.guest.id, shut_down, why, "a server ended by itself");
            let _ = self.events.send(event_of_end(self.guest.id, shut_down, &why));
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
        let base = match &spec.disk.base {
            None => None,
            Some((path, format)) => {
                let file = File::open(path).map_err(|error| {
                    Error::new(ErrorKind::Internal, "base_image_unreadable", "The base image cannot be read")
                        .detail(format!("{}: {error}", path.display()))
                })?;
                Some((file, *format))
            }
        };
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
        let current = disk::current_size(folder).map_err(unwritable)?;
        let grow = current.is_some_and(|current| current < wanted).then_some(wanted);
        let run = folder.open_run().map_err(unwritable)?;
        let errors = File::create(folder.errors()).map_err(unwritable)?;
        Ok(Self { run, base, config_drive, errors, grow })
    }
}

/// What runs a guest now, according to its record and to the machine's processes.
fn find_process(folder: &Folder) -> io::Result<(Record, Option<Process>)> {
    let record = match folder.record() {
        Ok(record) => record.unwrap_or_else(|| Record::off(None)),
        // Damaged by a power loss; what runs can be found without it.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Record { life: Life::Starting, ..Record::off(None) }
        }
        Err(error) => return Err(error),
    };
    let crash = |why: &str| Record::off(Some(format!("crashed: {why}")));
    Ok(match &record.life {
        Life::Off => (record, None),
        Life::Running { process: identity } | Life::Stopping { process: identity } => match Process::open(identity)? {
            Some(process) => {
                let life = Life::Running { process: identity.clone() };
                (Record { life, ..record }, Some(process))
            }
            None if matches!(record.life, Life::Stopping { .. }) => (Record::off(None), None),
            None if identity.is_of_this_boot()? => (crash("its process ended while the agent was away"), None),
            None => (crash("the machine restarted"), None),
        },
        Life::Starting => {
            let run = folder.run_path()?;
            let found = Identity::working_in(&run)?;
            let process = match found.first() {
                Some(identity) => Process::open(identity)?,
                None => None,
            };
            match process {
                Some(process) => {
                    let life = Life::Running { process: process.identity().clone() };
                    (Record { life, ..record }, Some(process))
                }
                None => (Record { life: Life::Off, ..record }, None),
            }
        }
    })
}

impl ComputeDriver for QemuDriver {
    fn capabilities(&self) -> Capabilities {
        let known = self.inner.accelerator.borrow().clone();
        let probing = || Accelerator::Tcg { reason: "hardware virtualisation is still being tried".to_owned() };
        Capabilities {
            driver: "qemu".to_owned(),
            version: self.inner.version.clone(),
            accelerator: known.unwrap_or_else(probing),
            disk_formats: vec![DiskFormat::Qcow2, DiskFormat::Raw, DiskFormat::Iso],
            console: true,
            soft_stop: true,
            features: [].into(),
        }
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ServerId>, Error>> {
        Box::pin(async { Ok(self.inner.guests().keys().copied().collect()) })
    }

    fn observe(&self, id: ServerId) -> BoxFuture<'_, Presence> {
        Box::pin(async move { self.inner.guest(id).map_or(Presence::Gone, |guest| guest.observe()) })
    }

    fn define<'a>(&'a self, spec: &'a GuestSpec) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.inner.define(spec))
    }

    fn start(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let guest = self.inner.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            let work = guest.work.clone().lock_owned().await;
            let inner = self.inner.clone();
            // A task of its own: whoever waits may give up, but a process that was started must get its watch.
            finish(async move {
                let _work = work;
                inner.start(&guest).await
            })
            .await
        })
    }

    fn stop(&self, id: ServerId, mode: StopMode) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let Some(guest) = self.inner.guest(id) else { return Ok(()) };
            let _work = guest.work.lock().await;
            self.inner.stop(&guest, mode).await
        })
    }

    fn reboot(&self, id: ServerId, mode: StopMode) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let guest = self.inner.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            let work = guest.work.clone().lock_owned().await;
            let inner = self.inner.clone();
            finish(async move {
                let _work = work;
                inner.reboot(&guest, mode).await
            })
            .await
        })
    }

    fn remove(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let Some(guest) = self.inner.guest(id) else { return Ok(()) };
            let _work = guest.work.lock().await;
            self.inner.remove(&guest).await
        })
    }

    fn console(&self, id: ServerId) -> BoxFuture<'_, Result<Box<dyn Console>, Error>> {
        Box::pin(async move {
            let guest = self.inner.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            let machine = guest.machine().ok_or_else(|| refusal::not_running(id))?;
            machine.consoles.open().await.map_err(|error| {
                Error::new(ErrorKind::Unavailable, "console_unavailable", "The console cannot be opened").source(error)
            })
        })
    }

    fn console_log(&self, id: ServerId, max: usize) -> BoxFuture<'_, Result<Vec<u8>, Error>> {
        Box::pin(async move {
            let guest = self.inner.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            let read = move || guest.folder.console_log(max);
            blocking(move || read().map_err(|error| Error::internal("The console log cannot be read", error))).await
        })
    }

    fn usage(&self, id: ServerId) -> BoxFuture<'_, Result<Usage, Error>> {
        Box::pin(async move {
            let guest = self.inner.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            guest.machine().map_or(Ok(Usage::default()), |machine| machine.usage())
        })
    }

    fn events(&self) -> Pin<Box<dyn Stream<Item = GuestEvent> + Send>> {
        Box::pin(stream::unfold(self.inner.events.subscribe(), |mut events| async move {
            loop {
                match events.recv().await {
                    Ok(event) => return Some((event, events)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        }))
    }
}

/// Runs something to its end even if nobody waits for it any more.
async fn finish<T: Send + 'static>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Result<T, Error> {
    tokio::spawn(work).await.map_err(|error| Error::internal("The work on a server was cut short", error))?
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|error| Error::internal("The work on a server was cut short", error))?
}

fn unwritable(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::StorageFull {
        return Error::new(ErrorKind::Capacity, "node_disk_full", "The node's disk is full").source(error);
    }
    Error::internal("The server's files cannot be used", error)
}

/// One driver per folder: two would run guests twice.
async fn lock(state: &Path) -> Result<File, Error> {
    let path = state.join("driver.lock");
    let failed = |error| Error::internal("The lock of the node's servers cannot be taken", error);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(Duration::from_millis(20)).await,
            Err(TryLockError::WouldBlock) => {
                return Err(Error::conflict("state_in_use", "Another agent runs the servers of this folder")
                    .detail(state.display().to_string())
                    .next("stop the other one, or use another data folder", None));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

/// What the program says about its version.
async fn first_line(program: &Path) -> Result<String, Error> {
    let missing = |why: String| {
        Error::new(ErrorKind::Unsupported, "qemu_missing", "QEMU cannot be run on this node")
            .detail(why)
            .next("install it", Some("apt-get install --no-install-recommends qemu-system-x86 qemu-utils".to_owned()))
    };
    let name = program.display();
    let running = Command::new(program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match timeout(Duration::from_secs(30), running).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(missing(format!("{name}: {error}"))),
        Err(_) => return Err(missing(format!("{name} does not answer"))),
    };
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// QEMU's version: `7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
async fn version(program: &Path) -> Result<String, Error> {
    let line = first_line(program).await?;
    Ok(line.split_once("version ").map_or(line.as_str(), |(_, version)| version).to_owned())
}

async fn version_of_disk_tool(program: &Path) -> Result<(), Error> {
    first_line(program).await.map(drop)
}
