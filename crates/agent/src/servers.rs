//! The node's servers: what each should be, and one worker per server that has something to do.
//!
//! A server without work costs no task. Newer wishes replace older ones; a worker that finishes looks whether there is
//! a newer wish before it goes.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, stream};
use nephos_driver::{ComputeDriver, GuestEvent, Presence, network::NetworkPlan};
use nephos_node_api::{DesiredServer, ServerReport, ServerState, UsageSample, WantedPower};
use nephos_types::{ImageId, Result, ServerId, Timestamp};
use tokio::sync::{Notify, Semaphore};

use crate::{
    config::Config,
    drivers::Drivers,
    images::Images,
    networks::Networks,
    records::{Record, Records},
    reporter::Reporter,
    snapshots::Snapshots,
    usage::Rings,
};

pub(crate) struct Servers {
    pub(crate) config: Arc<Config>,
    pub(crate) drivers: Drivers,
    pub(crate) images: Images,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) records: Records,
    pub(crate) reporter: Arc<Reporter>,
    pub(crate) usage: Rings,
    pub(crate) networks: Networks,
    /// Bounds the work on different servers at the same time.
    pub(crate) slots: Semaphore,
    table: Mutex<HashMap<ServerId, Entry>>,
    /// Guests that nobody has told this agent about.
    strangers: Mutex<BTreeSet<ServerId>>,
    /// Workers run; before, wishes are only collected.
    started: AtomicBool,
}

struct Entry {
    record: Record,
    /// There is something to do that no worker has begun.
    dirty: bool,
    working: bool,
    wake: Arc<Notify>,
    trouble: Trouble,
}

impl Entry {
    fn new(record: Record) -> Self {
        Self { record, dirty: true, working: false, wake: Arc::default(), trouble: Trouble::default() }
    }
}

/// What has gone wrong lately, for delays that grow.
#[derive(Clone, Copy, Default)]
pub(crate) struct Trouble {
    /// Attempts that failed in a row.
    pub(crate) failures: u32,
    /// Crashes in a row.
    pub(crate) crashes: u32,
    /// When the guest was last started.
    pub(crate) started: Option<Instant>,
}

/// What a worker begins with.
pub(crate) struct Work {
    pub(crate) record: Record,
    /// Rings when there is a newer wish.
    pub(crate) wake: Arc<Notify>,
    pub(crate) trouble: Trouble,
}

/// How a worker's turn ended.
pub(crate) enum Turn {
    /// All is as it should be.
    Settled,
    /// Look again after this long, or when there is a newer wish.
    Again(Duration),
}

