//! Each action under every fault: a crash, a double call, a failure, a cancellation at each step and undo. However it
//! goes, the server is as asked or as before, and claims and quotas are exactly what servers take.

mod creators;
mod deadlines;
mod moving;
mod resizing;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use nephos_auth::{Authority, Policy};
use nephos_driver::{Accelerator, Capabilities, DiskFormat, Feature, Firmware, Observation, Power};
use nephos_node_api::{
    BootSource, Content as Bulk, ControlPlane, Hardware, Hello, ImageSource, Inventory, PROTOCOL_VERSION, PortRange,
    ServerReport, ServerState, SnapshotHeader, SnapshotReport, SnapshotState, WantedPower,
};
use nephos_ops::{Caller, Cloud, Context, Credentials, Identity, Scope, placement::GroupPolicy};
use nephos_store::{Author, Bound, Query, Sqlite, Store, Transaction};
use nephos_types::{
    Bytes, DomainId, FlavorId, Id, ImageId, Labels, NodeId, ProjectId, ServerId, Timestamp, UserId, WorkflowId,
};
use nephos_workflow::{
    Config, Definition,
    faults::{self, End, Scenario},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    ActInput, Action, Before, PowerInput, Rebuild, Rescue, ResizeTo, Shelve, Snapshot, Trash, claim_capacity, power,
    rebuild, rescue, resize, shelve, snapshot, trash,
};
use crate::{
    CloudCore, Handlers, Identify,
    compute::{
        Compute, Held, Settings,
        group::{self, ServerGroup},
        quota,
        server::{
            Server,
            config_drive::DriveFormat,
            record::{self, Life, Observed, Placing, Size, Task, Trashed},
        },
    },
    control,
    image::{self, Image, Images, NodeImages, SnapshotDraft, stores::Stores},
    journal::{Effects, Engine, StoreJournal},
    network::Networks,
    node::{self, ImageBytes, Nodes, Workload},
    placement::{Amounts, Needs, Together},
};

struct Nobody;

impl Identify for Nobody {
    fn identify<'a>(&'a self, _: &'a Credentials) -> BoxFuture<'a, nephos_types::Result<Arc<Identity>>> {
        Box::pin(async { Err(nephos_types::Error::bug("not asked here")) })
    }
}

/// A control plane with one node and one server.
pub(crate) struct World {
    _folder: TempDir,
    pub(crate) store: Store,
    /// What its families are held by.
    _nodes: Arc<Nodes>,
    images: Arc<Images>,
    pub(crate) compute: Arc<Compute>,
    pub(crate) node: NodeId,
    /// Another one, for what moves.
    other: NodeId,
    project: ProjectId,
    pub(crate) server: ServerId,
    /// What its handlers are called through.
    cloud: Cloud,
    before: Before,
    /// The server as it was made.
    first: Server,
    /// Memory that others take on the server's node.
    crowd_mib: u64,
}

fn inventory() -> Inventory {
    Inventory {
        hostname: "host".to_owned(),
        kernel: "6.1".to_owned(),
        architecture: "x86_64".to_owned(),
        cpu_model: "fast".to_owned(),
        cpus: 4,
        memory: Bytes::mib(8192),
        disk: Bytes::mib(100 << 10),
        forward_ports: PortRange { first: 20_000, last: 20_009 },
        compute: vec![Capabilities {
            driver: "simulated".to_owned(),
            version: "1".to_owned(),
            accelerator: Accelerator::None,
            disk_formats: vec![DiskFormat::Raw],
            console: true,
            soft_stop: true,
            features: [Feature::Pause, Feature::Suspend, Feature::Snapshot, Feature::Rescue].into(),
        }],
        missing: vec![],
        hardware: Hardware::default(),
        network: None,
    }
}

fn source(id: ImageId) -> ImageSource {
    ImageSource { id, format: DiskFormat::Raw, size: Bytes(10), sha256: "0".repeat(64) }
}

