//! The node's networks: what they should be, and one worker that makes them so.
//!
//! What should be is kept in one file, so that a started agent knows it while the control plane is away. Whoever starts a
//! guest that has a port asks here for what to connect it by, and is told to come again while the port is not made.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nephos_driver::{
    Interface,
    network::{Attachment, NetworkCapabilities, NetworkDriver, NetworkPlan, NetworkSpec},
};
use nephos_network_services::{self as services, MetadataSource, Place, Places, Services};
use nephos_node_api::{PortReport, WantedInterface, metadata::ServerMetadata};
use nephos_types::{Error, ErrorKind, PortId, Result, ServerId};
use tokio::sync::{Notify, watch};

use crate::{config::Backoff, records::replace, told::Told};

/// The file in the agent's folder.
const FILE: &str = "networks.json";
/// The folder of guests' network namespaces, below the agent's.
const NAMESPACES: &str = "namespaces";
/// How long a server's ports are waited for before its start counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// The node's networks, if it can have any.
pub(crate) struct Networks {
    driver: Option<Arc<dyn NetworkDriver>>,
    /// What guests are served; absent for simulated nodes.
    services: Option<Services>,
    told: Arc<Told>,
    folder: Option<PathBuf>,
    retry: Backoff,
    state: Mutex<State>,
    /// Rings when something else should be.
    wished: Notify,
    /// Counts how often it was found out what has become of ports.
    looked: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// What should be; `None`: nobody has said so far.
    plan: Option<Arc<NetworkPlan>>,
    /// What has become of ports.
    ports: BTreeMap<PortId, Option<Error>>,
}

