//! The driver: guests by id, and the verbs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{DirBuilder, File, TryLockError},
    io,
    os::unix::{fs::DirBuilderExt, process::CommandExt},
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
    Accelerator, Answer, Boot, Capabilities, ComputeDriver, Console, DiskFormat, Feature, Firmware, GuestEvent,
    GuestSpec, Interface, Observation, Power, Presence, Question, Snapshot, SnapshotRequest, StopMode, Usage, refusal,
};
use nephos_types::{Error, ErrorKind, ServerId, Timestamp};
use tokio::{
    sync::broadcast,
    task::{AbortHandle, spawn_blocking},
    time::{Instant, sleep},
};

use crate::{
    adopt,
    base::Bases,
    bundle,
    cgroup::{self, Group},
    config_drive, disk,
    guest::{self, Folder, Life, Record, Seat},
    ids,
    inside::{self, Host},
    keeper::{self, CONSOLE, Order, Task, copy::Request},
    machine::{Machine, Sayings, Watcher, event_of_end},
    process::Process,
    snapshot,
    surroundings::{self, Config, Surroundings},
};

/// Events that a slow listener may be behind.
const EVENTS: usize = 1024;
/// How long to wait for an earlier driver over the same folder to let go of it.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Runs guests as containers. Dropping it leaves them running.
pub struct ContainerDriver {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    surroundings: Surroundings,
    bases: Bases,
    guests: Mutex<BTreeMap<ServerId, Arc<Guest>>>,
    /// Seats that are being taken, by guest.
    seats: Mutex<BTreeMap<ServerId, Seat>>,
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

impl ContainerDriver {
    /// Takes over a state folder: finds the runtime, and adopts the guests that run.
    ///
    /// # Errors
    /// `containers_unavailable` if this machine or this user cannot run containers, with what is missing;
    /// `state_in_use` if another driver has the folder.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let unusable = |error| Error::internal("The folder of the node's containers cannot be used", error);
        surroundings::check_user()?;
        let folder = config.state.join("guests");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(unusable)?;
        let folder = folder.canonicalize().map_err(unusable)?;
        let lock = lock(&config.state).await?;
        let surroundings = Surroundings::find(&config).await?;
        let bases = config.state.join("bases");
        let bases = Bases::open(bases, config.keeper.clone(), config.keep_unused, config.limits()).map_err(unusable)?;
        let inner = Arc::new(Inner {
            folder,
            surroundings,
            bases,
            guests: Mutex::default(),
            seats: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            _lock: lock,
        });
        let driver = Self { inner };
        driver.adopt_all().await.map_err(unusable)?;
        driver.inner.sweep().await;
        Ok(driver)
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
        let found = match Group::find(&bundle::name(id)) {
            Ok(group) => adopt::find_keeper(&folder, &group).await.map(|(record, keeper)| (record, keeper, group)),
            Err(error) => Err(error),
        };
        let (record, keeper, group) = match found {
            Ok(found) => found,
            Err(error) => {
                let reason = format!("its record cannot be read: {error}");
                tracing::error!(%id, reason, "a server's state is unknown");
                let guest = Guest::new(id, folder, spec, Record::off("", None));
                guest.now().unknown = Some(reason);
                self.inner.guests().insert(id, Arc::new(guest));
                return;
            }
        };
        if spec.is_none() && keeper.is_none() && !folder.has_spec() {
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
        if let Some(keeper) = keeper {
            let (machine, sayings) = Machine::adopted(id, guest.folder.clone(), keeper, group).await;
            self.inner.watch(&guest, Arc::new(machine), sayings);
            tracing::info!(%id, "adopted a running server");
        }
        self.inner.guests().insert(id, guest);
    }
}

impl Drop for ContainerDriver {
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

    fn known(&self, id: ServerId) -> Result<Arc<Guest>, Error> {
        self.guest(id).ok_or_else(|| refusal::unknown_guest(id))
    }

    /// Puts a running machine into a guest's hands and watches it.
    fn watch(&self, guest: &Arc<Guest>, machine: Arc<Machine>, sayings: Sayings) {
        let watcher = Watch { guest: guest.clone(), events: self.events.clone() };
        let mut now = guest.now();
        now.machine = Some(machine.clone());
        now.watch = Some(tokio::spawn(machine.watch(sayings, watcher)).abort_handle());
    }