fn size(memory_mib: u64) -> Size {
    let flavor_name = format!("m{memory_mib}").parse().unwrap();
    Size {
        flavor: FlavorId::new(),
        flavor_name,
        vcpus: 1,
        memory_mib,
        disk_gib: 1,
        claimed_disk_gib: 1,
        needs: Needs::default(),
    }
}

/// A server that runs.
fn running(node: NodeId) -> Server {
    let size = size(1024);
    let observation = Observation { power: Power::On, since: Timestamp::now(), ended: None, pid: None };
    Server {
        flavor: size.flavor,
        flavor_name: size.flavor_name,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        disk_gib: size.disk_gib,
        claimed_disk_gib: size.claimed_disk_gib,
        image: source(ImageId::new()),
        keypair: None,
        public_keys: vec![],
        user_data: None,
        mac: "52:54:00:00:00:01".to_owned(),
        forwards: vec![],
        hostname: "web".to_owned(),
        restart: true,
        node: Some(node),
        wanted: WantedPower::On { restart: true },
        generation: 1,
        reboots: 0,
        reboot_grace_ms: 0,
        life: Life::Made,
        task: None,
        last_workflow: None,
        fault: None,
        observed: Some(Observed {
            generation: 1,
            state: ServerState::Present(observation),
            power: Some(Power::On),
            error: None,
            snapshots: vec![],
            ports: vec![],
        }),
        restarts: 0,
        driver: "simulated".to_owned(),
        incarnation: 0,
        firmware: Firmware::Bios,
        boot: BootSource::Disk,
        rescue: None,
        snapshots: vec![],
        resize: None,
        held: vec![],
        kept: vec![],
        shelved: false,
        own_image: None,
        trashed: None,
        lock: None,
        touched: None,
        console_epoch: 0,
        protected: false,
        metadata: [].into(),
        tags: [].into(),
        files: vec![],
        drive_format: Default::default(),
        placing: Placing::default(),
        nics: vec![],
    }
}

/// A server on some node.
pub(crate) fn a_server() -> Server {
    running(NodeId::new())
}

fn author() -> Author {
    Author::new("test")
}

impl World {
    pub(crate) async fn new(setup: impl FnOnce(&mut Server)) -> Self {
        // In memory where the machine has such a folder: there are hundreds of these worlds.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let store = Store::open(Sqlite::open(folder.path().join("db")).await.unwrap(), control::kinds()).await.unwrap();
        let mut handlers = Handlers::new();
        let engine = Engine::new(StoreJournal::new(store.clone()), Config::default());
        let settings = image::Settings::new(folder.path().join("image-keys"));
        let files = Stores::open(&folder.path().join("images"), true, &settings).unwrap();
        let images = Images::register_with(&mut handlers, &store, &engine, files, true, settings).await.unwrap();
        let nodes = Nodes::new(store.clone(), Authority::ephemeral().unwrap(), node::Settings::default());
        let networks = Networks::register(&mut handlers, &store);
        let settings = Settings::default();
        let compute = Compute::register(&mut handlers, &store, &engine, &nodes, &images, &networks, settings).unwrap();
        let workload: Arc<dyn Workload> = compute.clone();
        nodes.attach(&workload, Arc::new(NodeImages(images.clone())));
        let node = nodes.local("n", "n").await.unwrap();
        let other = nodes.local("m", "m").await.unwrap();
        for node in [node, other] {
            let hello = Hello {
                protocol: PROTOCOL_VERSION,
                agent_version: "1".to_owned(),
                inventory: inventory(),
                program: None,
            };
            nodes.hello(node, "here".to_owned(), hello).await.unwrap();
        }

        let core = CloudCore::new(store.clone(), Arc::new(Nobody), Policy::default(), handlers);
        let (project, server) = (ProjectId::new(), ServerId::new());
        let mut body = running(node);
        setup(&mut body);
        if let Some(place) = &mut body.placing.elsewhere {
            place.node = other;
        }
        let mut transaction = quota::take(&store, Transaction::new(author()), project, body.charged());
        let capacity = Amounts { vcpus: 16, memory_mib: 8192, disk_gib: 100 };
        transaction = image::hold_all(transaction, &body.kept);
        for place in body.places() {
            transaction = claim_capacity(transaction, place.node, place.taken, capacity);
        }
        if let Some(id) = body.placing.group {
            let group = ServerGroup { policy: GroupPolicy::Affinity, max_per_node: 1 };
            let alone = Together { policy: group.policy, most: 1, on: [].into() };
            transaction = transaction.create(nephos_store::Draft::new(id, group).project(project));
            transaction = group::claim(&store, transaction, id, &alone, node, None);
            if body.placing.elsewhere.is_some() {
                transaction = transaction.add(format!("group/{id}/node/{other}"), 1, Bound::Any).add(
                    format!("group/{id}/placed"),
                    1,
                    Bound::Any,
                );
            }
        }
        let (before, first) = (Before::of(&body), body.clone());
        let draft =
            nephos_store::Draft::new(server, body).project(project).name("web".parse::<nephos_types::Name>().unwrap());
        store.commit(transaction.create(draft)).await.unwrap();
        Self {
            _folder: folder,
            store,
            _nodes: nodes,
            images,
            compute,
            node,
            other,
            project,
            server,
            cloud: Cloud::new(Arc::new(core)),
            before,
            first,
            crowd_mib: 0,
        }
    }

