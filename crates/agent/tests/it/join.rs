//! Joining the real control plane over TLS on the loopback: tokens, certificates, liveness, removal.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use nephos_agent::{Fleet, Join, RemoteNode, simulated_config};
use nephos_auth::Authority;
use nephos_cloud::node::{self, ImageBytes, Nodes, Settings, Workload};
use nephos_driver::{Power, simulated::SimulatedHost};
use nephos_node_api::{
    Client, Content, ControlPlane, DesiredServer, ServerReport, SnapshotHeader, StreamPurpose, WantedPower, server,
};
use nephos_store::{Author, Kinds, Sqlite, Store};
use nephos_types::{Bytes, Error, ErrorKind, ImageId, Name, NodeId, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_util::sync::CancellationToken;

use crate::{fake, quick};

/// Servers that the test wants, and what is said of them.
#[derive(Default)]
pub(crate) struct Servers {
    pub(crate) wanted: Mutex<Vec<(NodeId, DesiredServer)>>,
    pub(crate) heard: Mutex<Vec<(NodeId, ServerReport)>>,
}

impl Workload for Servers {
    fn desired(&self, node: NodeId) -> Vec<DesiredServer> {
        let wanted = self.wanted.lock().unwrap();
        wanted.iter().filter(|(on, _)| *on == node).map(|(_, server)| server.clone()).collect()
    }
    fn report<'a>(&'a self, node: NodeId, reports: &'a [ServerReport]) -> BoxFuture<'a, Result<()>> {
        self.heard.lock().unwrap().extend(reports.iter().map(|report| (node, report.clone())));
        Box::pin(async { Ok(()) })
    }

    fn asked_for_zone(&self, _: NodeId, _: &Name) -> usize {
        0
    }
}

struct NoImages;
impl ImageBytes for NoImages {
    fn open(&self, image: ImageId) -> BoxFuture<'_, Result<Content>> {
        Box::pin(async move { Err(Error::not_found("image", image)) })
    }

    fn receive(&self, _: NodeId, image: ImageId, _: SnapshotHeader, _: Content) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { Err(Error::not_found("image", image)) })
    }
}

/// A control plane with a listener for nodes.
pub(crate) struct Cloud {
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) servers: Arc<Servers>,
    pub(crate) address: SocketAddr,
    store: Store,
    shutdown: CancellationToken,
}

impl Cloud {
    pub(crate) async fn start(data: &Path, listen: &str, settings: Settings) -> Self {
        let backend = Sqlite::open(data.join("cloud.db")).await.unwrap();
        let store = Store::open(backend, node::kinds(Kinds::new())).await.unwrap();
        let authority = Authority::open(&data.join("authority.pem")).unwrap();
        let nodes = Nodes::new(store.clone(), authority, settings);
        let servers = Arc::new(Servers::default());
        let workload: Arc<dyn Workload> = servers.clone();
        nodes.attach(&workload, Arc::new(NoImages));
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        tokio::spawn(server::listen(listener, nodes.tls().unwrap(), nodes.clone(), shutdown.clone()));
        tokio::spawn(nodes.clone().watch_over(shutdown.clone()));
        Self { nodes, servers, address, store, shutdown }
    }

    pub(crate) async fn token(&self, valid: Duration) -> String {
        self.nodes.make_join_token(Author::new("test"), valid).await.unwrap().reveal().to_owned()
    }

    fn join(&self, token: &str) -> Join {
        Join::parse(&format!("https://{}", self.address), Some(token)).unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.store.close().await.unwrap();
    }

    /// Where a node calls from.
    pub(crate) fn address_of(&self, node: NodeId) -> Option<String> {
        self.store.get::<node::Node>(node)?.body.address.clone()
    }

    /// Waits until a node's state is this.
    pub(crate) async fn until_up(&self, node: NodeId, up: bool) {
        until(|| self.nodes.summary(node).is_some_and(|summary| summary.up == up)).await;
    }
}

