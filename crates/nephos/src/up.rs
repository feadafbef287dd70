//! `nephos up`: control plane and agent in one process, in the foreground.
//!
//! Order of a start: the store is opened (an exclusive lock), what a new cloud needs is made, workflows that were open
//! are taken up again, listeners open, the node of this machine says hello, and only then `/readyz` says so.
//! Order of a stop: nothing new is accepted, what runs ends or parks within ten seconds; guests run on.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Command;
use nephos_agent::{Agent, Ended, Fleet};
use nephos_api_native::Native;
use nephos_auth::ServerCertificate;
use nephos_cli::{Invocation, LocalCommand};
use nephos_cloud::{Control, Options, identity::Printed, workflow::Retention};
use nephos_driver::simulated::SimulatedHost;
use nephos_http::{
    Health, Server, Status,
    rate::{Limiter, Rates},
};
use nephos_node_api::{ControlPlane, client::Local};
use nephos_types::{Bytes, Error, NodeId, Result};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    drivers, logging, observe,
    reach::{self, Reached},
    standby::{self, Waiting},
};

/// How long what runs has to end or park after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long a start waits for this machine's node.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// More simulated nodes than this do not measure what their servers use.
const MEASURED: usize = 100;
/// The file in the data folder that holds the URL while the cloud is ready.
const ENDPOINT: &str = "endpoint";

pub(crate) fn command() -> LocalCommand {
    LocalCommand {
        noun: None,
        command: crate::config::up(
            Command::new("up").about("Start the cloud on this machine, in the foreground").after_help(
                "The first start makes an administrator and prints the password once.\n\
                 SIGTERM or Ctrl-C stops the cloud; its servers keep running.",
            ),
        ),
        run: |invocation: &Invocation<'_>| {
            let config = Config::of(invocation.matches)?;
            logging::start(&config.log, config.log_format)?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .map_err(|error| Error::internal("the program could not be set up", error))?;
            let outcome = runtime.block_on(up(config));
            runtime.shutdown_timeout(Duration::from_millis(200));
            outcome.map(|()| 0)
        },
    }
}

/// Whether everything that is offered answers.
#[derive(Default)]
pub(crate) struct Readiness(AtomicU8);

impl Readiness {
    const STARTING: u8 = 0;
    const READY: u8 = 1;
    const WAITING: u8 = 2;

    /// Not yet, or not any more.
    pub(crate) fn starting(&self) {
        self.0.store(Self::STARTING, Ordering::Release);
    }

    /// From now on.
    fn ready_now(&self) {
        self.0.store(Self::READY, Ordering::Release);
    }

    /// Not while others are at work.
    pub(crate) fn waiting(&self) {
        self.0.store(Self::WAITING, Ordering::Release);
    }
}

impl Health for Readiness {
    fn alive(&self) -> Result<(), &'static str> {
        Ok(())
    }

    fn ready(&self) -> Result<(), &'static str> {
        match self.0.load(Ordering::Acquire) {
            Self::READY => Ok(()),
            Self::WAITING => Err(standby::WAITING),
            _ => Err("starting"),
        }
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<(TcpListener, SocketAddr)> {
    let refuse = |error: io::Error| {
        Error::new(nephos_types::ErrorKind::Unavailable, "listen", format!("{address} cannot be listened on"))
            .detail(error.to_string())
            .next(format!("end what uses it, or choose another address with {flag}"), None)
    };
    let listener = TcpListener::bind(address).await.map_err(refuse)?;
    let address = listener.local_addr().map_err(refuse)?;
    Ok((listener, address))
}

/// Makes the data folder, for its owner only.
fn make_data_folder(data: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(|error| {
        Error::new(nephos_types::ErrorKind::Unavailable, "data_folder", "The data folder cannot be made")
            .detail(format!("{}: {error}", data.display()))
            .next("name another one with --data", None)
    })
}