    /// A request by somebody with this role on the server's project, or on another one.
    pub(crate) fn by(&self, role: &str) -> Context {
        let (project, roles) = match role {
            "stranger" => (ProjectId::new(), vec!["member", "reader"]),
            "admin" => (self.project, vec!["admin", "manager", "member", "reader"]),
            "member" => (self.project, vec!["member", "reader"]),
            role => (self.project, vec![role]),
        };
        let now = Timestamp::now();
        let domain = DomainId::from_bits(1);
        self.cloud.context(Caller {
            identity: Some(Arc::new(Identity {
                user: UserId::from_bits(1),
                user_name: "user".parse().unwrap(),
                user_domain: domain,
                scope: Scope::Project { id: project, name: "project".parse().unwrap(), domain },
                roles: roles.into_iter().map(str::to_owned).collect(),
                issued_at: now,
                expires_at: now.plus(Duration::from_secs(3600)),
                login: Default::default(),
            })),
            address: "127.0.0.1".to_owned(),
            front_end: "test",
        })
    }

    /// Makes the record of an image in the server's project.
    pub(crate) async fn has_image(&self, image: ImageId) {
        let name = "image".parse().unwrap();
        let draft = SnapshotDraft {
            name: &name,
            labels: Labels::default(),
            properties: [].into(),
            protected: false,
            min_disk_gib: 1,
            min_memory_mib: 0,
        };
        let transaction = self.images.draft(Transaction::new(author()), self.project, image, draft);
        self.store.commit(transaction).await.unwrap();
    }

    pub(crate) fn server(&self) -> Server {
        self.store.get::<Server>(self.server).unwrap().body.clone()
    }

    /// Others take so much memory on the server's node.
    async fn crowd(&mut self, memory_mib: u64) {
        let counter = format!("capacity/{}/memory_mib", self.node);
        let transaction = Transaction::new(author()).add(counter, i64::try_from(memory_mib).unwrap(), Bound::Any);
        self.store.commit(transaction).await.unwrap();
        self.crowd_mib = memory_mib;
        self.compute.nodes.changed();
    }

    /// The nodes do what they should, at once, and say so.
    pub(crate) async fn work(&self) {
        for node in [self.node, self.other] {
            self.work_on(node).await;
        }
    }

