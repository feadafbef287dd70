//! Routers: a namespace each, joined by a pair of devices to the bridge of each network that it connects.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::AsFd,
    path::Path,
};

use ipnet::IpNet;
use nephos_driver::network::{NetworkSpec, RouterInterface, RouterSpec};
use nephos_host::netns;
use nephos_types::{NetworkId, RouterId};

use crate::{
    filter::{self, Committed},
    interface::{Interface, Way},
    names::{self, Places},
    netlink::{Links, New, Space},
    network,
    translation::{self, is_stale},
};

/// What this process knows of routers' packet filters.
#[derive(Default)]
pub(crate) struct Routers(BTreeMap<RouterId, (u64, Committed)>);

/// All interfaces of a router, the one to the outside among them.
pub(crate) fn interfaces(router: &RouterSpec) -> impl Iterator<Item = &RouterInterface> {
    router.interfaces.iter().chain(router.gateway.iter().map(|gateway| &gateway.interface))
}

fn any(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

/// Where a router sends what.
fn routes(router: &RouterSpec) -> BTreeMap<IpNet, Way> {
    let mut routes = BTreeMap::new();
    for route in &router.routes {
        routes.insert(route.destination.net(), Way::By(route.next_hop));
    }
    for hop in router.gateway.iter().flat_map(|gateway| &gateway.next_hops) {
        routes.entry(any(*hop)).or_insert(Way::By(*hop));
    }
    routes
}

impl Routers {
    /// Makes a router be there as planned.
    pub(crate) fn ensure(
        &mut self,
        fabric: &mut Space,
        links: &mut Links,
        places: &Places,
        nft: &Path,
        networks: &BTreeMap<NetworkId, &NetworkSpec>,
        router: &RouterSpec,
    ) -> io::Result<()> {
        let path = places.router(router.id);
        let changes = &fabric.changes().clone();
        if !netns::is_kept(&path) {
            for interface in interfaces(router) {
                if let Some(link) = links.remove(&names::router_port(interface.port)) {
                    fabric.delete_link(link.index)?;
                }
            }
            changes.one();
            netns::create(&path)?;
        }
        let namespace = netns::open(&path)?;
        let number = netns::number(&namespace)?;
        let mut space = Space::open(&path, changes)?;
        space.sysctl(&[
            ("ipv4/ip_forward".into(), "1"),
            ("ipv6/conf/all/forwarding".into(), "1"),
            ("ipv6/conf/default/accept_ra".into(), "0"),
            // Who comes up, or gets another address, says so to its neighbours.
            ("ipv4/conf/default/arp_notify".into(), "1"),
            ("ipv6/conf/default/ndisc_notify".into(), "1"),
            ("ipv4/conf/all/rp_filter".into(), "0"),
            ("ipv4/conf/default/rp_filter".into(), "0"),
            ("ipv4/conf/all/send_redirects".into(), "0"),
            ("ipv4/conf/default/send_redirects".into(), "0"),
        ])?;
        let mut inside = vec![];
        for interface in interfaces(router) {
            let network = networks
                .get(&interface.network)
                .ok_or_else(|| io::Error::other("the plan does not have a network that it connects"))?;
            let name = names::router_port(interface.port);
            let peer = names::router_interface(interface.port);
            if !links.contains_key(&name) {
                let end =
                    New::Veth { peer: &peer, namespace: Some(namespace.as_fd()), mac: Some(interface.mac.bytes()) };
                fabric.create_link(&name, end, network.mtu, None, None)?;
            }
            inside.push(Interface {
                name: peer,
                mac: interface.mac.bytes(),
                mtu: network.mtu,
                up: router.up,
                addresses: interface.addresses.iter().copied().collect(),
            });
        }
        if let (Some(outside), true) = (inside.last_mut(), router.gateway.is_some()) {
            let known: BTreeSet<IpAddr> = outside.addresses.iter().map(IpNet::addr).collect();
            let floating = router.floating_ips.iter().map(|floating| floating.external);
            outside.addresses.extend(floating.filter(|address| !known.contains(address)).map(IpNet::from));
        }
        let kept = self.0.remove(&router.id).filter(|(of, _)| *of == number);
        let (_, mut committed) = kept.unwrap_or_default();
        let known = committed.holds(&mut space)?;
        let changed = filter::commit(&mut space, nft, &mut committed, translation::rules(router))?;
        space.configure(&inside, &routes(router))?;
        for interface in interfaces(router) {
            if let Some(network) = networks.get(&interface.network) {
                network::enslave_plain(fabric, links, network, &names::router_port(interface.port))?;
            }
        }
        if !known || changed {
            for flow in space.flows()?.iter().filter(|flow| is_stale(router, flow)) {
                space.delete_flow(flow)?;
            }
        }
        self.0.insert(router.id, (number, committed));
        Ok(())
    }

    /// Forgets what is not planned.
    pub(crate) fn keep(&mut self, planned: &BTreeSet<RouterId>) {
        self.0.retain(|router, _| planned.contains(router));
    }
}
