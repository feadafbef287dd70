//! Controllers on one database, simulated machines, and a load balancer in front.

use std::{
    net::TcpListener as StdListener,
    sync::{Arc, Mutex},
    time::Duration,
};

use nephos_agent::{Join, RemoteNode, simulated_config};
use nephos_cli::client::Client;
use nephos_driver::simulated::SimulatedHost;
use nephos_ops::node::CreateJoinToken;
use nephos_testkit::{CloudProcess, PASSWORD, Settings, until};
use nephos_testkit_postgres::Server;
use nephos_types::Bytes;
use rand::seq::SliceRandom;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::NEPHOS;

/// A port that was free a moment ago. Controllers keep theirs when they are started again, for agents know them.
pub(super) fn free_port() -> u16 {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// All of it.
pub(super) struct Plane {
    pub(super) controllers: Vec<CloudProcess>,
    pub(super) machines: Vec<Machine>,
    pub(super) server: Arc<Server>,
    pub(super) database: String,
    balancer: Balancer,
}

impl Plane {
    /// Starts so many controllers and machines.
    pub(super) async fn start(controllers: usize, machines: usize) -> Self {
        let server = Arc::new(Server::start());
        let database = server.database();
        let mut all: Vec<CloudProcess> = vec![];
        for _ in 0..controllers {
            let mut settings =
                Settings { database: Some(database.clone()), ports: (free_port(), free_port()), ..Settings::default() };
            if let Some(first) = all.first() {
                let data = first.data().display().to_string();
                settings.flags = vec![
                    "--secret-file".to_owned(),
                    format!("{data}/secret.key"),
                    "--images".to_owned(),
                    format!("{data}/images"),
                ];
            }
            all.push(CloudProcess::start(NEPHOS, settings).await);
        }
        let balancer = Balancer::start(all.iter().map(|one| one.settings_now().ports.0).collect()).await;
        let mut plane = Self { controllers: all, machines: vec![], server, database, balancer };
        for number in 0..machines {
            let command = plane.admin(0).await.call(CreateJoinToken::default()).await.unwrap().command;
            let words: Vec<&str> = command.split(' ').collect();
            let after = |flag: &str| words[words.iter().position(|word| *word == flag).unwrap() + 1];
            let join = Join::parse(after("--join"), Some(after("--token"))).unwrap();
            let mut machine = Machine {
                host: SimulatedHost::new(number as u64),
                data: tempfile::tempdir().unwrap(),
                join,
                agent: None,
            };
            machine.start_agent().await;
            plane.machines.push(machine);
        }
        plane
    }

    /// A client for the project `demo` at one controller.
    pub(super) async fn demo(&self, controller: usize) -> Client {
        self.controllers[controller].client("admin", PASSWORD, Some("demo")).await.unwrap()
    }

    /// The same for the project `admin`.
    pub(super) async fn admin(&self, controller: usize) -> Client {
        self.controllers[controller].admin().await
    }

    /// A client through the load balancer.
    pub(super) async fn balanced(&self) -> Client {
        let token = self.controllers[0].demo_token().await;
        Client::new(&self.balancer.url, Some(token)).unwrap()
    }
}

/// A simulated machine, whose guests outlive its agent.
pub(super) struct Machine {
    pub(super) host: SimulatedHost,
    data: tempfile::TempDir,
    join: Join,
    agent: Option<JoinHandle<()>>,
}

impl Machine {
    /// Starts its agent (again).
    pub(super) async fn start_agent(&mut self) {
        let data = self.data.path().to_owned();
        let known = data.join("identity.json").exists();
        let join = (!known).then(|| self.join.clone());
        let node = until("the machine to join", || async {
            RemoteNode::open(&data, join.as_ref(), None).await.map_err(|error| eprintln!("{error:?}")).ok()
        })
        .await;
        let (memory, disk) = (Bytes::mib(256 << 10), Bytes::mib(10 << 20));
        let mut config = simulated_config("simulated".to_owned(), 64, memory, disk);
        config.retry.most = Duration::from_secs(1);
        let driver = Arc::new(self.host.driver());
        self.agent = Some(tokio::spawn(async move {
            let ended = node.run(config, driver, CancellationToken::new()).await;
            panic!("the agent ended: {ended:?}");
        }));
    }

    /// Ends its agent in the middle of whatever it does.
    pub(super) fn kill_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            assert!(!agent.is_finished(), "the agent has given up");
            agent.abort();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.abort();
        }
    }
}

/// Passes connections on to any controller that takes them.
struct Balancer {
    url: String,
    task: JoinHandle<()>,
}

impl Balancer {
    async fn start(ports: Vec<u16>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let open = Arc::new(Mutex::new(tokio::task::JoinSet::new()));
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut near, _)) = listener.accept().await else { return };
                let mut ports = ports.clone();
                ports.shuffle(&mut rand::rng());
                open.lock().unwrap().spawn(async move {
                    for port in ports {
                        if let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await {
                            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                            return;
                        }
                    }
                });
            }
        });
        Self { url, task }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