    async fn work_on(&self, node: NodeId) {
        for desired in self.compute.desired(node) {
            let power = match desired.power {
                WantedPower::On { .. } => Some(Power::On),
                WantedPower::Off { .. } => Some(Power::Off),
                WantedPower::Paused => Some(Power::Paused),
                WantedPower::Suspended => Some(Power::Suspended),
                WantedPower::Absent => None,
            };
            let mut snapshots = vec![];
            for task in &desired.snapshots {
                let header = SnapshotHeader { format: DiskFormat::Raw, frozen: task.freeze };
                let body = Box::pin(futures_util::stream::iter([Ok(vec![1u8; 4096].into())]));
                let content = Bulk { length: 4096, body };
                // Refused if the image is gone by now.
                if NodeImages(self.images.clone()).receive(node, task.image, header, content).await.is_ok() {
                    snapshots.push(SnapshotReport { image: task.image, state: SnapshotState::Done });
                }
            }
            let state = match power {
                None => ServerState::Gone,
                Some(power) => {
                    ServerState::Present(Observation { power, since: Timestamp::default(), ended: None, pid: None })
                }
            };
            let (id, generation) = (desired.id, desired.generation);
            let report = ServerReport { id, generation, state, error: None, restarts: 0, snapshots, ports: vec![] };
            self.compute.report(node, &[report]).await.unwrap();
        }
    }

    /// Claims and quotas are what the server takes.
    pub(crate) fn exact(&self) -> Result<(), String> {
        let server = self.server();
        let amounts = server.charged();
        let images = self.store.list::<Image>(&Query::all()).items.len();
        let mut counters = vec![];
        for node in [self.node, self.other] {
            let place = server.places().find(|place| place.node == node);
            let (there, taken) = (u64::from(place.is_some()), place.map(|place| place.taken).unwrap_or_default());
            let others_mib = if node == self.node { self.crowd_mib } else { 0 };
            counters.extend([
                (format!("capacity/{node}/vcpus"), taken.vcpus),
                (format!("capacity/{node}/memory_mib"), taken.memory_mib + others_mib),
                (format!("capacity/{node}/disk_gib"), taken.disk_gib),
                (format!("capacity/{node}/servers"), there),
            ]);
            if let Some(group) = server.placing.group {
                counters.push((format!("group/{group}/node/{node}"), there));
            }
        }
        if let Some(group) = server.placing.group {
            counters.push((format!("group/{group}/placed"), server.places().count() as u64));
            let place = self.store.owner(&format!("group/{group}/place"));
            if place != server.node.map(|node| node.to_string()) {
                return Err(format!("the group's place is {place:?}"));
            }
        }
        if server.placing.elsewhere.as_ref().is_some_and(|place| place.by.is_some() || server.resize.is_none()) {
            return Err("it still moves".to_owned());
        }
        counters.extend([
            (format!("quota/{}/vcpus", self.project), amounts.vcpus),
            (format!("quota/{}/memory_mib", self.project), amounts.memory_mib),
            (format!("quota/{}/servers", self.project), 1),
            (format!("quota/{}/images", self.project), images as u64),
        ]);
        // Images that the server held, or holds now, as often as that.
        for image in self.first.kept.iter().chain(&server.kept) {
            let held = server.kept.iter().filter(|kept| *kept == image).count();
            counters.push((format!("image/{image}/wanted"), held as u64));
        }
        for (counter, wanted) in counters {
            let found = self.store.counter(&counter);
            if found != i64::try_from(wanted).unwrap() {
                return Err(format!("{counter} is {found} instead of {wanted}"));
            }
        }
        if let Some(task) = &server.task {
            return Err(format!("`{}` is still being done", task.name));
        }
        if !server.held.is_empty() || !server.snapshots.is_empty() {
            return Err(format!("something is left: {:?} {:?}", server.held, server.snapshots));
        }
        Ok(())
    }
}

/// One action.
struct Case {
    task: &'static str,
    definition: fn(&Held) -> Definition<Effects>,
    setup: fn(&mut Server),
    /// The image that the action fills, if it does.
    image: Option<ImageId>,
    /// The image as which the action may bring the disk to another node and back again.
    copy: Option<ImageId>,
    /// Memory that others take on the server's node.
    crowd_mib: u64,
    input: Box<dyn Fn(&World) -> Value + Send + Sync>,
    whole: fn(&Server, &Before) -> bool,
    /// The world that `input` is for; the trait asks for the input without one.
    latest: std::sync::Mutex<Value>,
}

impl Scenario for Case {
    type Journal = StoreJournal;
    type World = World;

