//! A network on this node: its bridge, what joins the bridge to other nodes, and where its guests are served.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
};

use ipnet::IpNet;
use nephos_driver::network::{NetworkSpec, Segment};
use nephos_host::netns;

use crate::{
    driver::Settings,
    interface::{Interface, Way},
    machine,
    names::{self, Places, SERVICE_INTERFACE, SERVICE_MAC},
    netlink::{BridgePort, Changes, Link, Links, New, Space},
};

/// Addresses at which guests ask for what they are.
pub(crate) const METADATA: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe))];

/// How a port of a bridge is treated that belongs to the node itself.
const PLAIN: BridgePort = BridgePort { learning: true, flood: true, suppress: false, isolated: false };
/// What serves guests and the way to other nodes do not see each other; nobody is asked twice.
const SERVICE: BridgePort = BridgePort { learning: false, flood: true, suppress: false, isolated: true };
const OVERLAY: BridgePort = BridgePort { learning: false, flood: true, suppress: true, isolated: true };

/// The zone that is written on a bridge.
pub(crate) fn zone(alias: &str) -> Option<u16> {
    alias.strip_prefix("zone ")?.parse().ok()
}

/// Makes a network's bridge be there, and gives it a number of its own. Returns that number.
pub(crate) fn ensure_bridge(fabric: &mut Space, links: &mut Links, network: &NetworkSpec) -> io::Result<u16> {
    let name = names::bridge(network.id);
    if !links.contains_key(&name) {
        fabric.create_link(&name, New::Bridge, network.mtu, None, None)?;
        links.extend(fabric.link(&name)?.map(|link| (name.clone(), link)));
    }
    let taken: BTreeSet<u16> = links.values().filter_map(|link| zone(&link.alias)).collect();
    let Some(link) = links.get_mut(&name) else { return Err(io::Error::other("the bridge did not stay")) };
    let zone = match zone(&link.alias) {
        Some(zone) => zone,
        None => {
            let free = (1..=u16::MAX).find(|zone| !taken.contains(zone));
            let zone = free.ok_or_else(|| io::Error::other("there are too many networks on this node"))?;
            link.alias = format!("zone {zone}");
            fabric.set_alias(link.index, &link.alias)?;
            zone
        }
    };
    if link.mtu != network.mtu {
        fabric.set_mtu(link.index, network.mtu)?;
    }
    if !link.up {
        fabric.set_up(link.index, true)?;
        link.up = true;
    }
    Ok(zone)
}

/// Makes a device be a port of a network's bridge.
pub(crate) fn enslave(
    fabric: &mut Space,
    links: &mut Links,
    network: &NetworkSpec,
    name: &str,
    as_port: BridgePort,
) -> io::Result<()> {
    if !links.contains_key(name) {
        links.extend(fabric.link(name)?.map(|link| (name.to_owned(), link)));
    }
    let bridge = links.get(&names::bridge(network.id)).map(|bridge| bridge.index);
    let bridge = bridge.ok_or_else(|| io::Error::other("the network is not there"))?;
    let Some(link) = links.get_mut(name) else { return Err(io::Error::other("the device did not stay")) };
    if link.mtu != network.mtu {
        fabric.set_mtu(link.index, network.mtu)?;
        link.mtu = network.mtu;
    }
    if link.master != Some(bridge) {
        fabric.set_master(link.index, bridge)?;
        link.master = Some(bridge);
        link.port = None;
    }
    if link.port != Some(as_port) {
        fabric.set_bridge_port(link.index, as_port)?;
        link.port = Some(as_port);
    }
    if !link.up {
        fabric.set_up(link.index, true)?;
        link.up = true;
    }
    Ok(())
}

/// Joins a pair whose one end is a port of a bridge, like a router's.
pub(crate) fn enslave_plain(
    fabric: &mut Space,
    links: &mut Links,
    network: &NetworkSpec,
    name: &str,
) -> io::Result<()> {
    enslave(fabric, links, network, name, PLAIN)
}

/// Makes the namespace be there in which a network's guests are served.
pub(crate) fn ensure_service(
    fabric: &mut Space,
    links: &mut Links,
    places: &Places,
    network: &NetworkSpec,
    changes: &Changes,
) -> io::Result<()> {
    let path = places.service(network.id);
    let name = names::service(network.id);
    if !netns::is_kept(&path) {
        if let Some(link) = links.remove(&name) {
            fabric.delete_link(link.index)?;
        }
        changes.one();
        netns::create(&path)?;
    }
    let mut inside = Space::open(&path, changes)?;
    if !links.contains_key(&name) {
        let namespace = netns::open(&path)?;
        let end = New::Veth { peer: SERVICE_INTERFACE, namespace: Some(namespace.as_fd()), mac: Some(SERVICE_MAC) };
        fabric.create_link(&name, end, network.mtu, None, None)?;
    }
    let mut addresses: BTreeSet<IpNet> = METADATA.map(IpNet::from).into();
    for subnet in &network.subnets {
        if let Some(service) = subnet.service {
            addresses.extend(IpNet::new(service, subnet.cidr.net().prefix_len()));
        }
    }
    // The address on the link has its range's length, so that answers to neighbours find their way.
    addresses.remove(&IpNet::from(METADATA[1]));
    addresses.extend(IpNet::new(METADATA[1], 64));
    inside.sysctl(&[
        (format!("ipv6/conf/{SERVICE_INTERFACE}/accept_ra"), "0"),
        (format!("ipv6/conf/{SERVICE_INTERFACE}/addr_gen_mode"), "1"),
    ])?;
    let interface =
        Interface { name: SERVICE_INTERFACE.into(), mac: SERVICE_MAC, mtu: network.mtu, up: true, addresses };
    inside.configure(&[interface], &BTreeMap::<IpNet, Way>::new())?;
    enslave(fabric, links, network, &name, SERVICE)
}