/// TLS with the cloud's own certificate.
pub(crate) fn tls_config(certificate: &ServerCertificate) -> Result<Arc<rustls::ServerConfig>> {
    let broken = |error: rustls::Error| Error::internal("the certificate cannot be used", error);
    let chain = certificate.chain.iter().cloned().map(Into::into).collect();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certificate.key.clone());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .with_no_client_auth()
        .with_single_cert(chain, key.into())
        .map_err(broken)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn write_endpoint(data: &Path, url: &str) -> io::Result<()> {
    use io::Write;
    let path = data.join(".endpoint.new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&path)?;
    writeln!(file, "{url}")?;
    fs::rename(path, data.join(ENDPOINT))
}

/// Serves until a signal, with an agent for this machine unless the database is shared.
pub(crate) async fn up(config: Config) -> Result<()> {
    let begin = Instant::now();
    make_data_folder(&config.data)?;
    let _ = fs::remove_file(config.data.join(ENDPOINT));

    let (listener, address) = bind(config.listen, "--listen").await?;
    // Who waits for others serves something else on it first.
    let listener = listener.into_std().map_err(|error| Error::internal("the listener cannot be shared", error))?;
    let (node_listener, node_address) = bind(config.node_listen, "--node-listen").await?;
    let Reached { url, names } = reach::api(address);

    let (observers, registry, metrics) = observe::start();
    let readiness = Arc::new(Readiness::default());
    let version = serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "name": "nephos" });
    let status = Arc::new(Status::new(readiness.clone(), registry, version));
    let mut turn = None;
    if let Some(shared) = &config.shared {
        let waiting = Waiting {
            config: &config,
            listener: &listener,
            names: &names,
            readiness: &readiness,
            status: status.clone(),
        };
        turn = waiting.turn(&shared.database).await?;
        if turn.is_none() {
            return Ok(());
        }
    }
    let control = Control::open(Options {
        data: config.data.clone(),
        url: url.clone(),
        node_address: config.node_address.clone().unwrap_or_else(|| reach::node(node_address).to_string()),
        shared: config.shared.clone(),
        turn,
        certificate_for: names,
        admin_password: config.admin_password.clone(),
        images: config.images.clone(),
        observers,
        rotate_keys_after: config.rotate_keys_after,
        keep_audit: config.keep_audit,
        keep_workflows: Retention { age: config.keep_workflows, ..Retention::default() },
        compute: config.compute.clone(),
    })
    .await?;

    let limiter = Arc::new(Limiter::new(Rates::default()));
    let native = Native::new(nephos_ops::table(), control.cloud(), limiter, nephos_api_native::Settings::default())?;
    let server =
        Server::new(nephos_http::Settings::default(), vec![Arc::new(native), status], Some(Arc::new(metrics)))?;
    let tls = control.certificate.as_ref().map(tls_config).transpose()?;
    let listener =
        TcpListener::from_std(listener).map_err(|error| Error::internal("the listener cannot be used", error))?;
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve(listener, tls).await }
    });

    let shutdown = CancellationToken::new();
    let plane: Arc<dyn ControlPlane> = control.nodes.clone();
    let nodes = tokio::spawn(nephos_node_api::server::listen(
        node_listener,
        control.nodes.tls()?,
        plane.clone(),
        shutdown.clone(),
    ));
    tokio::spawn(control.nodes.clone().watch_over(shutdown.clone()));
    let agents = match config.shared {
        None => Some(start_agents(&config, &control, plane, &shutdown).await?),
        // Every machine's agent may go to any controller, so none belongs to this one.
        Some(_) => None,
    };
    if let Some(agents) = &agents {
        agents.wait_for_first(&control).await;
    }

    write_endpoint(&config.data, &url)
        .map_err(|error| Error::internal("the endpoint cannot be written into the data folder", error))?;
    readiness.ready_now();
    tracing::info!(%url, nodes = %node_address, data = %config.data.display(), took_ms = begin.elapsed().as_millis() as u64, "ready");
    welcome(&config, &control, &url, begin);

    let broken = tokio::select! {
        signalled = wait_for_signal() => signalled.err(),
        broken = control.broken() => Some(broken),
    };
    tracing::info!("stopping; guests run on");
    readiness.starting();
    let _ = fs::remove_file(config.data.join(ENDPOINT));
    let stopping = async {
        tokio::join!(server.stop(STOP_LIMIT), control.stop());
        shutdown.cancel();
        if let Some(agents) = agents {
            agents.stop().await;
        }
        let _ = nodes.await;
        let _ = serving.await;
    };
    if tokio::time::timeout(STOP_LIMIT, stopping).await.is_err() {
        tracing::warn!("some work did not end in time; it goes on after the next start");
    }
    let closed = control.close().await;
    broken.map_or(closed, Err)
}