    fn fresh(&self) -> BoxFuture<'_, (StoreJournal, World)> {
        Box::pin(async move {
            let mut world = World::new(self.setup).await;
            world.crowd(self.crowd_mib).await;
            *self.latest.lock().unwrap() = (self.input)(&world);
            (StoreJournal::new(world.store.clone()), world)
        })
    }

    fn definitions(&self, _: &StoreJournal, world: &World) -> Vec<Definition<Effects>> {
        vec![(self.definition)(&Held::of(&world.compute))]
    }

    fn input(&self) -> Value {
        self.latest.lock().unwrap().clone()
    }

    fn prepare<'a>(&'a self, _: &'a StoreJournal, world: &'a World, run: WorkflowId) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let record = world.store.get::<Server>(world.server).unwrap();
            let mut body = record.body.clone();
            body.task = Some(Task { name: self.task.to_owned(), workflow: run });
            let mut transaction = Transaction::new(author()).update(&record, body);
            if let Some(image) = self.image {
                let name = "copy".parse().unwrap();
                let draft = SnapshotDraft {
                    name: &name,
                    labels: Labels::default(),
                    properties: [].into(),
                    protected: false,
                    min_disk_gib: 1,
                    min_memory_mib: 0,
                };
                transaction = world.images.draft(transaction, world.project, image, draft);
            }
            world.store.commit(transaction).await.unwrap();
        })
    }

    fn settle<'a>(&'a self, _: &'a StoreJournal, world: &'a World) -> BoxFuture<'a, ()> {
        Box::pin(world.work())
    }

    fn check(&self, _: &StoreJournal, world: &World, end: End) -> Result<(), String> {
        world.exact()?;
        let server = world.server();
        let mut as_it_was = server.clone();
        if self.copy.is_some() && server.own_image == self.copy {
            // Made again from the copy of what it was.
            as_it_was.image = world.first.image.clone();
            as_it_was.incarnation = world.first.incarnation;
        }
        let mut now = Before::of(&as_it_was);
        now.ran = world.before.ran;
        let copied = self.image.or(self.copy.filter(|_| server.own_image != self.copy));
        match end {
            End::Whole if !(self.whole)(&server, &world.before) => Err(format!("it is not whole: {server:#?}")),
            End::Nothing if now != world.before => Err(format!("it is not as before: {now:#?}")),
            End::Nothing if server.shelved && server.own_image.is_none() => Err("it is shelved nowhere".to_owned()),
            End::Nothing if !server.places().eq(world.first.places()) => Err(format!("it is elsewhere: {server:#?}")),
            End::Nothing if copied.is_some_and(|image| world.store.get::<Image>(image).is_some()) => {
                Err("its image is left".to_owned())
            }
            _ => Ok(()),
        }
    }
}

fn case<C: serde::Serialize + Clone + Send + Sync + 'static>(
    task: &'static str,
    definition: fn(&Held) -> Definition<Effects>,
    change: C,
    whole: fn(&Server, &Before) -> bool,
) -> Case {
    let input = move |world: &World| {
        let input = ActInput { server: world.server, before: world.before.clone(), change: change.clone() };
        serde_json::to_value(input).unwrap()
    };
    Case {
        task,
        definition,
        setup: |_| {},
        image: None,
        copy: None,
        crowd_mib: 0,
        input: Box::new(input),
        whole,
        latest: Default::default(),
    }
}

async fn holds(case: Case) {
    let report = tokio::time::timeout(Duration::from_secs(600), faults::check(&case)).await.unwrap();
    assert!(report.struck > 5, "{report}");
    report.assert();
}

fn power_case(action: Action, setup: fn(&mut Server), whole: fn(&Server, &Before) -> bool) -> Case {
    let input = move |world: &World| {
        let before = world.server().wanted;
        serde_json::to_value(PowerInput { server: world.server, action, before }).unwrap()
    };
    let definition: fn(&Held) -> Definition<Effects> = match action {
        Action::Pause => |held| power::definitions(held).swap_remove(3),
        Action::Unpause => |held| power::definitions(held).swap_remove(4),
        Action::Suspend => |held| power::definitions(held).swap_remove(5),
        _ => |held| power::definitions(held).swap_remove(6),
    };
    Case {
        task: action.task(),
        definition,
        setup,
        image: None,
        copy: None,
        crowd_mib: 0,
        input: Box::new(input),
        whole,
        latest: Default::default(),
    }
}

