//! Ports of servers: taps, and pairs of which one end is in the server's namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use nephos_driver::network::{Attachment, NetworkSpec, PortSpec};
use nephos_host::netns;
use sha2::{Digest, Sha256};

use crate::{
    interface::{Interface, Way},
    names,
    netlink::{BridgePort, Changes, Kind, Link, Links, New, Space},
};

/// Longest alias of a device.
const ALIAS: usize = 255;
/// Where guests ask for what they are.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What a server's namespace should have in it.
struct Inside {
    interface: Interface,
    routes: BTreeMap<IpNet, Way>,
}

impl Inside {
    fn of(port: &PortSpec, network: &NetworkSpec, name: &str) -> Self {
        let mut addresses = BTreeSet::new();
        let mut routes = BTreeMap::new();
        for address in &port.addresses {
            let Some(subnet) = network.subnets.iter().find(|subnet| subnet.id == address.subnet) else { continue };
            addresses.extend(IpNet::new(address.address, subnet.cidr.net().prefix_len()));
            let any = IpNet::new(if address.address.is_ipv4() { [0_u8; 4].into() } else { [0_u8; 16].into() }, 0);
            if let (Some(gateway), Ok(any)) = (subnet.gateway, any) {
                routes.entry(any).or_insert(Way::By(gateway));
            }
            for route in &subnet.host_routes {
                routes.entry(route.destination.net()).or_insert(Way::By(route.next_hop));
            }
        }
        if port.addresses.iter().any(|address| address.address.is_ipv4()) {
            routes.entry(IpNet::from(IpAddr::from(METADATA))).or_insert(Way::Straight(name.to_owned()));
        }
        let interface =
            Interface { name: name.to_owned(), mac: port.mac.bytes(), mtu: network.mtu, up: true, addresses };
        Self { interface, routes }
    }

    /// What stands on the device's alias once all of this is so.
    fn alias(&self, path: &Path) -> String {
        let text = serde_json::to_vec(&(&self.interface, &self.routes.iter().collect::<Vec<_>>())).unwrap_or_default();
        let hash: String = Sha256::digest(&text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{hash} {}", path.display())
    }
}

/// The namespace that a port's device leads to, by its alias.
pub(crate) fn namespace(link: &Link) -> Option<PathBuf> {
    link.alias.split_once(' ').map(|(_, path)| path.into())
}

/// Removes a port that is not planned, and the namespace that was made for it.
pub(crate) fn remove(fabric: &mut Space, link: &Link) -> io::Result<()> {
    fabric.delete_link(link.index)?;
    if link.kind == Kind::Veth
        && let Some(path) = namespace(link)
    {
        netns::remove(&path)?;
    }
    Ok(())
}

/// Makes a port's device be there; it is joined to nothing yet.
pub(crate) fn ensure(fabric: &mut Space, links: &mut Links, port: &PortSpec, network: &NetworkSpec) -> io::Result<()> {
    let name = names::port(port.id);
    let kind = match port.attachment {
        Attachment::Tap => Kind::Tun,
        Attachment::Namespace { .. } => Kind::Veth,
    };
    if let Some(link) = links.get(&name) {
        let path = match &port.attachment {
            Attachment::Namespace { path, .. } => Some(path),
            Attachment::Tap => None,
        };
        let moved = path.is_some() && namespace(link).is_some_and(|old| Some(&old) != path);
        if link.kind == kind && !moved {
            if link.mtu != network.mtu {
                fabric.set_mtu(link.index, network.mtu)?;
            }
            return Ok(());
        }
        remove(fabric, link)?;
        links.remove(&name);
    }
    match &port.attachment {
        Attachment::Tap => {
            fabric.changes().one();
            fabric.inside(|| netns::create_tap(&name))?;
            let index = fabric.index(&name)?;
            fabric.set_mtu(index, network.mtu)?;
        }
        Attachment::Namespace { path, interface } => {
            if path.as_os_str().len() > ALIAS - 20 {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the namespace's path is too long"));
            }
            if !netns::is_kept(path) {
                fabric.changes().one();
                netns::create(path)?;
            }
            let namespace = netns::open(path)?;
            let end = New::Veth {
                peer: interface,
                namespace: Some(std::os::fd::AsFd::as_fd(&namespace)),
                mac: Some(port.mac.bytes()),
            };
            fabric.create_link(&name, end, network.mtu, None, None)?;
        }
    }
    if let Some(link) = fabric.link(&name)? {
        links.insert(name, link);
    }
    Ok(())
}

/// Joins a port to its bridge and makes what is behind it be so.
pub(crate) fn join(
    fabric: &mut Space,
    links: &mut Links,
    port: &PortSpec,
    network: &NetworkSpec,
    changes: &Changes,
) -> io::Result<()> {
    let name = names::port(port.id);
    let bridge = links
        .get(&names::bridge(network.id))
        .map(|bridge| bridge.index)
        .ok_or_else(|| io::Error::other("its network is not there"))?;
    let Some(link) = links.get_mut(&name) else { return Err(io::Error::other("its device is not there")) };
    if let Attachment::Namespace { path, interface } = &port.attachment {
        let inside = Inside::of(port, network, interface);
        let alias = inside.alias(path);
        if link.alias != alias {
            let mut space = Space::open(path, changes)?;
            space.sysctl(&[
                ("ipv4/ping_group_range".into(), "0 2147483647"),
                ("ipv4/ip_unprivileged_port_start".into(), "0"),
                (format!("ipv6/conf/{interface}/accept_ra"), "0"),
            ])?;
            space.configure(std::slice::from_ref(&inside.interface), &inside.routes)?;
            fabric.set_alias(link.index, &alias)?;
            link.alias = alias;
        }
    }
    if link.master != Some(bridge) {
        fabric.set_master(link.index, bridge)?;
        link.master = Some(bridge);
        link.port = None;
    }
    // Who may bear any address is found by what it sends.
    let learning = !port.port_security || port.allowed_pairs.iter().any(|pair| pair.mac.is_some());
    let wanted = BridgePort { learning, flood: true, suppress: false, isolated: false };
    if link.port != Some(wanted) {
        fabric.set_bridge_port(link.index, wanted)?;
        link.port = Some(wanted);
    }
    if link.up != port.up {
        fabric.set_up(link.index, port.up)?;
        link.up = port.up;
    }
    Ok(())
}
