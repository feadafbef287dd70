//! The operations on nodes, and what nodes may ask.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use nephos_auth::{Authority, Policy};
use nephos_cloud::{
    CloudCore, Handlers, Identify, identity,
    node::{self, ImageBytes, Nodes, Settings, Workload},
};
use nephos_driver::{Accelerator, Capabilities, DiskFormat};
use nephos_node_api::{
    Condition, Content, ControlPlane, DesiredServer, Hardware, Hello, Inventory, PROTOCOL_VERSION, PortRange, Report,
    ServerReport, ServerState, SnapshotHeader,
};
use nephos_ops::{
    Caller, Cloud, Context, Credentials, Identity, Scope,
    node::{CreateJoinToken, DeleteNode, ListNodes, NodeState, ShowNode, UpdateNode},
};
use nephos_store::{Author, Bound, Kinds, Sqlite, Store, Transaction};
use nephos_types::{Bytes, DomainId, Error, ImageId, Name, NodeId, Result, ServerId, Timestamp, UserId};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::identity::world::{code, input};

struct Nobody;
impl Identify for Nobody {
    fn identify<'a>(&'a self, _: &'a Credentials) -> BoxFuture<'a, Result<Arc<Identity>>> {
        Box::pin(async { Err(Error::bug("nobody logs in here")) })
    }
}

#[derive(Default)]
struct Heard(AtomicU32);
impl Workload for Heard {
    fn desired(&self, _: NodeId) -> Vec<DesiredServer> {
        vec![]
    }
    fn report<'a>(&'a self, _: NodeId, reports: &'a [ServerReport]) -> BoxFuture<'a, Result<()>> {
        self.0.fetch_add(u32::try_from(reports.len()).unwrap(), Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }
    fn asked_for_zone(&self, _: NodeId, _: &Name) -> usize {
        0
    }
}
impl ImageBytes for Heard {
    fn open(&self, image: ImageId) -> BoxFuture<'_, Result<Content>> {
        Box::pin(async move { Err(Error::not_found("image", image)) })
    }
    fn receive(&self, _: NodeId, image: ImageId, _: SnapshotHeader, _: Content) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { Err(Error::not_found("image", image)) })
    }
}

struct World {
    _folder: TempDir,
    store: Store,
    nodes: Arc<Nodes>,
    heard: Arc<Heard>,
    cloud: Cloud,
}

impl World {
    async fn new(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backend = Sqlite::open(folder.path().join("nephos.db")).await.unwrap();
        let store = Store::open(backend, node::kinds(identity::kinds(Kinds::new()))).await.unwrap();
        let nodes = Nodes::new(store.clone(), Authority::ephemeral().unwrap(), settings);
        let heard = Arc::new(Heard::default());
        let workload: Arc<dyn Workload> = heard.clone();
        nodes.attach(&workload, heard.clone());
        let mut handlers = Handlers::new();
        nodes.register(&mut handlers);
        let core = CloudCore::new(store.clone(), Arc::new(Nobody), Policy::default(), handlers);
        Self { _folder: folder, store, nodes, heard, cloud: Cloud::new(Arc::new(core)) }
    }

    fn with_role(&self, role: &str) -> Context {
        let identity = Identity {
            user: UserId::new(),
            user_name: "tester".parse().unwrap(),
            user_domain: DomainId::new(),
            scope: Scope::System,
            roles: [role.to_owned()].into(),
            issued_at: Timestamp::now(),
            expires_at: Timestamp::now().plus(Duration::from_secs(600)),
            login: nephos_ops::Login::default(),
        };
        let identity = Some(Arc::new(identity));
        self.cloud.context(Caller { identity, address: "test".to_owned(), front_end: "test" })
    }

    async fn greeted(&self, name: &str) -> NodeId {
        let node = self.nodes.local(name, name).await.unwrap();
        self.nodes.hello(node, "here".to_owned(), hello()).await.unwrap();
        node
    }
}