pub(crate) fn stands(server: &mut Server, wanted: WantedPower, power: Power) {
    server.wanted = wanted;
    if let Some(observed) = &mut server.observed {
        observed.power = Some(power);
        observed.state =
            ServerState::Present(Observation { power, since: Timestamp::default(), ended: None, pid: None });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pausing_and_suspending() {
    holds(power_case(Action::Pause, |_| {}, |server, _| server.is_power(Power::Paused))).await;
    let paused = |server: &mut Server| stands(server, WantedPower::Paused, Power::Paused);
    holds(power_case(Action::Unpause, paused, |server, _| server.is_power(Power::On))).await;
    holds(power_case(Action::Suspend, |_| {}, |server, _| server.is_power(Power::Suspended))).await;
    let suspended = |server: &mut Server| stands(server, WantedPower::Suspended, Power::Suspended);
    holds(power_case(Action::Resume, suspended, |server, _| server.is_power(Power::On))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rebuilding() {
    let change = Rebuild {
        image: source(ImageId::new()),
        claimed_disk_gib: 3,
        user_data: None,
        discard: None,
        firmware: Firmware::Uefi,
        boot: BootSource::Kernel { kernel: source(ImageId::from_bits(9)), initrd: None, command_line: String::new() },
        drive_format: DriveFormat::OpenStack,
        needs: Needs::default(),
    };
    let mut case = case("rebuild", rebuild::definition, change, |server, before| {
        let new = server.firmware == Firmware::Uefi && server.drive_format == DriveFormat::OpenStack;
        new && server.incarnation == before.incarnation() + 1
            && server.claimed_disk_gib == 3
            && server.kept == [ImageId::from_bits(9)]
            && server.is_power(Power::On)
    });
    // What it booted with before is let go.
    case.setup = |server| server.kept = vec![ImageId::from_bits(8)];
    holds(case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copying_the_disk() {
    let image = ImageId::new();
    let mut case = case("snapshot", snapshot::definition, Snapshot { image, freeze: true }, |server, before| {
        server.is_power(Power::On) && server.size() == before.size()
    });
    case.image = Some(image);
    holds(case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rescuing() {
    let change = Rescue { image: source(ImageId::new()) };
    holds(case("rescue", rescue::definition, change, |server, _| {
        server.rescue.is_some() && server.is_power(Power::On)
    }))
    .await;
    let mut case =
        case("unrescue", rescue::unrescue, (), |server, _| server.rescue.is_none() && server.is_power(Power::On));
    case.setup = |server| server.rescue = Some(source(ImageId::new()));
    holds(case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shelving() {
    let image = ImageId::new();
    let mut case = case("shelve", shelve::definition, Shelve { image }, |server, _| {
        server.shelved && server.node.is_none() && server.own_image == Some(server.image.id)
    });
    case.image = Some(image);
    holds(case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unshelving() {
    let mut case = case("unshelve", shelve::unshelve, (), |server, _| {
        !server.shelved && server.node.is_some() && server.is_power(Power::On)
    });
    case.setup = |server| {
        server.shelved = true;
        server.own_image = Some(server.image.id);
        server.node = None;
        server.observed = None;
        server.wanted = WantedPower::Absent;
    };
    holds(case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trash_and_back() {
    let change = Trash { until: Timestamp::now() };
    holds(case("trash", trash::definition, change, |server, _| server.trashed.is_some() && server.off())).await;
    let mut case =
        case("restore", trash::restore, (), |server, _| server.trashed.is_none() && server.is_power(Power::On));
    case.setup = |server| {
        stands(server, WantedPower::Off { grace_ms: 0 }, Power::Off);
        server.trashed = Some(Trashed { until: Timestamp::now(), ran: true });
    };
    holds(case).await;
}
