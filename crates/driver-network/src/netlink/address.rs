//! Addresses of devices.

use std::{io, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
};

use super::Space;

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) device: u32,
    /// The address, with the length of its range's prefix.
    pub(crate) address: IpNet,
}

impl Address {
    fn message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        let address = self.address.addr();
        message.header.index = self.device;
        message.header.prefix_len = self.address.prefix_len();
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        match self.address {
            IpNet::V4(range) => {
                message.header.family = AddressFamily::Inet;
                if range.prefix_len() < 31 {
                    message.attributes.push(AddressAttribute::Broadcast(range.broadcast()));
                }
            }
            // The control plane gives no address out twice; asking around takes a second.
            IpNet::V6(_) => {
                message.header.family = AddressFamily::Inet6;
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        message
    }
}

impl Space {
    /// All addresses, without those of IPv6 that a device gave itself on its link.
    pub(crate) fn addresses(&mut self) -> io::Result<Vec<Address>> {
        let mut found = vec![];
        for answer in self.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
            let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
            let mut address = None;
            let mut local = None;
            let mut lasting = false;
            for attribute in message.attributes {
                match attribute {
                    AddressAttribute::Address(is) => address = Some(is),
                    AddressAttribute::Local(is) => local = Some(is),
                    AddressAttribute::Flags(flags) => lasting = flags.contains(AddressFlags::Nodad),
                    _ => {}
                }
            }
            let Some(is) = local.or(address) else { continue };
            if matches!(is, IpAddr::V6(is) if is.is_unicast_link_local()) && !lasting {
                continue;
            }
            if let Ok(address) = IpNet::new(is, message.header.prefix_len) {
                found.push(Address { device: message.header.index, address });
            }
        }
        Ok(found)
    }

    pub(crate) fn add_address(&mut self, address: &Address) -> io::Result<()> {
        self.replace(RouteNetlinkMessage::NewAddress(address.message()))
    }

    pub(crate) fn delete_address(&mut self, address: &Address) -> io::Result<()> {
        self.delete(RouteNetlinkMessage::DelAddress(address.message()))
    }
}