fn hello() -> Hello {
    let inventory = Inventory {
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
            features: [].into(),
        }],
        missing: vec![],
        hardware: Hardware::default(),
        network: None,
    };
    Hello { protocol: PROTOCOL_VERSION, agent_version: "1".to_owned(), inventory, program: None }
}

/// When this run of the tests began.
static START: std::sync::LazyLock<i64> = std::sync::LazyLock::new(|| Timestamp::now().as_micros());

fn report(at: i64, servers: usize) -> Report {
    let gone = || ServerReport {
        id: ServerId::new(),
        generation: 1,
        state: ServerState::Gone,
        error: None,
        restarts: 0,
        snapshots: vec![],
        ports: vec![],
    };
    Report {
        // Counted from now, as by a clock that is right.
        at: Timestamp::from_micros(*START + at),
        full: false,
        servers: std::iter::repeat_with(gone).take(servers).collect(),
        health: vec![],
    }
}

#[tokio::test]
async fn nodes_are_listed_shown_renamed_labelled_and_disabled() {
    let world = World::new(Settings::default()).await;
    let admin = world.with_role("admin");
    let (a, b) = (world.greeted("a").await, world.nodes.local("b", "b").await.unwrap());
    let listed = admin.call(ListNodes::default()).await.unwrap();
    assert_eq!(
        listed.items.iter().map(|node| (node.id, node.state)).collect::<Vec<_>>(),
        [(a, NodeState::Up), (b, NodeState::Unknown)]
    );
    let up = admin.call(input::<ListNodes>(json!({ "state": "up" }))).await.unwrap();
    assert_eq!(up.items.len(), 1);
    let shown = admin.call(input::<ShowNode>(json!({ "node": "a" }))).await.unwrap();
    assert_eq!((shown.vcpus, shown.memory_mib, shown.disk_gib, shown.servers), (16, 8192, 100, 0));

    let version = world.nodes.version();
    let change = json!({ "node": "a", "name": "alpha", "labels": { "rack": "1" }, "enabled": false, "reason": "fans" });
    let changed = admin.call(input::<UpdateNode>(change)).await.unwrap();
    assert_eq!(
        (changed.name.as_str(), changed.enabled, changed.disabled_reason.as_deref()),
        ("alpha", false, Some("fans"))
    );
    assert_ne!(world.nodes.version(), version);
    assert_eq!(world.nodes.summary(a).unwrap().disabled.as_deref(), Some("fans"));
    let labelled = admin.call(input::<ListNodes>(json!({ "labels": { "rack": "1" } }))).await.unwrap();
    assert_eq!(labelled.items.len(), 1);
    let enabled = admin.call(input::<UpdateNode>(json!({ "node": "alpha", "enabled": true }))).await.unwrap();
    assert!(enabled.enabled && enabled.disabled_reason.is_none());
    // The old name is free, the new one is not.
    admin.call(input::<UpdateNode>(json!({ "node": "b", "name": "a" }))).await.unwrap();
    assert_eq!(code(admin.call(input::<UpdateNode>(json!({ "node": "a", "name": "alpha" }))).await), "name_taken");
    assert_eq!(
        code(admin.call(input::<UpdateNode>(json!({ "node": "a", "reason": "why" }))).await),
        "reason_without_disabling"
    );
    assert_eq!(code(admin.call(input::<ShowNode>(json!({ "node": "none" }))).await), "node_not_found");
}

#[tokio::test]
async fn only_administrators_change_nodes() {
    let world = World::new(Settings { address: Some("10.0.0.1:6785".to_owned()), ..Settings::default() }).await;
    world.greeted("a").await;
    let reader = world.with_role("reader");
    reader.call(ListNodes::default()).await.unwrap();
    reader.call(input::<ShowNode>(json!({ "node": "a" }))).await.unwrap();
    use nephos_types::ErrorKind::Forbidden;
    let kind = |error: Option<Error>| error.map(|error| error.kind);
    assert_eq!(kind(reader.call(input::<UpdateNode>(json!({ "node": "a" }))).await.err()), Some(Forbidden));
    assert_eq!(kind(reader.call(input::<DeleteNode>(json!({ "node": "a" }))).await.err()), Some(Forbidden));
    assert_eq!(kind(reader.call(CreateJoinToken::default()).await.err()), Some(Forbidden));
    let member = world.with_role("member");
    assert_eq!(kind(member.call(ListNodes::default()).await.err()), Some(Forbidden));
}