/// Joins the network to what is outside this node, as far as it is needed.
pub(crate) fn ensure_segment(
    machine: &mut Space,
    fabric: &mut Space,
    links: &mut Links,
    settings: &Settings,
    network: &NetworkSpec,
) -> io::Result<()> {
    match &network.segment {
        Segment::Vxlan { vni } => {
            if network.remote.is_empty() {
                return Ok(());
            }
            let local = settings.underlay.ok_or_else(|| {
                io::Error::other("this node has no address at which other nodes reach it (`underlay`)")
            })?;
            let name = names::vxlan(network.id);
            if let Some(link) = links.get(&name)
                && (link.number, link.local, link.udp) != (Some(*vni), Some(local), Some(settings.vxlan_port))
            {
                fabric.delete_link(link.index)?;
                links.remove(&name);
            }
            if !links.contains_key(&name) {
                let new = New::Vxlan { vni: *vni, local, udp: settings.vxlan_port };
                machine.create_link(&name, new, network.mtu, None, Some(fabric.descriptor()))?;
            }
            enslave(fabric, links, network, &name, OVERLAY)
        }
        Segment::Host => {
            if !settings.host {
                return Err(io::Error::other("this machine may not be the gateway of networks (setting `host`)"));
            }
            let (name, peer) = (names::host(network.id), names::machine(network.id));
            if !links.contains_key(&name) {
                let end = New::Veth { peer: &peer, namespace: Some(machine.descriptor()), mac: None };
                fabric.create_link(&name, end, network.mtu, None, None)?;
            }
            machine::address(machine, network)?;
            enslave(fabric, links, network, &name, PLAIN)
        }
        Segment::Flat { physical } => {
            let name = names::physical(network.id);
            if !links.contains_key(&name) {
                take(machine, fabric, settings, physical, &name)?;
            }
            enslave(fabric, links, network, &name, PLAIN)
        }
        Segment::Vlan { physical, tag } => {
            let name = names::vlan(network.id);
            if !links.contains_key(&name) {
                if !machine.knows_vlan() {
                    return Err(io::Error::other("this kernel has no tagged networks (module 8021q)"));
                }
                let below = machine.index(interface_of(settings, physical)?)?;
                machine.set_up(below, true)?;
                machine.create_link(
                    &name,
                    New::Vlan { below, tag: *tag },
                    network.mtu,
                    None,
                    Some(fabric.descriptor()),
                )?;
            }
            enslave(fabric, links, network, &name, PLAIN)
        }
    }
}

fn interface_of<'a>(settings: &'a Settings, physical: &str) -> io::Result<&'a str> {
    settings.physical.get(physical).map(String::as_str).ok_or_else(|| {
        io::Error::other(format!("this node is not on the physical network `{physical}` (setting `physical`)"))
    })
}

/// Takes an interface of the machine for a network.
fn take(machine: &mut Space, fabric: &Space, settings: &Settings, physical: &str, name: &str) -> io::Result<()> {
    let own = interface_of(settings, physical)?;
    let link = machine
        .link(own)?
        .ok_or_else(|| io::Error::other(format!("the machine has no interface `{own}`, or another network has it")))?;
    if machine.addresses()?.iter().any(|address| address.device == link.index) || link.master.is_some() {
        return Err(io::Error::other(format!(
            "the interface `{own}` has addresses of its own or is part of another device; a network needs one for itself"
        )));
    }
    let state = if link.up { "up" } else { "down" };
    machine.set_alias(link.index, &format!("{state} {} {own}", link.mtu))?;
    machine.move_link(link.index, name, fabric.descriptor())
}

/// Gives an interface back that was taken.
pub(crate) fn give_back(machine: &mut Space, fabric: &mut Space, link: &Link) -> io::Result<()> {
    let mut words = link.alias.splitn(3, ' ');
    let (Some(state), Some(mtu), Some(own)) = (words.next(), words.next(), words.next()) else {
        return Err(io::Error::other(format!("nobody knows what {} was called", link.name)));
    };
    fabric.set_up(link.index, false)?;
    if link.master.is_some() {
        fabric.set_master(link.index, 0)?;
    }
    if let Ok(mtu) = mtu.parse() {
        fabric.set_mtu(link.index, mtu)?;
    }
    fabric.set_alias(link.index, "")?;
    fabric.move_link(link.index, own, machine.descriptor())?;
    if state == "up" {
        let index = machine.index(own)?;
        machine.set_up(index, true)?;
    }
    Ok(())
}

/// The devices besides ports' and routers' that a network should have in the namespace of bridges.
pub(crate) fn devices(network: &NetworkSpec) -> Vec<String> {
    let mut devices = vec![names::bridge(network.id), names::service(network.id)];
    match &network.segment {
        Segment::Vxlan { .. } if network.remote.is_empty() => {}
        Segment::Vxlan { .. } => devices.push(names::vxlan(network.id)),
        Segment::Flat { .. } => devices.push(names::physical(network.id)),
        Segment::Vlan { .. } => devices.push(names::vlan(network.id)),
        Segment::Host => devices.push(names::host(network.id)),
    }
    devices
}
