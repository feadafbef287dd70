//! The inside of a namespace: an interface with addresses and routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use ipnet::IpNet;
use serde::Serialize;

use crate::netlink::{Address, Mac, Route, Space};

/// What an interface should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) addresses: BTreeSet<IpNet>,
}

/// A route that should be there: by a neighbour, or straight by an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Way {
    By(IpAddr),
    Straight(String),
}

impl Space {
    /// Makes interfaces and routes of this namespace be so. Interfaces have to be there; others are left alone, without
    /// addresses.
    pub(crate) fn configure(&mut self, interfaces: &[Interface], routes: &BTreeMap<IpNet, Way>) -> io::Result<()> {
        let links = self.links()?;
        let present: BTreeSet<Address> = self.addresses()?.into_iter().collect();
        let mut wanted = BTreeSet::new();
        let mut devices = BTreeSet::new();
        let mut raise = vec![];
        for interface in interfaces {
            let link = links.get(&interface.name).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {}", interface.name))
            })?;
            devices.insert(link.index);
            if link.mac != Some(interface.mac) {
                self.set_mac(link.index, interface.mac)?;
            }
            if link.mtu != interface.mtu {
                self.set_mtu(link.index, interface.mtu)?;
            }
            if link.up != interface.up {
                raise.push((link.index, interface.up));
            }
            wanted.extend(interface.addresses.iter().map(|address| Address { device: link.index, address: *address }));
        }
        if let Some(loopback) = links.get("lo").filter(|link| !link.up) {
            self.set_up(loopback.index, true)?;
        }
        for gone in present.difference(&wanted).filter(|address| devices.contains(&address.device)) {
            self.delete_address(gone)?;
        }
        let mut grown = BTreeSet::new();
        for come in wanted.difference(&present) {
            self.add_address(come)?;
            grown.insert(come.device);
        }
        // Addresses first: whoever comes up tells its neighbours all of them.
        for (device, up) in &raise {
            self.set_up(*device, *up)?;
        }
        // Who is up already tells its neighbours of new addresses when its MAC address is set, to whatever.
        for interface in interfaces {
            if let Some(link) = links.get(&interface.name).filter(|link| link.up && grown.contains(&link.index)) {
                self.set_mac(link.index, interface.mac)?;
            }
        }
        let up = interfaces.iter().any(|interface| interface.up);
        let nothing = BTreeMap::new();
        self.configure_routes(if up { routes } else { &nothing })
    }

    fn configure_routes(&mut self, routes: &BTreeMap<IpNet, Way>) -> io::Result<()> {
        let present = self.routes()?;
        let links = self.links()?;
        let fits = |route: &Route, way: &Way| match way {
            Way::By(hop) => route.next_hop == Some(*hop),
            Way::Straight(name) => route.next_hop.is_none() && route.device == links.get(name).map(|link| link.index),
        };
        for route in &present {
            // One of another way to the same place is replaced.
            if !routes.contains_key(&route.destination) {
                self.delete_route(route)?;
            }
        }
        for (destination, way) in routes {
            if present.iter().any(|route| route.destination == *destination && fits(route, way)) {
                continue;
            }
            let route = match way {
                Way::By(hop) => Route { destination: *destination, next_hop: Some(*hop), device: None },
                Way::Straight(name) => {
                    let device = links.get(name).map(|link| link.index);
                    Route { destination: *destination, next_hop: None, device }
                }
            };
            self.add_route(&route)?;
        }
        Ok(())
    }
}