impl Servers {
    pub(crate) fn new(
        config: Arc<Config>,
        drivers: Drivers,
        images: Images,
        snapshots: Arc<Snapshots>,
        records: Records,
        reporter: Arc<Reporter>,
        usage: Rings,
    ) -> Arc<Self> {
        let networks = Networks::open(drivers.networks(), drivers.served(), config.data.clone(), config.retry);
        let slots = Semaphore::new(config.parallel.max(1));
        Arc::new(Self {
            config,
            drivers,
            images,
            snapshots,
            records,
            reporter,
            usage,
            networks,
            slots,
            table: Mutex::default(),
            strangers: Mutex::default(),
            started: AtomicBool::new(false),
        })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<ServerId, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up what an earlier run of the agent left: remembers what should be, looks at what is, and reports it.
    pub(crate) async fn adopt(&self) -> Result<()> {
        let records = self.records.load()?;
        if !records.is_empty() {
            tracing::info!(servers = records.len(), "taking up what this node ran before");
        }
        stream::iter(records)
            .for_each_concurrent(self.config.parallel, async |record| {
                let presence = self.observe(&record.desired).await;
                self.networks.tell(record.desired.id, record.desired.metadata.as_deref());
                self.report(&record, presence, None);
                self.table().insert(record.desired.id, Entry::new(record));
            })
            .await;
        self.look_for_strangers().await;
        Ok(())
    }

    /// Reports guests that this agent was never told about. They are left alone.
    pub(crate) async fn look_for_strangers(&self) {
        let guests = match self.drivers.list().await {
            Ok(guests) => guests,
            Err(error) => return tracing::warn!(error = %error.chain(), "the driver cannot list its guests"),
        };
        let unknown: BTreeSet<ServerId> = {
            let table = self.table();
            guests.keys().copied().filter(|id| !table.contains_key(id)).collect()
        };
        let known =
            std::mem::replace(&mut *self.strangers.lock().unwrap_or_else(PoisonError::into_inner), unknown.clone());
        for id in known.difference(&unknown) {
            if !self.table().contains_key(id) {
                self.reporter.forget(*id);
            }
        }
        for id in unknown {
            if !known.contains(&id) {
                tracing::warn!(server = %id, "a guest that the control plane has not named; it is left alone");
            }
            let Some(driver) = guests.get(&id) else { continue };
            let state = match driver.observe(id).await {
                Presence::Gone => continue,
                Presence::Present(observation) => ServerState::Present(observation),
                Presence::Unknown { reason } => ServerState::Unknown { reason },
            };
            if !self.table().contains_key(&id) {
                self.reporter.set(ServerReport {
                    id,
                    generation: 0,
                    state,
                    error: None,
                    restarts: 0,
                    snapshots: vec![],
                    ports: vec![],
                });
            }
        }
    }

    /// Lets workers begin.
    pub(crate) fn start(self: &Arc<Self>) {
        self.started.store(true, Ordering::SeqCst);
        self.wake_all(|_| true);
    }

    /// Takes over what should be. What is not listed any more is forgotten: gone if that was the wish, otherwise left
    /// alone as a stranger.
    pub(crate) async fn apply(self: &Arc<Self>, desired: Vec<DesiredServer>) {
        let listed: HashSet<ServerId> = desired.iter().map(|server| server.id).collect();
        let copies: HashMap<ServerId, Vec<ImageId>> = desired
            .iter()
            .filter(|server| !server.snapshots.is_empty())
            .map(|server| (server.id, server.snapshots.iter().map(|task| task.image).collect()))
            .collect();
        let mut begin = vec![];
        let forgotten: Vec<ServerId> = {
            let mut table = self.table();
            for server in desired {
                let id = server.id;
                let known = table.get(&id).map(|entry| &entry.record.desired.metadata);
                if known != Some(&server.metadata) {
                    self.networks.tell(id, server.metadata.as_deref());
                }
                match table.get_mut(&id) {
                    Some(entry) if entry.record.desired == server => continue,
                    Some(entry) => {
                        entry.record.desired = server;
                        entry.dirty = true;
                        entry.wake.notify_one();
                    }
                    None => {
                        table.insert(id, Entry::new(Record::new(server)));
                    }
                }
                begin.push(id);
            }
            let forgotten = table.keys().copied().filter(|id| !listed.contains(id)).collect::<Vec<_>>();
            for id in &forgotten {
                self.networks.tell(*id, None);
                if let Some(entry) = table.remove(id) {
                    entry.wake.notify_one();
                    if !matches!(entry.record.desired.power, WantedPower::Absent) {
                        tracing::warn!(server = %id, "the control plane does not name this server any more; it is left alone");
                    }
                }
            }
            forgotten
        };
        self.snapshots.keep_only(&copies).await;
        for id in begin {
            self.begin_work(id);
        }
        for id in &forgotten {
            self.reporter.forget(*id);
            self.usage.forget(*id).await;
            if let Err(error) = self.records.remove(*id).await {
                tracing::warn!(server = %id, error = %error.chain(), "a record could not be removed");
            }
        }
        if !forgotten.is_empty() {
            self.look_for_strangers().await;
        }
    }

    /// Takes over what the networks should be.
    pub(crate) fn wish_networks(&self, plan: NetworkPlan) {
        let in_space: BTreeSet<ServerId> = {
            let table = self.table();
            let of = |id: &ServerId| table.get(id).map(|entry| entry.record.desired.driver.clone()).unwrap_or_default();
            plan.ports.iter().map(|port| port.server).filter(|id| self.drivers.in_namespace(&of(id))).collect()
        };
        self.networks.wish(plan, &in_space);
    }

    /// Looks again at the servers that `which` picks.
    pub(crate) fn wake_all(self: &Arc<Self>, which: impl Fn(&Record) -> bool) {
        let ids: Vec<ServerId> = {
            let mut table = self.table();
            table
                .iter_mut()
                .filter(|(_, entry)| which(&entry.record))
                .map(|(id, entry)| {
                    entry.dirty = true;
                    *id
                })
                .collect()
        };
        for id in ids {
            self.begin_work(id);
        }
    }

    /// Something happened to a guest by itself.
    pub(crate) fn happened(self: &Arc<Self>, event: GuestEvent) {
        let id = match event {
            GuestEvent::ShutDown(id) => {
                tracing::info!(server = %id, "the guest has shut itself down");
                id
            }
            GuestEvent::Crashed(id, why) => {
                tracing::warn!(server = %id, why, "the guest has crashed");
                id
            }
            GuestEvent::Restarted(id) => {
                tracing::info!(server = %id, "the guest has restarted itself");
                id
            }
        };
        if let Some(entry) = self.table().get_mut(&id) {
            entry.dirty = true;
        }
        self.begin_work(id);
    }

    /// Starts a worker for a server that has something to do, unless one is at it.
    fn begin_work(self: &Arc<Self>, id: ServerId) {
        if !self.started.load(Ordering::SeqCst) {
            return;
        }
        match self.table().get_mut(&id) {
            Some(entry) if entry.dirty && !entry.working => entry.working = true,
            _ => return,
        }
        let servers = self.clone();
        tokio::spawn(async move { servers.work(id).await });
    }

    async fn work(self: Arc<Self>, id: ServerId) {
        loop {
            let mut work = {
                let mut table = self.table();
                let Some(entry) = table.get_mut(&id) else { return };
                entry.dirty = false;
                // What rang until now is part of the record that this turn begins with.
                let _ = entry.wake.notified().now_or_never();
                Work { record: entry.record.clone(), wake: entry.wake.clone(), trouble: entry.trouble }
            };
            let turn = self.reconcile(&mut work).await;
            {
                let mut table = self.table();
                let Some(entry) = table.get_mut(&id) else { return };
                let same = entry.record.desired.generation == work.record.desired.generation;
                entry.trouble = if same { work.trouble } else { Trouble { failures: 0, crashes: 0, ..work.trouble } };
                match turn {
                    _ if entry.dirty => continue,
                    Turn::Settled => {
                        entry.working = false;
                        return;
                    }
                    Turn::Again(_) => {}
                }
            }
            if let Turn::Again(after) = turn {
                tokio::select! {
                    () = tokio::time::sleep(after) => {}
                    () = work.wake.notified() => {}
                }
            }
        }
    }

    /// Keeps what a worker has achieved, together with what is wished by now.
    pub(crate) async fn keep(&self, record: &Record) -> Result<()> {
        let merged = {
            let mut table = self.table();
            let Some(entry) = table.get_mut(&record.desired.id) else { return Ok(()) };
            entry.record = Record { desired: entry.record.desired.clone(), ..record.clone() };
            entry.record.clone()
        };
        self.records.save(merged).await
    }

    /// States what a server is.
    pub(crate) fn report(&self, record: &Record, presence: Presence, error: Option<nephos_types::Error>) {
        let state = match presence {
            Presence::Gone => ServerState::Gone,
            Presence::Present(observation) => ServerState::Present(observation),
            Presence::Unknown { reason } => ServerState::Unknown { reason },
        };
        self.report_state(record, state, error);
    }

    pub(crate) fn report_state(&self, record: &Record, state: ServerState, error: Option<nephos_types::Error>) {
        let id = record.desired.id;
        let snapshots = self.snapshots.reports(id);
        let copies = !snapshots.is_empty();
        let (generation, restarts) = (record.reached, record.restarts);
        let ports = self.networks.reports(&record.desired.interfaces);
        self.reporter.set(ServerReport { id, generation, state, error, restarts, snapshots, ports });
        if copies {
            // A copy may have gone on since it was looked at.
            self.reporter.amend(id, |report| report.snapshots = self.snapshots.reports(id));
        }
    }

    /// The driver that a server is for; the first one if nobody has named the server.
    pub(crate) fn driver_of(&self, id: ServerId) -> Result<Arc<dyn ComputeDriver>> {
        let name = self.table().get(&id).map(|entry| entry.record.desired.driver.clone()).unwrap_or_default();
        self.drivers.named(&name).cloned()
    }

    /// What is known about a server's guest.
    pub(crate) async fn observe(&self, server: &DesiredServer) -> Presence {
        match self.drivers.named(&server.driver) {
            Ok(driver) => driver.observe(server.id).await,
            Err(error) => Presence::Unknown { reason: error.to_string() },
        }
    }

    /// Measures what running servers have used by now, and keeps it.
    pub(crate) async fn measure(&self) {
        let running: Vec<(ServerId, String)> = {
            let table = self.table();
            let runs = |entry: &&Entry| matches!(entry.record.desired.power, WantedPower::On { .. });
            let named = |entry: &Entry| (entry.record.desired.id, entry.record.desired.driver.clone());
            table.values().filter(runs).map(named).collect()
        };
        let measured = stream::iter(running).map(async |(server, driver)| {
            let usage = self.drivers.named(&driver).ok()?.usage(server).await.ok()?;
            let sample = UsageSample { at: Timestamp::now(), usage };
            (usage != nephos_driver::Usage::default()).then_some((server, sample))
        });
        let parallel = self.config.parallel.max(1);
        let measured = measured.buffer_unordered(parallel).filter_map(async |sample| sample).collect().await;
        let runs = |entry: &Entry| matches!(entry.record.desired.power, WantedPower::On { .. });
        self.usage.record(measured, |id| self.table().get(&id).is_some_and(runs)).await;
    }

    /// Checksums of the images that guests here stand on; `None` while there are guests nobody knows.
    pub(crate) fn images_in_use(&self) -> Option<HashSet<String>> {
        if !self.strangers.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return None;
        }
        let table = self.table();
        Some(
            table
                .values()
                .flat_map(|entry| entry.record.desired.images())
                .map(|image| image.sha256.to_ascii_lowercase())
                .collect(),
        )
    }
}