#[tokio::test]
async fn a_node_with_servers_is_not_removed_unless_it_is_lost() {
    let settings = Settings { silent_after: Duration::from_millis(100), ..Settings::default() };
    let world = World::new(settings).await;
    let admin = world.with_role("admin");
    let node = world.greeted("a").await;
    let counter = format!("capacity/{node}/servers");
    let place = Transaction::new(Author::new("test")).add(counter.clone(), 2, Bound::Any);
    world.store.commit(place).await.unwrap();
    let remove = |force: bool| admin.call(input::<DeleteNode>(json!({ "node": "a", "force": force })));
    assert_eq!(code(remove(false).await), "node_in_use");
    assert_eq!(code(remove(true).await), "node_up");

    let stop = CancellationToken::new();
    let watching = tokio::spawn(world.nodes.clone().watch_over(stop.clone()));
    let down = async {
        while world.nodes.summary(node).unwrap().up {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), down).await.unwrap();
    stop.cancel();
    watching.await.unwrap();
    assert_eq!(code(remove(false).await), "node_in_use");
    // Its poll ends with a refusal instead of waiting on.
    let nodes = world.nodes.clone();
    let revision = nodes.desired(node, None, Duration::ZERO).await.unwrap().revision;
    let poll = tokio::spawn(async move { nodes.desired(node, Some(revision), Duration::from_secs(60)).await });
    remove(true).await.unwrap();
    assert_eq!(code(poll.await.unwrap()), "node_removed");
    assert_eq!(code(world.nodes.hello(node, String::new(), hello()).await), "node_removed");
    // Another machine may take the name.
    assert_ne!(world.nodes.local("a", "a").await.unwrap(), node);
}

#[tokio::test]
async fn late_and_repeated_reports_are_passed_over_and_heartbeats_write_nothing() {
    let world = World::new(Settings::default()).await;
    let node = world.nodes.local("a", "a").await.unwrap();
    assert_eq!(code(world.nodes.report(node, "here".to_owned(), report(1, 1)).await), "hello_first");
    world.nodes.hello(node, "here".to_owned(), hello()).await.unwrap();
    let revision = world.store.revision();
    for (at, servers) in [(10, 2), (10, 2), (5, 3), (11, 0), (12, 1)] {
        world.nodes.report(node, "here".to_owned(), report(at, servers)).await.unwrap();
    }
    assert_eq!(world.heard.0.load(Ordering::SeqCst), 3);
    // Nor does a hello that says nothing new.
    world.nodes.hello(node, "here".to_owned(), hello()).await.unwrap();
    assert_eq!(world.store.revision(), revision);
    let old = Hello { protocol: 0, ..hello() };
    assert_eq!(code(world.nodes.hello(node, "here".to_owned(), old).await), "agent_too_old");
}

#[tokio::test]
async fn a_poll_is_answered_at_once_or_when_its_own_node_changes() {
    let world = World::new(Settings::default()).await;
    let (a, b) = (world.greeted("a").await, world.greeted("b").await);
    let first = world.nodes.desired(a, None, Duration::from_secs(60)).await.unwrap().revision;
    // A revision from another run of the control plane, greater or smaller, differs.
    for other in [first + 1_000_000, first - 1, 0] {
        assert_eq!(world.nodes.desired(a, Some(other), Duration::from_secs(60)).await.unwrap().revision, first);
    }
    let nodes = world.nodes.clone();
    let poll = tokio::spawn(async move { nodes.desired(a, Some(first), Duration::from_secs(60)).await });
    world.nodes.wake(b);
    let unchanged = world.nodes.desired(a, Some(first), Duration::from_millis(50)).await.unwrap();
    assert_eq!(unchanged.revision, first);
    assert!(!poll.is_finished());
    world.nodes.wake(a);
    assert_ne!(poll.await.unwrap().unwrap().revision, first);
    // Images are given to nodes that have servers made from them only.
    assert_eq!(code(world.nodes.image(a, ImageId::new()).await.map(|_| ())), "image_not_wanted");
}

