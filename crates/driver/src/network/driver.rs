//! The network driver: makes a node's networks be as planned.

use std::path::PathBuf;

use futures_util::future::BoxFuture;
use nephos_types::{Error, NetworkId, PortId, RouterId};
use serde::{Deserialize, Serialize};

use super::NetworkPlan;

/// What a node can do about networks. What it cannot is refused before any work starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCapabilities {
    /// Where this node receives what other nodes send (the outer address of VXLAN); `None`: it has no such networks.
    pub underlay: Option<std::net::IpAddr>,
    /// Physical networks that it is on.
    pub physical: Vec<String>,
    /// Whether tagged networks (IEEE 802.1Q) can be made.
    pub vlan: bool,
    /// Whether the machine can be the gateway of an external network ([`Segment::Host`](super::Segment::Host)).
    pub host: bool,
    /// Largest packet of the wire between the nodes, in bytes.
    pub underlay_mtu: u32,
}

/// What could not be made so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble<Id> {
    /// Of what.
    pub id: Id,
    /// Why.
    pub error: Error,
}

/// What has become of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkReport {
    /// Networks that are not as planned.
    pub networks: Vec<Trouble<NetworkId>>,
    /// Ports that are not as planned.
    pub ports: Vec<Trouble<PortId>>,
    /// Routers that are not as planned.
    pub routers: Vec<Trouble<RouterId>>,
}

impl NetworkReport {
    /// Whether all is as planned.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.networks.is_empty() && self.ports.is_empty() && self.routers.is_empty()
    }
}

/// What has passed a port, as seen from the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PortTraffic {
    pub received_bytes: u64,
    pub received_packets: u64,
    pub sent_bytes: u64,
    pub sent_packets: u64,
}

/// Makes a node's networks. Object-safe; calls come one after the other.
pub trait NetworkDriver: Send + Sync + 'static {
    /// What this driver can do.
    fn capabilities(&self) -> NetworkCapabilities;

    /// Makes the node's networks be as planned, from whatever they are: first time after a reboot, after a restart of the
    /// agent, after somebody has meddled. What is as planned is not touched; what is not planned is removed. What cannot be
    /// made so is in the report, and the rest is made all the same; an error means that nothing could be done.
    fn apply<'a>(&'a self, plan: &'a NetworkPlan) -> BoxFuture<'a, Result<NetworkReport, Error>>;

    /// The network namespace that a planned port's tap device is in, and the device's name, for whoever opens it. Refused
    /// with `port_not_found` if the last plan did not name the port.
    fn tap(&self, port: PortId) -> Result<(PathBuf, String), Error>;

    /// The network namespace in which a network's guests are served, and the interface in there that leads to them. It has
    /// the service addresses of the network's subnets, with the lengths of their ranges' prefixes, and
    /// [`METADATA_V4`](super::METADATA_V4) and [`METADATA_V6`](super::METADATA_V6), all of which may be used at once (no
    /// duplicate address detection). Refused with `network_not_found` if the last plan did not name the network.
    fn service_namespace(&self, network: NetworkId) -> Result<(PathBuf, String), Error>;

    /// What has passed a port since it was made.
    fn traffic(&self, port: PortId) -> BoxFuture<'_, Result<PortTraffic, Error>>;

    /// Removes everything that any plan has made.
    fn remove_all(&self) -> BoxFuture<'_, Result<(), Error>>;
}
