//! Routes.

use std::{io, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::Space;

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) destination: IpNet,
    pub(crate) next_hop: Option<IpAddr>,
    pub(crate) device: Option<u32>,
}

fn address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

impl Route {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family =
            if self.destination.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        header.destination_prefix_length = self.destination.prefix_len();
        header.table = RouteHeader::RT_TABLE_MAIN;
        header.protocol = RouteProtocol::Static;
        header.kind = RouteType::Unicast;
        header.scope = match self.next_hop {
            None if self.destination.addr().is_ipv4() => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        if self.destination.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(address(self.destination.network())));
        }
        message.attributes.extend(self.next_hop.map(|hop| RouteAttribute::Gateway(address(hop))));
        message.attributes.extend(self.device.map(RouteAttribute::Oif));
        message
    }
}

impl Space {
    /// The routes that somebody has set: not those that came with addresses.
    pub(crate) fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut found = vec![];
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            for answer in self.list(RouteNetlinkMessage::GetRoute(question))? {
                let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
                let header = &message.header;
                if header.table != RouteHeader::RT_TABLE_MAIN
                    || header.protocol != RouteProtocol::Static
                    || header.address_family != family
                {
                    continue;
                }
                let any: IpAddr = if family == AddressFamily::Inet { [0_u8; 4].into() } else { [0_u8; 16].into() };
                let mut route = (any, None, None);
                for attribute in &message.attributes {
                    match attribute {
                        RouteAttribute::Destination(RouteAddress::Inet(to)) => route.0 = (*to).into(),
                        RouteAttribute::Destination(RouteAddress::Inet6(to)) => route.0 = (*to).into(),
                        RouteAttribute::Gateway(RouteAddress::Inet(hop)) => route.1 = Some((*hop).into()),
                        RouteAttribute::Gateway(RouteAddress::Inet6(hop)) => route.1 = Some((*hop).into()),
                        RouteAttribute::Oif(device) => route.2 = Some(*device),
                        _ => {}
                    }
                }
                if let Ok(destination) = IpNet::new(route.0, header.destination_prefix_length) {
                    found.push(Route { destination, next_hop: route.1, device: route.2 });
                }
            }
        }
        Ok(found)
    }

    pub(crate) fn add_route(&mut self, route: &Route) -> io::Result<()> {
        self.replace(RouteNetlinkMessage::NewRoute(route.message()))
    }

    pub(crate) fn delete_route(&mut self, route: &Route) -> io::Result<()> {
        self.delete(RouteNetlinkMessage::DelRoute(route.message()))
    }
}