/// What is printed once everything serves: where, and after the first start how to log in.
fn welcome(config: &Config, control: &Control, url: &str, begin: Instant) {
    let login = match &control.first_start {
        Some(Printed { user, password: Some(password), .. }) => {
            format!("  login      {user} / {}      shown once\n", password.reveal())
        }
        _ => String::new(),
    };
    // At once, so that whoever waits for it reads it whole.
    if config.shared.is_some() {
        println!(
            "✔ Nephos {} controls in {:.1}s\n  \
               API        {url}/v1   ·   {url}/openapi.json   ·   {url}/xmlrpc\n\
             {login}  \
               try        nephos node join-token      add a machine",
            env!("CARGO_PKG_VERSION"),
            begin.elapsed().as_secs_f64(),
        );
        return;
    }
    println!(
        "✔ Nephos {} is up in {:.1}s\n  \
           API        {url}/v1   ·   {url}/openapi.json   ·   {url}/xmlrpc\n\
         {login}  \
           profiles   {}/clouds.yaml, openrc, aws-credentials\n  \
           try        nephos image build micro\n             \
                      nephos server create hello --image micro --flavor tiny\n             \
                      nephos node join-token      add another machine",
        env!("CARGO_PKG_VERSION"),
        begin.elapsed().as_secs_f64(),
        config.data.display(),
    );
}

pub(crate) async fn wait_for_signal() -> Result<()> {
    let failed = |error| Error::internal("signals cannot be received", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// The agents inside this process: this machine's, or simulated ones in its stead.
struct Agents {
    first: NodeId,
    running: Running,
}

enum Running {
    Machine(tokio::task::JoinHandle<Result<Ended>>),
    Simulated(Fleet),
}

impl Agents {
    /// Waits until a node has said hello, so that whoever sees the cloud ready can create a server. Not for ever: a
    /// cloud whose machine cannot run servers is still a cloud.
    async fn wait_for_first(&self, control: &Control) {
        let up = async {
            while control.nodes.summary(self.first).is_none_or(|node| !node.up) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(HELLO_LIMIT, up).await.is_err() {
            tracing::warn!(node = %self.first, "this machine's node has not said hello yet");
        }
    }

    async fn stop(self) {
        match self.running {
            Running::Machine(agent) => {
                if let Ok(Err(error)) = agent.await {
                    tracing::error!(error = %error.chain(), "the agent of this machine has ended");
                }
            }
            Running::Simulated(fleet) => fleet.stop().await,
        }
    }
}

async fn start_agents(
    config: &Config,
    control: &Control,
    plane: Arc<dyn ControlPlane>,
    shutdown: &CancellationToken,
) -> Result<Agents> {
    if config.simulated_nodes > 0 {
        let mut nodes = vec![];
        for number in 0..config.simulated_nodes {
            let name = format!("sim-{number}");
            nodes.push(control.nodes.local(&name, &name).await?);
        }
        let first = nodes[0];
        let simulated = nodes.len();
        let fleet = Fleet::start(
            plane,
            nodes,
            |index| Arc::new(SimulatedHost::new(index as u64).driver()),
            |index| {
                let (memory, disk) = (Bytes::mib(256 << 10), Bytes::mib(10 << 20));
                let config = nephos_agent::simulated_config(format!("sim-{index}"), 64, memory, disk);
                // One process pays for all of them.
                let usage_samples = if simulated <= MEASURED { config.usage_samples / simulated } else { 0 };
                nephos_agent::Config { usage_samples, ..config }
            },
        );
        return Ok(Agents { first, running: Running::Simulated(fleet) });
    }
    let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let name = config.node_name.clone().or(hostname).unwrap_or_else(|| "node".to_owned());
    let first = control.nodes.local("machine", &name).await?;
    let folder = config.data.join("node");
    let drivers = drivers::open(&folder).await?;
    let connector = Arc::new(Local::new(first, plane, shutdown.clone()));
    let settings = nephos_agent::Config { data: Some(folder), ..nephos_agent::Config::default() };
    let agent = tokio::spawn(Agent::run(settings, connector, drivers, shutdown.clone()));
    Ok(Agents { first, running: Running::Machine(agent) })
}