pub(crate) async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("the condition never held");
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_machine_joins_runs_servers_and_is_missed_when_it_dies() {
    let (data, machine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = Settings {
        silent_after: Duration::from_millis(1500),
        report_every: Duration::from_millis(200),
        ..Settings::default()
    };
    let cloud = Cloud::start(data.path(), "127.0.0.1:0", settings).await;
    let join = cloud.join(&cloud.token(HOUR).await);
    let remote = RemoteNode::open(machine.path(), Some(&join), None).await.unwrap();
    let node = remote.node();
    // The identity is kept: no token is needed again, and nobody else can read it.
    assert_eq!(RemoteNode::open(machine.path(), None, None).await.unwrap().node(), node);
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(machine.path().join("identity.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let host = SimulatedHost::new(1);
    let driver = Arc::new(host.driver());
    let agent = tokio::spawn(async move { remote.run(quick(), driver, CancellationToken::new()).await });
    cloud.until_up(node, true).await;
    let web = fake::server(WantedPower::On { restart: true });
    cloud.servers.wanted.lock().unwrap().push((node, web.clone()));
    cloud.nodes.wake(node);
    let ran = |report: &ServerReport| report.generation == 1 && fake::power_of(report) == Some(Power::On);
    until(|| cloud.servers.heard.lock().unwrap().iter().any(|(on, report)| *on == node && ran(report))).await;

    let purpose = StreamPurpose::ConsoleLog { server: web.id, max: 5 };
    let mut log = vec![];
    cloud.nodes.open_stream(node, purpose).await.unwrap().read_to_end(&mut log).await.unwrap();
    assert_eq!(log.len(), 5);

    agent.abort();
    cloud.until_up(node, false).await;
    let refused = cloud.nodes.open_stream(node, StreamPurpose::Console { server: web.id }).await.err().unwrap();
    assert_eq!(refused.code, "node_down");

    // It comes back without anybody's help.
    let remote = RemoteNode::open(machine.path(), None, None).await.unwrap();
    let driver = Arc::new(host.driver());
    let agent = tokio::spawn(async move { remote.run(quick(), driver, CancellationToken::new()).await });
    cloud.until_up(node, true).await;
    agent.abort();
    cloud.stop().await;
}

#[tokio::test]
async fn tokens_are_good_once_in_time_and_at_the_right_cloud_only() {
    let data = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(data.path(), "127.0.0.1:0", Settings::default()).await;
    let refusal = async |token: &str| {
        let machine = tempfile::tempdir().unwrap();
        let error = RemoteNode::open(machine.path(), Some(&cloud.join(token)), None).await.err().unwrap();
        assert!(!machine.path().join("identity.json").exists());
        error
    };
    let good = cloud.token(HOUR).await;
    let (secret, fingerprint) = good.split_once('.').unwrap();

    // Another authority's fingerprint: the handshake fails, and the token has not been sent.
    let elsewhere = hex::encode(Authority::ephemeral().unwrap().fingerprint());
    assert_eq!(refusal(&format!("{secret}.{elsewhere}")).await.kind, ErrorKind::Unavailable);
    assert_eq!(refusal(&format!("{}.{fingerprint}", "ab".repeat(32))).await.code, "join_token_refused");
    assert_eq!(refusal(&cloud.token(Duration::ZERO).await).await.code, "join_token_refused");

    let machine = tempfile::tempdir().unwrap();
    RemoteNode::open(machine.path(), Some(&cloud.join(&good)), None).await.unwrap();
    assert_eq!(refusal(&good).await.code, "join_token_refused");

    // Used by many at once, it is good for one; machines of one name get different ones.
    let token = cloud.token(HOUR).await;
    let machines: Vec<_> = (0..8).map(|_| tempfile::tempdir().unwrap()).collect();
    let join = cloud.join(&token);
    let joined =
        futures_util::future::join_all(machines.iter().map(|m| RemoteNode::open(m.path(), Some(&join), None))).await;
    assert_eq!(joined.iter().filter(|joined| joined.is_ok()).count(), 1);
    let names: Vec<_> = cloud.nodes.summaries().into_iter().map(|summary| summary.name).collect();
    assert_eq!(names.len(), 2);
    assert_ne!(names[0], names[1]);
    cloud.stop().await;
}

#[tokio::test]
async fn certificates_are_renewed_even_long_after_they_expired() {
    let (data, machine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expired = Settings { certificate_valid: Duration::ZERO, ..Settings::default() };
    let cloud = Cloud::start(data.path(), "127.0.0.1:0", expired).await;
    let remote = RemoteNode::open(machine.path(), Some(&cloud.join(&cloud.token(HOUR).await)), None).await.unwrap();
    until(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_millis() > 50).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let refused = Client::new(remote.connector()).desired(None, Duration::ZERO).await.unwrap_err();
    assert_eq!(refused.code, "certificate_expired");
    let listen = cloud.address.to_string();
    cloud.stop().await;

    // The control plane comes back with the same data, and certificates that last.
    let cloud = Cloud::start(data.path(), &listen, Settings::default()).await;
    let remote = RemoteNode::open(machine.path(), None, None).await.unwrap();
    assert!(remote.renew_if_due(SystemTime::now()).await.unwrap());
    Client::new(remote.connector()).desired(None, Duration::ZERO).await.unwrap();
    // Not again until a third of the time is left.
    assert!(!remote.renew_if_due(SystemTime::now() + 15 * 24 * HOUR).await.unwrap());
    assert!(remote.renew_if_due(SystemTime::now() + 25 * 24 * HOUR).await.unwrap());
    cloud.stop().await;
}

#[tokio::test]
async fn without_a_certificate_of_the_cloud_nothing_is_told() {
    let data = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(data.path(), "127.0.0.1:0", Settings::default()).await;
    let fingerprint = Authority::open(&data.path().join("authority.pem")).unwrap().fingerprint();
    let stranger = nephos_node_api::tls::joining_config(fingerprint).unwrap();
    let tls = nephos_node_api::client::Tls::new(cloud.address.to_string(), stranger);
    let refused = Client::new(Arc::new(tls)).desired(None, Duration::ZERO).await.unwrap_err();
    assert_eq!(refused.code, "no_certificate");
    // A node that the cloud does not know (any more), with a certificate that it signed.
    let refused = cloud.nodes.desired(NodeId::new(), None, Duration::ZERO).await.unwrap_err();
    assert_eq!(refused.code, "node_removed");
    cloud.stop().await;
}

#[tokio::test]
async fn a_fleet_of_simulated_nodes_is_cheap_and_a_change_wakes_one() {
    const NODES: usize = 50;
    let data = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(data.path(), "127.0.0.1:0", Settings::default()).await;
    let mut nodes = vec![];
    for index in 0..NODES {
        nodes.push(cloud.nodes.local(&format!("sim-{index}"), &format!("sim-{index}")).await.unwrap());
    }
    // The same names are the same nodes.
    assert_eq!(cloud.nodes.local("sim-7", "sim-7").await.unwrap(), nodes[7]);
    let hosts: Vec<_> = (0..NODES).map(|seed| SimulatedHost::new(seed as u64)).collect();
    let fleet = Fleet::start(
        cloud.nodes.clone(),
        nodes.clone(),
        |index| Arc::new(hosts[index].driver()),
        |index| simulated_config(format!("sim-{index}"), 8, Bytes::mib(16 << 10), Bytes::mib(100 << 10)),
    );
    until(|| cloud.nodes.summaries().iter().all(|summary| summary.up)).await;
    let web = fake::server(WantedPower::On { restart: true });
    cloud.servers.wanted.lock().unwrap().push((nodes[3], web.clone()));
    cloud.nodes.wake(nodes[3]);
    until(|| hosts[3].spec(web.id).is_some()).await;
    assert!(hosts.iter().enumerate().all(|(index, host)| (index == 3) == host.spec(web.id).is_some()));
    fleet.stop().await;
    cloud.stop().await;
}

/// An HTTP proxy that knows one name, and how many went through it.
async fn proxy(target: SocketAddr) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let through = Arc::new(AtomicU32::new(0));
    let count = through.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut head = vec![];
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                // `me:secret`
                let known = head.starts_with("connect cloud.invalid:6785 ")
                    && head.contains("proxy-authorization: basic bwu6c2vjcmv0\r\n");
                if !known {
                    return client.write_all(b"HTTP/1.1 407 Who are you\r\n\r\n").await.unwrap();
                }
                count.fetch_add(1, Ordering::SeqCst);
                client.write_all(b"HTTP/1.1 200 Go on\r\n\r\n").await.unwrap();
                let mut server = tokio::net::TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, through)
}

#[tokio::test]
async fn a_machine_joins_and_lives_through_a_proxy_and_follows_a_control_plane_that_moves() {
    let (data, machine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cloud = Cloud::start(data.path(), "127.0.0.1:0", Settings::default()).await;
    let (proxy, through) = proxy(cloud.address).await;
    // Only the proxy knows this name, so nothing else can lead there.
    let token = cloud.token(HOUR).await;
    let join = Join::parse("https://cloud.invalid:6785", Some(&token)).unwrap();
    let refused = RemoteNode::open(machine.path(), Some(&join), Some(&format!("http://{proxy}"))).await.err().unwrap();
    assert_eq!(refused.code, "control_plane_unreachable");
    let url = format!("http://me:secret@{proxy}");
    let node = RemoteNode::open(machine.path(), Some(&join), Some(&url)).await.unwrap().node();
    // It is remembered.
    let remote = RemoteNode::open(machine.path(), None, None).await.unwrap();
    Client::new(remote.connector()).desired(None, Duration::ZERO).await.unwrap();
    let went = through.load(Ordering::SeqCst);
    assert!(went >= 2, "{went}");
    let refused = RemoteNode::open(machine.path(), None, Some("ftp://x")).await.err().unwrap();
    assert_eq!(refused.code, "invalid_proxy");

    // The control plane is at another address, without a proxy on the way: the machine is told, and stays who it is.
    cloud.stop().await;
    let cloud = Cloud::start(data.path(), "127.0.0.1:0", Settings::default()).await;
    let moved = Join::parse(&format!("https://{}", cloud.address), None).unwrap();
    let remote = RemoteNode::open(machine.path(), Some(&moved), Some("none")).await.unwrap();
    assert_eq!(remote.node(), node);
    let remote = RemoteNode::open(machine.path(), None, None).await.unwrap();
    remote.check(machine.path()).await.unwrap();
    assert_eq!(through.load(Ordering::SeqCst), went);

    // A machine that is no node needs a token, and a token of another cloud moves nobody.
    let stranger = tempfile::tempdir().unwrap();
    assert_eq!(RemoteNode::open(stranger.path(), Some(&moved), None).await.err().unwrap().code, "join_token_missing");
    let other = Join::parse("https://127.0.0.1:1", Some(&format!("x.{}", "ab".repeat(32)))).unwrap();
    let remote = RemoteNode::open(machine.path(), Some(&other), None).await.unwrap();
    remote.check(machine.path()).await.unwrap();
    cloud.stop().await;
}
