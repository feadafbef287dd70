//! Who is behind which port of a bridge, and on which node: written by us, learned by nobody where it can be known.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use nephos_driver::network::{NetworkPlan, NetworkSpec, Segment};

use crate::{
    filter::link_local,
    names::{self, SERVICE_MAC},
    netlink::{Forwarding, Links, Mac, Neighbour, Space},
    network::METADATA,
};

/// What all nodes are meant by.
const EVERYBODY: Mac = [0; 6];

/// Entries of tables as they should be.
#[derive(Default)]
struct Wanted {
    forwarding: BTreeSet<Forwarding>,
    neighbours: BTreeMap<(u32, IpAddr), Mac>,
}

impl Wanted {
    fn local(&mut self, links: &Links, device: &str, mac: Mac) {
        if let Some(link) = links.get(device).filter(|link| link.master.is_some()) {
            self.forwarding.insert(Forwarding { device: link.index, mac, at: None });
        }
    }

    fn network(&mut self, links: &Links, network: &NetworkSpec) {
        self.local(links, &names::service(network.id), SERVICE_MAC);
        let Some(overlay) = links.get(&names::vxlan(network.id)) else { return };
        for port in &network.remote {
            let mac = port.mac.bytes();
            self.forwarding.extend([
                Forwarding { device: overlay.index, mac, at: None },
                Forwarding { device: overlay.index, mac, at: Some(port.at) },
                Forwarding { device: overlay.index, mac: EVERYBODY, at: Some(port.at) },
            ]);
        }
        let Some(bridge) = links.get(&names::bridge(network.id)) else { return };
        let mut known = |address, mac| self.neighbours.insert((bridge.index, address), mac);
        for port in &network.remote {
            for address in &port.addresses {
                known(*address, port.mac.bytes());
            }
            known(link_local(port.mac.bytes()).into(), port.mac.bytes());
        }
        for address in network.subnets.iter().filter_map(|subnet| subnet.service).chain(METADATA) {
            known(address, SERVICE_MAC);
        }
    }

    fn of(plan: &NetworkPlan, links: &Links) -> Self {
        let mut wanted = Self::default();
        for network in &plan.networks {
            wanted.network(links, network);
        }
        // Only where there are other nodes does it matter who is asked.
        let overlaid: BTreeMap<_, _> = plan
            .networks
            .iter()
            .filter(|network| {
                matches!(network.segment, Segment::Vxlan { .. }) && links.contains_key(&names::vxlan(network.id))
            })
            .filter_map(|network| Some((network.id, links.get(&names::bridge(network.id))?.index)))
            .collect();
        for port in &plan.ports {
            let mac = port.mac.bytes();
            wanted.local(links, &names::port(port.id), mac);
            if let Some(bridge) = overlaid.get(&port.network) {
                let own = port.addresses.iter().map(|address| address.address);
                for address in own.chain([link_local(mac).into()]) {
                    wanted.neighbours.insert((*bridge, address), mac);
                }
            }
        }
        let gateways =
            plan.routers.iter().filter_map(|router| router.gateway.as_ref().map(|gateway| &gateway.interface));
        for interface in plan.routers.iter().flat_map(|router| &router.interfaces).chain(gateways) {
            let mac = interface.mac.bytes();
            wanted.local(links, &names::router_port(interface.port), mac);
            if let Some(bridge) = overlaid.get(&interface.network) {
                let own = interface.addresses.iter().map(ipnet::IpNet::addr);
                for address in own.chain([link_local(mac).into()]) {
                    wanted.neighbours.insert((*bridge, address), mac);
                }
            }
        }
        wanted
    }
}

/// Makes the tables be as planned. Returns of which devices something could not be written, and why.
pub(crate) fn ensure(fabric: &mut Space, links: &Links, plan: &NetworkPlan) -> io::Result<BTreeMap<u32, io::Error>> {
    let mut refused = BTreeMap::new();
    let mut note =
        |device, result: io::Result<()>| drop(result.map_err(|error| refused.entry(device).or_insert(error)));
    let wanted = Wanted::of(plan, links);
    let present: BTreeSet<Forwarding> = fabric.forwarding()?.into_iter().collect();
    let destinations: BTreeSet<(u32, Mac)> =
        wanted.forwarding.iter().filter(|entry| entry.at.is_some()).map(|entry| (entry.device, entry.mac)).collect();
    for gone in present.difference(&wanted.forwarding) {
        // What goes elsewhere now is replaced in one step.
        let replaced = gone.at.is_some() && gone.mac != EVERYBODY && destinations.contains(&(gone.device, gone.mac));
        if !replaced {
            note(gone.device, fabric.delete_forwarding(gone));
        }
    }
    for come in wanted.forwarding.difference(&present) {
        note(come.device, fabric.add_forwarding(come));
    }
    let present: BTreeMap<(u32, IpAddr), Mac> =
        fabric.neighbours()?.into_iter().map(|entry| ((entry.device, entry.address), entry.mac)).collect();
    for ((device, address), mac) in &present {
        if !wanted.neighbours.contains_key(&(*device, *address)) {
            let entry = Neighbour { device: *device, address: *address, mac: *mac };
            note(*device, fabric.delete_neighbour(&entry));
        }
    }
    for ((device, address), mac) in wanted.neighbours {
        if present.get(&(device, address)) != Some(&mac) {
            note(device, fabric.add_neighbour(&Neighbour { device, address, mac }));
        }
    }
    Ok(refused)
}
