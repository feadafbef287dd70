//! What one network's guests on this node are served, out of the plan: made once for each plan, then only read.
//!
//! Who asks is known by the address that it asks from. The kernel side guarantees that a port uses only its own.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nephos_driver::network::{NetworkPlan, NetworkSpec, PortAddress, SubnetSpec};
use nephos_types::{Id, MacAddress, NetworkId, PortId, ServerId, SubnetId};

use crate::dns::Zone;

/// One network, as its guests on this node are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkView {
    id: NetworkId,
    mtu: u32,
    domain: String,
    subnets: Vec<SubnetSpec>,
    ports: Vec<PortView>,
    by_mac: HashMap<MacAddress, usize>,
    by_address: HashMap<IpAddr, usize>,
    zone: Zone,
}

/// One port of a server of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortView {
    /// Which.
    pub id: PortId,
    /// The server that it is of.
    pub server: ServerId,
    /// That server's host name.
    pub host_name: String,
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its addresses.
    pub addresses: Vec<PortAddress>,
}

impl NetworkView {
    /// All networks of a plan.
    #[must_use]
    pub fn all(plan: &NetworkPlan) -> Vec<Self> {
        let mut ports: HashMap<NetworkId, Vec<PortView>> = HashMap::new();
        for port in plan.ports.iter().filter(|port| port.up) {
            ports.entry(port.network).or_default().push(PortView {
                id: port.id,
                server: port.server,
                host_name: port.host_name.clone(),
                mac: port.mac,
                addresses: port.addresses.clone(),
            });
        }
        plan.networks.iter().map(|network| Self::new(network, ports.remove(&network.id).unwrap_or_default())).collect()
    }

    fn new(network: &NetworkSpec, ports: Vec<PortView>) -> Self {
        let by_mac = ports.iter().enumerate().map(|(place, port)| (port.mac, place)).collect();
        let mut by_address = HashMap::new();
        for (place, port) in ports.iter().enumerate() {
            by_address.insert(IpAddr::V6(link_local(port.mac)), place);
            by_address.extend(port.addresses.iter().map(|address| (address.address, place)));
        }
        Self {
            id: network.id,
            mtu: network.mtu,
            domain: network.dns_domain.to_ascii_lowercase(),
            subnets: network.subnets.clone(),
            zone: Zone::new(network),
            ports,
            by_mac,
            by_address,
        }
    }

    /// A network of nobody, to begin with.
    pub(crate) fn none() -> Self {
        Self {
            id: NetworkId::from_bits(0),
            mtu: 0,
            domain: String::new(),
            subnets: vec![],
            ports: vec![],
            by_mac: HashMap::new(),
            by_address: HashMap::new(),
            zone: Zone::default(),
        }
    }

    /// Which network.
    #[must_use]
    pub fn id(&self) -> NetworkId {
        self.id
    }

    /// Largest packet, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// What host names end with.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Its ranges of addresses.
    #[must_use]
    pub fn subnets(&self) -> &[SubnetSpec] {
        &self.subnets
    }

    /// One of them.
    #[must_use]
    pub fn subnet(&self, id: SubnetId) -> Option<&SubnetSpec> {
        self.subnets.iter().find(|subnet| subnet.id == id)
    }

    /// The names of the network.
    #[must_use]
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// The port of this node with this MAC address.
    #[must_use]
    pub fn port_with_mac(&self, mac: MacAddress) -> Option<&PortView> {
        self.ports.get(*self.by_mac.get(&mac)?)
    }

    /// The port of this node that this source address is of.
    #[must_use]
    pub fn port_at(&self, source: IpAddr) -> Option<&PortView> {
        self.ports.get(*self.by_address.get(&source.to_canonical())?)
    }

    /// Addresses at which the network's guests are served, of IPv4 and of IPv6.
    #[must_use]
    pub fn service_addresses(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = self.subnets.iter().filter_map(|subnet| subnet.service).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// A port's addresses of IPv4 that it is told by DHCP, each with its range and the address that serves it.
    pub fn told_v4<'a>(
        &'a self,
        port: &'a PortView,
    ) -> impl Iterator<Item = (Ipv4Addr, &'a SubnetSpec, Ipv4Addr)> + 'a {
        port.addresses.iter().filter_map(|address| {
            let subnet = self.subnet(address.subnet).filter(|subnet| subnet.dhcp)?;
            match (address.address, subnet.service?) {
                (IpAddr::V4(address), IpAddr::V4(service)) => Some((address, subnet, service)),
                _ => None,
            }
        })
    }
}

/// The link-local address that goes with a MAC address (RFC 4291, appendix A).
#[must_use]
pub fn link_local(mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.bytes();
    let halves = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, halves(a ^ 2, b), halves(c, 0xff), halves(0xfe, d), halves(e, f))
}