impl Networks {
    /// With what is remembered in the agent's folder.
    pub(crate) fn open(
        driver: Option<Arc<dyn NetworkDriver>>,
        services: Option<services::Settings>,
        folder: Option<PathBuf>,
        retry: Backoff,
    ) -> Self {
        let told = Arc::new(Told::new(folder.clone()));
        let services = services.map(|settings| Services::new(settings, Arc::clone(&told) as Arc<dyn MetadataSource>));
        let remembered = folder.as_deref().filter(|_| driver.is_some()).and_then(remembered);
        let state = State { plan: remembered.map(Arc::new), ports: BTreeMap::new() };
        Self {
            driver,
            services,
            told,
            folder,
            retry,
            state: Mutex::new(state),
            wished: Notify::new(),
            looked: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the node can do about networks.
    pub(crate) fn capabilities(&self) -> Option<NetworkCapabilities> {
        self.driver.as_ref().map(|driver| driver.capabilities())
    }

    /// Takes over what should be. `spaces` says which servers are started in a namespace rather than on a tap device.
    pub(crate) fn wish(&self, mut plan: NetworkPlan, spaces: &BTreeSet<ServerId>) {
        if self.driver.is_none() {
            return;
        }
        let mut places: BTreeMap<ServerId, usize> = BTreeMap::new();
        for port in plan.ports.iter_mut().filter(|port| spaces.contains(&port.server)) {
            let place = places.entry(port.server).or_default();
            port.attachment =
                Attachment::Namespace { path: self.namespace(port.server), interface: format!("eth{place}") };
            *place += 1;
        }
        if self.state().plan.as_deref() == Some(&plan) {
            return;
        }
        self.remember(&plan);
        self.state().plan = Some(Arc::new(plan));
        self.wished.notify_one();
    }

    fn namespace(&self, server: ServerId) -> PathBuf {
        self.folder.as_deref().unwrap_or(Path::new("/run/nephos")).join(NAMESPACES).join(server.to_string())
    }

    fn remember(&self, plan: &NetworkPlan) {
        let Some(folder) = &self.folder else { return };
        let written = serde_json::to_vec(plan)
            .map_err(io::Error::from)
            .and_then(|content| replace(&folder.join(FILE), &content, false));
        if let Err(error) = written {
            tracing::warn!(%error, "what the networks should be could not be written down");
        }
    }

    /// Makes networks be as they should, for ever; `changed` is told which ports have become something else. Looks again
    /// after `sweep` even if nothing seems to have happened.
    pub(crate) async fn keep(&self, sweep: Duration, changed: impl Fn(&BTreeSet<PortId>)) {
        let Some(driver) = &self.driver else { return std::future::pending().await };
        let mut failures = 0_u32;
        loop {
            let plan = self.state().plan.clone();
            let Some(plan) = plan else {
                self.wished.notified().await;
                continue;
            };
            let outcome = driver.apply(&plan).await;
            let mut ports: BTreeMap<PortId, Option<Error>> = plan.ports.iter().map(|port| (port.id, None)).collect();
            let clean = match outcome {
                Ok(report) => {
                    for trouble in &report.networks {
                        tracing::warn!(network = %trouble.id, error = %trouble.error.chain(), "a network could not be made");
                        let on = plan.ports.iter().filter(|port| port.network == trouble.id);
                        ports.extend(on.map(|port| (port.id, Some(trouble.error.clone()))));
                    }
                    for trouble in &report.ports {
                        tracing::warn!(port = %trouble.id, error = %trouble.error.chain(), "a port could not be made");
                    }
                    for trouble in &report.routers {
                        tracing::warn!(router = %trouble.id, error = %trouble.error.chain(), "a router could not be made");
                    }
                    ports.extend(report.ports.iter().map(|trouble| (trouble.id, Some(trouble.error.clone()))));
                    report.is_clean() & self.serve(&**driver, &plan).await
                }
                Err(error) => {
                    tracing::warn!(error = %error.chain(), "networks could not be made");
                    for trouble in ports.values_mut() {
                        *trouble = Some(error.clone());
                    }
                    false
                }
            };
            let news: BTreeSet<PortId> = {
                let mut state = self.state();
                let before = std::mem::replace(&mut state.ports, ports);
                let after = &state.ports;
                let differs = |id: &&PortId| before.get(*id) != after.get(*id);
                before.keys().chain(after.keys()).filter(differs).copied().collect()
            };
            self.looked.send_modify(|count| *count += 1);
            if !news.is_empty() {
                changed(&news);
            }
            failures = if clean { 0 } else { failures.saturating_add(1) };
            let pause = if clean { sweep } else { self.retry.after(failures) };
            tokio::select! {
                () = self.wished.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Serves guests as planned; says whether it could be done.
    async fn serve(&self, driver: &dyn NetworkDriver, plan: &NetworkPlan) -> bool {
        let Some(services) = &self.services else { return true };
        let place = |network: &NetworkSpec| {
            let (namespace, interface) = driver.service_namespace(network.id).ok()?;
            Some((network.id, Place { namespace, interface }))
        };
        let places = Places { networks: plan.networks.iter().filter_map(place).collect(), ..Places::default() };
        let troubles = services.update(plan, &places).await;
        for trouble in &troubles.networks {
            tracing::warn!(network = %trouble.id, error = %trouble.error.chain(), "guests of a network are not served");
        }
        troubles.networks.is_empty() && troubles.routers.is_empty()
    }

    /// What a server is to be told about itself from now on.
    pub(crate) fn tell(&self, server: ServerId, metadata: Option<&ServerMetadata>) {
        if self.services.is_some() {
            self.told.set(server, metadata);
        }
    }

    /// What a server is connected by, once its ports are made; they are waited for a while.
    pub(crate) async fn interfaces(
        &self,
        server: ServerId,
        wanted: &[WantedInterface],
        in_space: bool,
    ) -> Result<Vec<Interface>> {
        let mut looked = self.looked.subscribe();
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        loop {
            match self.interfaces_now(server, wanted, in_space) {
                Err(error) if error.kind != ErrorKind::Unsupported => tokio::select! {
                    changed = looked.changed() => if changed.is_err() { return Err(error) },
                    () = &mut patience => return Err(error),
                },
                interfaces => return interfaces,
            }
        }
    }

    fn interfaces_now(&self, server: ServerId, wanted: &[WantedInterface], in_space: bool) -> Result<Vec<Interface>> {
        let mut interfaces = vec![];
        for wish in wanted {
            match wish {
                WantedInterface::User { mac, forwards } => {
                    interfaces.push(Interface::User { mac: mac.clone(), forwards: forwards.clone() });
                }
                WantedInterface::Port { port, mac, mtu } => {
                    let driver = self.driver.as_ref().ok_or_else(|| {
                        Error::new(ErrorKind::Unsupported, "no_networks", "The node cannot connect servers to networks")
                    })?;
                    match self.state().ports.get(port) {
                        Some(None) => {}
                        Some(Some(error)) => return Err(error.clone()),
                        None => {
                            return Err(Error::new(
                                ErrorKind::Unavailable,
                                "port_not_made",
                                "The server's port is not made yet",
                            )
                            .detail(port.to_string()));
                        }
                    }
                    let interface = if in_space {
                        Interface::Namespace { path: self.namespace(server) }
                    } else {
                        let (namespace, device) = driver.tap(*port)?;
                        Interface::Tap { mac: *mac, namespace, device, mtu: *mtu }
                    };
                    if !interfaces.contains(&interface) {
                        interfaces.push(interface);
                    }
                }
            }
        }
        Ok(interfaces)
    }

    /// What to tell of a server's ports.
    pub(crate) fn reports(&self, wanted: &[WantedInterface]) -> Vec<PortReport> {
        let state = self.state();
        let report = |wish: &WantedInterface| match wish {
            WantedInterface::User { .. } => None,
            WantedInterface::Port { port, .. } => {
                Some(PortReport { port: *port, trouble: state.ports.get(port)?.clone() })
            }
        };
        wanted.iter().filter_map(report).collect()
    }
}

/// What an earlier run of the agent was told last; a file that is not whole counts as absent.
fn remembered(folder: &Path) -> Option<NetworkPlan> {
    let content = std::fs::read(folder.join(FILE)).ok()?;
    serde_json::from_slice(&content)
        .inspect_err(|error| tracing::warn!(%error, "what the networks should be cannot be read"))
        .ok()
}