#[tokio::test]
async fn join_tokens_are_printed_as_a_command_and_shown_once() {
    let world = World::new(Settings { address: Some("10.0.0.1:6785".to_owned()), ..Settings::default() }).await;
    let mut admin = world.with_role("admin");
    admin.idempotency_key = Some("once".to_owned());
    let token = admin.call(CreateJoinToken::default()).await.unwrap();
    assert_eq!(token.command, format!("nephos agent --join https://10.0.0.1:6785 --token {}", token.token.reveal()));
    assert_eq!(code(admin.call(CreateJoinToken::default()).await), "shown_once");
    admin.idempotency_key = None;
    let elsewhere = admin.call(input::<CreateJoinToken>(json!({ "address": "cloud.example:7000" }))).await.unwrap();
    assert!(elsewhere.command.contains("https://cloud.example:7000 "));
    for bad in ["cloud.example", "a:0", "a:99999", ":1", "a b:1", "$(id):1", "a/b:1"] {
        let call = admin.call(input::<CreateJoinToken>(json!({ "address": bad }))).await;
        assert_eq!(code(call), "invalid_address", "{bad}");
    }
    let closed = World::new(Settings::default()).await;
    assert_eq!(code(closed.with_role("admin").call(CreateJoinToken::default()).await), "no_node_listener");
}

#[tokio::test]
async fn health_addresses_and_hardware_are_shown_and_written_when_they_are_news() {
    let world = World::new(Settings::default()).await;
    let admin = world.with_role("admin");
    let node = world.nodes.local("a", "a").await.unwrap();
    let mut greeting = hello();
    greeting.inventory.hardware.cpu_flags = "fpu avx2".to_owned();
    world.nodes.hello(node, "10.0.0.1".to_owned(), greeting).await.unwrap();
    let shown = || async { admin.call(input::<ShowNode>(json!({ "node": "a" }))).await.unwrap() };
    assert_eq!(shown().await.hardware.unwrap().cpu_flags, ["fpu", "avx2"]);
    assert!(admin.call(ListNodes::default()).await.unwrap().items[0].hardware.is_none());

    let say = |at, address: &str, codes: &[&str]| {
        let condition = |code: &&str| Condition { code: (*code).to_owned(), message: "m".repeat(5000) };
        let report = Report { health: codes.iter().map(condition).collect(), ..report(at, 0) };
        let (nodes, address) = (world.nodes.clone(), address.to_owned());
        async move { nodes.report(node, address, report).await.unwrap() }
    };
    say(1, "10.0.0.1", &["disk_nearly_full"]).await;
    let first = shown().await;
    assert_eq!((first.health.len(), first.health[0].code.as_str()), (1, "disk_nearly_full"));
    assert!(first.health[0].message.len() <= 1000, "what a node says is bounded");
    let revision = world.store.revision();
    say(2, "10.0.0.1", &["disk_nearly_full"]).await;
    assert_eq!(world.store.revision(), revision, "nothing new is nothing to write");
    say(3, "10.0.0.2", &["memory_pressure", "disk_nearly_full"]).await;
    let second = shown().await;
    assert_eq!(second.address.as_deref(), Some("10.0.0.2"));
    assert_eq!((second.health.len(), second.health[1].since), (2, first.health[0].since));
    say(4, "10.0.0.2", &vec!["x"; 100]).await;
    assert_eq!(shown().await.health.len(), 16);
    say(5, "10.0.0.2", &[]).await;
    assert!(shown().await.health.is_empty());
    // A clock that is an hour ahead.
    say(3_600_000_000, "10.0.0.2", &[]).await;
    assert_eq!(shown().await.health[0].code, "clock_differs");
}