    /// Removes unpacked images that are not needed any more.
    async fn sweep(self: &Arc<Self>) {
        let used: BTreeSet<String> = self.guests().values().map(|guest| guest.now().record.base.clone()).collect();
        let inner = self.clone();
        let swept = spawn_blocking(move || inner.bases.sweep(&used)).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "unpacked images that are not needed cannot be removed");
        }
    }

    async fn define(self: &Arc<Self>, spec: &GuestSpec) -> Result<(), Error> {
        spec.check()?;
        let (image, format) = check(spec)?;
        let size = disk::wanted_size(&spec.disk)?;
        let folder = Folder::new(&self.folder, spec.id);
        let Some(guest) = self.guest(spec.id) else {
            let base = self.bases.ensure(image, format).await?;
            let record = Record::off(&base, None);
            let made = async {
                folder.create().map_err(unwritable)?;
                disk::create(&folder, size).await?;
                folder.write_record(&record).and_then(|()| folder.write_spec(spec)).map_err(unwritable)
            };
            if let Err(error) = made.await {
                let _ = blocking(move || folder.remove().map_err(unwritable)).await;
                return Err(error);
            }
            let guest = Guest::new(spec.id, folder, Some(spec.clone()), record);
            self.guests().insert(spec.id, Arc::new(guest));
            return Ok(());
        };
        let _work = guest.work.clone().lock_owned().await;
        let before = guest.now().spec.clone();
        if before.as_deref() == Some(spec) && folder.disk().exists() {
            return Ok(());
        }
        let mut fresh = !folder.disk().exists();
        if let Some(before) = &before {
            let base =
                |spec: &GuestSpec| spec.disk.base.as_ref().and_then(|(path, _)| path.file_name().map(PathBuf::from));
            if before.disk.incarnation != spec.disk.incarnation {
                guest.must_be_off()?;
                fresh = true;
            } else if base(before) != base(spec) {
                return Err(Error::conflict("disk_in_use", "The server's disk is made from another image")
                    .detail("what is written on it only makes sense together with that image")
                    .next("rebuild the server from the other image, or create another server", None));
            }
        }
        let current = disk::current_size(&folder).map_err(unwritable)?;
        if !fresh && current.is_some_and(|current| current > size) {
            return Err(Error::conflict("disk_cannot_shrink", "The server's disk is larger already")
                .detail(format!("it cannot be made {size} without losing what is on it")));
        }
        if fresh {
            let base = self.bases.ensure(image, format).await?;
            disk::create(&folder, size).await?;
            guest.set(|record| record.base = base)?;
        }
        folder.write_spec(spec).map_err(unwritable)?;
        guest.now().spec = Some(Arc::new(spec.clone()));
        Ok(())
    }

    /// Takes user ids and CPUs for a guest that starts.
    fn take_seat(&self, id: ServerId, vcpus: u32) -> Result<Seat, Error> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let taken: Vec<Seat> = self
            .guests()
            .values()
            .filter(|guest| guest.id != id)
            .filter_map(|guest| guest.now().record.life.keeper().map(|(_, seat)| seat.clone()))
            .chain(seats.iter().filter(|(other, _)| **other != id).map(|(_, seat)| seat.clone()))
            .collect();
        let used: BTreeSet<u32> = taken.iter().map(|seat| seat.ids).collect();
        let ids = if self.surroundings.mapped {
            ids::free(&used).ok_or_else(|| {
                Error::new(ErrorKind::Capacity, "node_full", "The node has no user ids left for another container")
            })?
        } else {
            ids::STORED
        };
        let seat = Seat { ids, cpus: self.surroundings.choose_cpus(vcpus, taken.iter().flat_map(|seat| &seat.cpus)) };
        seats.insert(id, seat.clone());
        Ok(seat)
    }

    async fn start(self: &Arc<Self>, guest: &Arc<Guest>) -> Result<(), Error> {
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
        guest.set(|record| record.life = Life::Starting)?;
        let (inner, folder, wanted) = (self.clone(), guest.folder.clone(), spec.clone());
        let (base, taken) = (base.to_owned(), seat.clone());
        let keeper = blocking(move || inner.spawn_keeper(&folder, &wanted, &base, taken)).await?;
        let identity = keeper.identity().clone();
        guest.set(|record| record.life = Life::Running { keeper: identity, seat })?;
        let group = Group::find(&bundle::name(guest.id)).map_err(unwritable)?;
        Machine::started(guest.id, guest.folder.clone(), keeper, group).await
    }

    fn spawn_keeper(&self, folder: &Folder, spec: &GuestSpec, base: &str, seat: Seat) -> Result<Process, Error> {
        let program = self.bases.program(base).map_err(|error| {
            Error::new(ErrorKind::Internal, "base_image_unreadable", "The unpacked image cannot be read").source(error)
        })?;
        folder.clear_run().map_err(unwritable)?;
        config_drive::write(folder, spec).map_err(unwritable)?;
        let run = folder.run();
        let forwards = spec.interfaces.iter().flat_map(|interface| match interface {
            Interface::User { forwards, .. } => forwards.clone(),
        });
        let config = bundle::config(spec, &program, &seat);
        let task = Task {
            name: bundle::name(spec.id),
            runtime: self.surroundings.runtime.clone(),
            hidden: cgroup::second_beside_first().map_err(unwritable)?,
            base: self.bases.root(base),
            disk: folder.disk(),
            interactive: !program.is_init,
            config: (!spec.config_drive.is_empty()).then(|| folder.config()),
            seat,
            mapped: self.surroundings.mapped,
            forwards: forwards.collect(),
            log: folder.console_log_path(),
        };
        let prepare = || {
            guest::replace(&run.join("config.json"), &config)?;
            guest::replace(&run.join(keeper::TASK), &task)?;
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

    async fn stop(&self, guest: &Guest, mode: StopMode) -> Result<(), Error> {
        let Some(machine) = guest.end_is_wanted()? else { return Ok(()) };
        if let StopMode::Soft(grace) = mode
            && machine.ask_to_end(self.stop_signal(guest), grace).await
        {
            return Ok(());
        }
        machine.kill().await
    }

    fn stop_signal(&self, guest: &Guest) -> i32 {
        let base = guest.now().record.base.clone();
        self.bases.program(&base).map_or(nix::libc::SIGTERM, |program| program.stop_signal)
    }

    async fn reboot(self: &Arc<Self>, guest: &Arc<Guest>, mode: StopMode) -> Result<(), Error> {
        let machine = guest.machine().ok_or_else(|| refusal::not_running(guest.id))?;
        match mode {
            StopMode::Hard => machine
                .order(Order::Reset)
                .await
                .map_err(|error| Error::internal("The server could not be reset", error)),
            StopMode::Soft(_) => {
                self.stop(guest, mode).await?;
                self.start(guest).await
            }
        }
    }

    async fn snapshot(&self, guest: &Guest, request: &SnapshotRequest) -> Result<Snapshot, Error> {
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
        let copy = Request {
            keeper: machine.as_ref().map(|machine| machine.keeper().clone()),
            base: self.bases.root(&base),
            disk: guest.folder.disk(),
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
        let outcome = snapshot::copy(&self.surroundings.keeper, &copy, &request.file).await;
        if let (true, Some(machine)) = (still, &machine)
            && let Err(error) = machine.group.thaw()
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(Error::internal("The server cannot go on", error));
        }
        // No process of it was in the middle of writing, and what it had written was seen.
        outcome.map(|()| Snapshot { format: DiskFormat::Tar, frozen: request.freeze })
    }

    async fn ask(&self, id: ServerId, question: &Question) -> Result<Answer, Error> {
        let guest = self.known(id)?;
        question.check()?;
        let machine = guest.machine().ok_or_else(|| refusal::not_running(id))?;
        if machine.group.is_frozen().unwrap_or(false) {
            return Err(inside::missing("it stands still"));
        }
        let init = machine.init().ok_or_else(|| inside::missing("it is starting"))?;
        let host = Host {
            keeper_program: &self.surroundings.keeper,
            runtime: &self.surroundings.runtime,
            folder: &guest.folder,
            name: bundle::name(id),
            keeper: machine.keeper().clone(),
            init,
        };
        host.ask(question).await
    }

    async fn remove(self: &Arc<Self>, guest: &Guest) -> Result<(), Error> {
        if let Some(machine) = guest.end_is_wanted()? {
            machine.kill().await?;
        }
        let folder = guest.folder.clone();
        blocking(move || folder.remove().map_err(unwritable)).await?;
        self.guests().remove(&guest.id);
        self.sweep().await;
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
        if let Some(reason) = &self.now().unknown {
            return Err(unknown(reason));
        }
        let Some(machine) = self.machine() else { return Ok(None) };
        self.set(|record| {
            if let Some((keeper, seat)) = record.life.keeper() {
                record.life = Life::Stopping { keeper: keeper.clone(), seat: seat.clone() };
            }
        })?;
        Ok(Some(machine))
    }

    fn observe(&self) -> Presence {
        let now = self.now();
        if let Some(reason) = &now.unknown {
            return Presence::Unknown { reason: reason.clone() };
        }
        let power = match &now.machine {
            None => Power::Off,
            Some(machine) => match machine.group.is_frozen() {
                Ok(true) => Power::Paused,
                // While it restarts it has no group.
                Ok(false) => Power::On,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Power::On,
                Err(error) => return Presence::Unknown { reason: format!("its control group: {error}") },
            },
        };
        Presence::Present(Observation {
            power,
            since: now.record.since,
            ended: now.record.ended.clone(),
            pid: now.machine.as_ref().and_then(|machine| machine.init()).map(|init| init.pid),
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
        now.record = Record::off(&now.record.base, by_itself.then(|| how(shut_down, &why)));
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

/// How an end that nobody asked for is recorded.
pub(crate) fn how(shut_down: bool, why: &str) -> String {
    if shut_down { "shutdown".to_owned() } else { format!("crashed: {why}") }
}

/// What a container cannot be made of.
fn check(spec: &GuestSpec) -> Result<(&Path, DiskFormat), Error> {
    let wrong = |constraint: &str, detail: &str| {
        Error::invalid("invalid_guest", "The server's definition cannot be used").reason(
            "disk.base",
            constraint,
            detail,
        )
    };
    let Some((image, format)) = &spec.disk.base else {
        return Err(wrong("required", "a container needs an image with a root file system"));
    };
    if !image.is_absolute() {
        return Err(wrong("format", "an absolute path is needed"));
    }
    if spec.firmware != Firmware::Bios {
        return Err(refusal::unsupported(spec.id, "have a firmware"));
    }
    if spec.boot != Boot::Disk {
        return Err(refusal::unsupported(spec.id, "boot a kernel of its own"));
    }
    if spec.rescue.is_some() {
        return Err(refusal::unsupported(spec.id, "be rescued"));
    }
    Ok((image, *format))
}

impl ComputeDriver for ContainerDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            driver: "container".to_owned(),
            version: self.inner.surroundings.version.clone(),
            accelerator: Accelerator::None,
            disk_formats: vec![DiskFormat::Tar, DiskFormat::Oci],
            console: true,
            soft_stop: true,
            features: [Feature::Pause, Feature::Snapshot, Feature::Ask].into(),
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
            let guest = self.inner.known(id)?;
            let work = guest.work.clone().lock_owned().await;
            let inner = self.inner.clone();
            // A task of its own: whoever waits may give up, but a keeper that was started must get its watch.
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
            let guest = self.inner.known(id)?;
            let work = guest.work.clone().lock_owned().await;
            let inner = self.inner.clone();
            finish(async move {
                let _work = work;
                inner.reboot(&guest, mode).await
            })
            .await
        })
    }

    fn pause(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let guest = self.inner.known(id)?;
            let _work = guest.work.lock().await;
            let machine = guest.machine().ok_or_else(|| refusal::not_running(id))?;
            let frozen = machine.group.freeze().await;
            frozen.map_err(|error| Error::internal("The server could not be paused", error))
        })
    }

    fn snapshot<'a>(&'a self, id: ServerId, request: &'a SnapshotRequest) -> BoxFuture<'a, Result<Snapshot, Error>> {
        Box::pin(async move {
            let guest = self.inner.known(id)?;
            let work = guest.work.clone().lock_owned().await;
            let (inner, request) = (self.inner.clone(), request.clone());
            // A task of its own: whoever waits may give up, but a guest that stands still must go on.
            finish(async move {
                let _work = work;
                inner.snapshot(&guest, &request).await
            })
            .await
        })
    }

    fn ask<'a>(&'a self, id: ServerId, question: &'a Question) -> BoxFuture<'a, Result<Answer, Error>> {
        Box::pin(self.inner.ask(id, question))
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
            let guest = self.inner.known(id)?;
            if guest.machine().is_none() {
                return Err(refusal::not_running(id));
            }
            let console = guest.folder.connect(CONSOLE).await;
            console.map(|console| Box::new(console) as Box<dyn Console>).map_err(|error| {
                Error::new(ErrorKind::Unavailable, "console_unavailable", "The console cannot be opened").source(error)
            })
        })
    }

    fn console_log(&self, id: ServerId, max: usize) -> BoxFuture<'_, Result<Vec<u8>, Error>> {
        Box::pin(async move {
            let guest = self.inner.known(id)?;
            let read = move || guest.folder.console_log(max);
            blocking(move || read().map_err(|error| Error::internal("The console log cannot be read", error))).await
        })
    }

    fn usage(&self, id: ServerId) -> BoxFuture<'_, Result<Usage, Error>> {
        Box::pin(async move {
            let guest = self.inner.known(id)?;
            let Some(machine) = guest.machine() else { return Ok(Usage::default()) };
            let used = machine.usage().await;
            used.map_err(|error| Error::internal("The server's use of the node cannot be read", error))
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

fn unknown(reason: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "guest_unknown", "It is not known whether the server runs").detail(reason)
}

/// One driver per folder: two would run guests twice.
async fn lock(state: &Path) -> Result<File, Error> {
    let path = state.join("driver.lock");
    let failed = |error| Error::internal("The lock of the node's containers cannot be taken", error);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(Duration::from_millis(20)).await,
            Err(TryLockError::WouldBlock) => {
                return Err(Error::conflict("state_in_use", "Another agent runs the containers of this folder")
                    .detail(state.display().to_string())
                    .next("stop the other one, or use another data folder", None));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}
