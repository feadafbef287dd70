//! Who is behind which address: forwarding entries of bridges and VXLAN devices, and neighbours.

use std::{io, net::IpAddr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use super::{Mac, Space};

/// An entry of a bridge's or a VXLAN device's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Forwarding {
    /// The port that frames go to, or the VXLAN device whose table it is.
    pub(crate) device: u32,
    pub(crate) mac: Mac,
    /// In the table of a VXLAN device: the node; `None` in the table of a bridge.
    pub(crate) at: Option<IpAddr>,
}

/// An address and whom it belongs to, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Neighbour {
    pub(crate) device: u32,
    pub(crate) address: IpAddr,
    pub(crate) mac: Mac,
}

fn address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

fn read_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        NeighbourAddress::Other(octets) => match octets.as_slice() {
            octets if octets.len() == 4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
            octets => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        },
        _ => None,
    }
}

impl Forwarding {
    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.device;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(self.mac.to_vec()));
        match self.at {
            Some(at) => {
                message.header.state = NeighbourState::Permanent;
                message.header.flags = NeighbourFlags::Own;
                message.attributes.push(NeighbourAttribute::Destination(address(at)));
            }
            // Sticky: nobody takes a MAC address over by sending with it.
            None => {
                message.header.state = NeighbourState::Noarp;
                message.header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
            }
        }
        message
    }
}

impl Neighbour {
    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = if self.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.ifindex = self.device;
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(address(self.address)));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(self.mac.to_vec()));
        message
    }
}

fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(octets) => <[u8; 6]>::try_from(octets.as_slice()).ok(),
        _ => None,
    })
}

fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(found) => read_address(found),
        _ => None,
    })
}

impl Space {
    /// All forwarding entries that somebody has set: not those that a bridge has learned, nor its own.
    pub(crate) fn forwarding(&mut self) -> io::Result<Vec<Forwarding>> {
        let mut question = NeighbourMessage::default();
        question.header.family = AddressFamily::Bridge;
        let mut found = vec![];
        for answer in self.list(RouteNetlinkMessage::GetNeighbour(question))? {
            let RouteNetlinkMessage::NewNeighbour(message) = answer else { continue };
            let Some(mac) = mac(&message) else { continue };
            let of_bridge = message.attributes.iter().any(|item| matches!(item, NeighbourAttribute::Controller(_)));
            let device = message.header.ifindex;
            match destination(&message) {
                Some(at) => found.push(Forwarding { device, mac, at: Some(at) }),
                None if of_bridge && message.header.state == NeighbourState::Noarp => {
                    found.push(Forwarding { device, mac, at: None });
                }
                None => {}
            }
        }
        Ok(found)
    }

    pub(crate) fn add_forwarding(&mut self, entry: &Forwarding) -> io::Result<()> {
        // Several nodes may get what is for everybody.
        if entry.at.is_some() && entry.mac == [0; 6] {
            self.append(RouteNetlinkMessage::NewNeighbour(entry.message()))
        } else {
            self.replace(RouteNetlinkMessage::NewNeighbour(entry.message()))
        }
    }

    pub(crate) fn delete_forwarding(&mut self, entry: &Forwarding) -> io::Result<()> {
        self.delete(RouteNetlinkMessage::DelNeighbour(entry.message()))
    }

    /// All neighbours that somebody has set for good.
    pub(crate) fn neighbours(&mut self) -> io::Result<Vec<Neighbour>> {
        let mut found = vec![];
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = NeighbourMessage::default();
            question.header.family = family;
            for answer in self.list(RouteNetlinkMessage::GetNeighbour(question))? {
                let RouteNetlinkMessage::NewNeighbour(message) = answer else { continue };
                if message.header.state != NeighbourState::Permanent {
                    continue;
                }
                if let (Some(address), Some(mac)) = (destination(&message), mac(&message)) {
                    found.push(Neighbour { device: message.header.ifindex, address, mac });
                }
            }
        }
        Ok(found)
    }

    pub(crate) fn add_neighbour(&mut self, entry: &Neighbour) -> io::Result<()> {
        self.replace(RouteNetlinkMessage::NewNeighbour(entry.message()))
    }

    pub(crate) fn delete_neighbour(&mut self, entry: &Neighbour) -> io::Result<()> {
        self.delete(RouteNetlinkMessage::DelNeighbour(entry.message()))
    }
}
