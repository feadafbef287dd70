//! [`LinuxNetworks`]: the driver as others see it.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;
use nephos_driver::network::{NetworkCapabilities, NetworkDriver, NetworkPlan, NetworkReport, PortTraffic};
use nephos_types::{Error, ErrorKind, NetworkId, PortId};
use serde::{Deserialize, Serialize};

use crate::{
    apply::Node,
    names::{self, Places},
    netlink::Changes,
};

/// UDP port of VXLAN (RFC 7348).
pub const VXLAN_PORT: u16 = 4789;

/// What this driver has to know about the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What the namespaces of this cloud are called on this machine: the one of all bridges bears this name, those of
    /// routers and services begin with it. Clouds on one machine differ in it.
    pub name: String,
    /// Where namespaces are kept, by default where `ip netns` keeps them.
    #[serde(default = "namespaces")]
    pub folder: PathBuf,
    /// The namespace that the machine's own interfaces are in; absent: the one that this process is in.
    #[serde(default)]
    pub machine: Option<PathBuf>,
    /// Where other nodes reach this one; absent: there are no networks of several nodes.
    #[serde(default)]
    pub underlay: Option<IpAddr>,
    /// UDP port on which nodes send each other their guests' frames.
    #[serde(default = "vxlan_port")]
    pub vxlan_port: u16,
    /// Interfaces of the machine by the name of the physical network that they are on. They have no addresses of their
    /// own, and are taken while a network uses them.
    #[serde(default)]
    pub physical: BTreeMap<String, String>,
    /// Whether the machine may be the gateway of networks: it forwards packets, and what leaves it bears its address.
    #[serde(default)]
    pub host: bool,
    /// The program `nft`.
    #[serde(default = "nft")]
    pub nft: PathBuf,
}

fn namespaces() -> PathBuf {
    "/run/netns".into()
}

fn vxlan_port() -> u16 {
    VXLAN_PORT
}

fn nft() -> PathBuf {
    "nft".into()
}

impl Settings {
    /// Settings under which guests of this node reach each other, and nobody else.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            folder: namespaces(),
            machine: None,
            underlay: None,
            vxlan_port: VXLAN_PORT,
            physical: BTreeMap::new(),
            host: false,
            nft: nft(),
        }
    }
}

/// What of the last plan others ask for.
#[derive(Default)]
struct Known {
    ports: BTreeMap<PortId, ()>,
    services: BTreeMap<NetworkId, ()>,
}

/// The networks of a node, made of what the Linux kernel has.
pub struct LinuxNetworks {
    capabilities: NetworkCapabilities,
    places: Places,
    node: Arc<Mutex<Node>>,
    known: Mutex<Known>,
    changes: Changes,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LinuxNetworks {
    /// Looks at what this machine can do, and changes nothing.
    ///
    /// # Errors
    /// `networks_unavailable` with what is missing: the right to administer networks, the program `nft`, or something that
    /// the kernel lacks.
    pub fn open(settings: Settings) -> Result<Self, Error> {
        let places = Places { folder: settings.folder.clone(), name: settings.name.clone() };
        let changes = Changes::default();
        let mut node = Node::open(settings, places.clone(), changes.clone())?;
        let capabilities = node.capabilities();
        Ok(Self { capabilities, places, node: Arc::new(Mutex::new(node)), known: Mutex::default(), changes })
    }

    /// How many changes this process has made to the kernel's state. A plan that is carried out already makes none.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.count()
    }

    /// The namespace of all bridges.
    #[must_use]
    pub fn fabric(&self) -> PathBuf {
        self.places.fabric()
    }

    /// The namespace of a router.
    #[must_use]
    pub fn router_namespace(&self, router: nephos_types::RouterId) -> PathBuf {
        self.places.router(router)
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Node) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let node = Arc::clone(&self.node);
        tokio::task::spawn_blocking(move || work(&mut locked(&node)))
            .await
            .map_err(|error| Error::internal("Work on the node's networks ended without a result", error))?
    }
}

/// What the kernel refused.
pub(crate) fn failed(title: &str, error: io::Error) -> Error {
    let detail = error.to_string();
    Error::internal(title.to_owned(), error).detail(detail)
}

/// What this machine lacks.
pub(crate) fn unavailable(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, "networks_unavailable", "This machine cannot have real networks").detail(detail)
}

impl NetworkDriver for LinuxNetworks {
    fn capabilities(&self) -> NetworkCapabilities {
        self.capabilities.clone()
    }

    fn apply<'a>(&'a self, plan: &'a NetworkPlan) -> BoxFuture<'a, Result<NetworkReport, Error>> {
        let plan = plan.clone();
        Box::pin(async move {
            let known = Known {
                ports: plan.ports.iter().map(|port| (port.id, ())).collect(),
                services: plan.networks.iter().map(|network| (network.id, ())).collect(),
            };
            // A node without networks has nothing of ours.
            let report = self
                .work(move |node| match plan == NetworkPlan::default() {
                    true => node.remove_all().map(|()| NetworkReport::default()),
                    false => node.apply(&plan),
                })
                .await?;
            *locked(&self.known) = known;
            Ok(report)
        })
    }

    fn tap(&self, port: PortId) -> Result<(PathBuf, String), Error> {
        match locked(&self.known).ports.contains_key(&port) {
            true => Ok((self.places.fabric(), names::port(port))),
            false => Err(Error::not_found("port", port)),
        }
    }

    fn service_namespace(&self, network: NetworkId) -> Result<(PathBuf, String), Error> {
        match locked(&self.known).services.contains_key(&network) {
            true => Ok((self.places.service(network), names::SERVICE_INTERFACE.to_owned())),
            false => Err(Error::not_found("network", network)),
        }
    }

    fn traffic(&self, port: PortId) -> BoxFuture<'_, Result<PortTraffic, Error>> {
        Box::pin(self.work(move |node| node.traffic(port)))
    }

    fn remove_all(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            *locked(&self.known) = Known::default();
            self.work(Node::remove_all).await
        })
    }
}

/// Whether a program is where it is looked for.
pub(crate) fn find_program(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // What only administrators run is not in everybody's path.
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|folder| folder.join(program)).find(|file| file.is_file())
}
