//! Network devices.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVlan, InfoVxlan,
        LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, Stats64,
    },
};

use super::{Mac, Space};

/// Kinds of devices that this crate tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bridge,
    Veth,
    Tun,
    Vxlan,
    Vlan,
    Ifb,
    Other,
}

/// How a bridge treats one of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BridgePort {
    /// Whether it remembers who sent from there.
    pub(crate) learning: bool,
    /// Whether what is for nobody known goes there.
    pub(crate) flood: bool,
    /// Whether the bridge answers for those whom it knows instead of asking there.
    pub(crate) suppress: bool,
    /// Whether isolated ports do not see each other.
    pub(crate) isolated: bool,
}

/// A device as it is.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<Mac>,
    pub(crate) alias: String,
    pub(crate) master: Option<u32>,
    /// The other end of a pair, or what a tagged device sits on.
    pub(crate) below: Option<u32>,
    pub(crate) port: Option<BridgePort>,
    /// Where a VXLAN device sends from.
    pub(crate) local: Option<IpAddr>,
    /// VXLAN network identifier, or the tag of a tagged device.
    pub(crate) number: Option<u32>,
    /// UDP port of a VXLAN device.
    pub(crate) udp: Option<u16>,
    pub(crate) traffic: Option<Stats64>,
}

/// The devices of a namespace, by name.
pub(crate) type Links = BTreeMap<String, Link>;

/// What a new device is.
pub(crate) enum New<'a> {
    Bridge,
    Ifb,
    /// A pair; the other end has this name, in this namespace, with this MAC address.
    Veth {
        peer: &'a str,
        namespace: Option<BorrowedFd<'a>>,
        mac: Option<Mac>,
    },
    Vxlan {
        vni: u32,
        local: IpAddr,
        udp: u16,
    },
    Vlan {
        below: u32,
        tag: u16,
    },
}

fn message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

impl Space {
    /// All devices, without their counters.
    pub(crate) fn links(&mut self) -> io::Result<Links> {
        let mut question = LinkMessage::default();
        question.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let found = self.list(RouteNetlinkMessage::GetLink(question))?;
        Ok(found.into_iter().filter_map(link).map(|link| (link.name.clone(), link)).collect())
    }

    /// One device, with its counters.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut question = LinkMessage::default();
        question.attributes.push(LinkAttribute::IfName(name.to_owned()));
        Ok(self.get(RouteNetlinkMessage::GetLink(question))?.and_then(link))
    }

    /// The index of a device that must be there.
    pub(crate) fn index(&mut self, name: &str) -> io::Result<u32> {
        match self.link(name)? {
            Some(link) => Ok(link.index),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {name}"))),
        }
    }

    /// Makes a device, down, in this namespace or in another one, for which this one stays the outer one.
    pub(crate) fn create_link(
        &mut self,
        name: &str,
        new: New<'_>,
        mtu: u32,
        mac: Option<Mac>,
        into: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut made = LinkMessage::default();
        made.attributes.push(LinkAttribute::IfName(name.to_owned()));
        made.attributes.push(LinkAttribute::Mtu(mtu));
        made.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        made.attributes.extend(into.map(|into| LinkAttribute::NetNsFd(into.as_raw_fd())));
        let info = match new {
            New::Bridge => vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![
                    InfoBridge::MulticastSnooping(false),
                    InfoBridge::ForwardDelay(0),
                ])),
            ],
            New::Ifb => vec![LinkInfo::Kind(InfoKind::Ifb)],
            New::Veth { peer, namespace, mac } => {
                let mut other = LinkMessage::default();
                other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
                other.attributes.push(LinkAttribute::Mtu(mtu));
                other.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
                other.attributes.extend(namespace.map(|namespace| LinkAttribute::NetNsFd(namespace.as_raw_fd())));
                vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other)))]
            }
            New::Vxlan { vni, local, udp } => vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(vec![
                    InfoVxlan::Id(vni),
                    match local {
                        IpAddr::V4(local) => InfoVxlan::Local(local),
                        IpAddr::V6(local) => InfoVxlan::Local6(local),
                    },
                    InfoVxlan::Port(udp),
                    InfoVxlan::Learning(false),
                ])),
            ],
            New::Vlan { below, tag } => {
                made.attributes.push(LinkAttribute::Link(below));
                vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(tag)]))]
            }
        };
        made.attributes.push(LinkAttribute::LinkInfo(info));
        self.create(RouteNetlinkMessage::NewLink(made))
    }

    /// Whether devices with tags (IEEE 802.1Q) can be made: the kernel says of a kind that it does not know that it does
    /// not, and otherwise that something is missing.
    pub(crate) fn knows_vlan(&mut self) -> bool {
        let mut made = LinkMessage::default();
        made.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)]));
        // EOPNOTSUPP
        self.probe(RouteNetlinkMessage::NewLink(made)).is_err_and(|error| error.raw_os_error() != Some(95))
    }

    pub(crate) fn delete_link(&mut self, index: u32) -> io::Result<()> {
        self.delete(RouteNetlinkMessage::DelLink(message(index)))
    }

    fn set_link(&mut self, index: u32, attribute: LinkAttribute) -> io::Result<()> {
        let mut change = message(index);
        change.attributes.push(attribute);
        self.set(RouteNetlinkMessage::SetLink(change))
    }

    pub(crate) fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let mut change = message(index);
        change.header.change_mask = LinkFlags::Up;
        if up {
            change.header.flags = LinkFlags::Up;
        }
        self.set(RouteNetlinkMessage::SetLink(change))
    }

    pub(crate) fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.set_link(index, LinkAttribute::Mtu(mtu))
    }

    pub(crate) fn set_mac(&mut self, index: u32, mac: Mac) -> io::Result<()> {
        self.set_link(index, LinkAttribute::Address(mac.to_vec()))
    }

    pub(crate) fn set_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        self.set_link(index, LinkAttribute::IfAlias(alias.to_owned()))
    }

    /// Makes a device a port of a bridge, or of none with 0.
    pub(crate) fn set_master(&mut self, index: u32, master: u32) -> io::Result<()> {
        self.set_link(index, LinkAttribute::Controller(master))
    }

    /// Moves a device to another namespace, under a name. It is down there.
    pub(crate) fn move_link(&mut self, index: u32, name: &str, into: BorrowedFd<'_>) -> io::Result<()> {
        let mut change = message(index);
        change.attributes.push(LinkAttribute::NetNsFd(into.as_raw_fd()));
        change.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.set(RouteNetlinkMessage::SetLink(change))
    }

    pub(crate) fn set_bridge_port(&mut self, index: u32, port: BridgePort) -> io::Result<()> {
        let mut change = message(index);
        change.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::Learning(port.learning),
                InfoBridgePort::UnicastFlood(port.flood),
                InfoBridgePort::NeighSupress(port.suppress),
                InfoBridgePort::Isolated(port.isolated),
            ])),
        ]));
        self.set(RouteNetlinkMessage::NewLink(change))
    }
}

fn link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: Kind::Other,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac: None,
        alias: String::new(),
        master: None,
        below: None,
        port: None,
        local: None,
        number: None,
        udp: None,
        traffic: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(octets) => {
                link.mac = <[u8; 6]>::try_from(octets).ok();
            }
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::Link(below) => link.below = Some(below),
            LinkAttribute::Stats64(traffic) => link.traffic = Some(traffic),
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| read_info(&mut link, info)),
            _ => {}
        }
    }
    Some(link)
}

fn read_info(link: &mut Link, info: LinkInfo) {
    match info {
        LinkInfo::Kind(kind) => {
            link.kind = match kind {
                InfoKind::Bridge => Kind::Bridge,
                InfoKind::Veth => Kind::Veth,
                InfoKind::Tun => Kind::Tun,
                InfoKind::Vxlan => Kind::Vxlan,
                InfoKind::Vlan => Kind::Vlan,
                InfoKind::Ifb => Kind::Ifb,
                _ => Kind::Other,
            }
        }
        LinkInfo::Data(InfoData::Vxlan(data)) => {
            for item in data {
                match item {
                    InfoVxlan::Id(vni) => link.number = Some(vni),
                    InfoVxlan::Local(local) => link.local = Some(local.into()),
                    InfoVxlan::Local6(local) => link.local = Some(local.into()),
                    InfoVxlan::Port(udp) => link.udp = Some(udp),
                    _ => {}
                }
            }
        }
        LinkInfo::Data(InfoData::Vlan(data)) => {
            for item in data {
                if let InfoVlan::Id(tag) = item {
                    link.number = Some(tag.into());
                }
            }
        }
        LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
            let mut port = BridgePort { learning: true, flood: true, suppress: false, isolated: false };
            for item in data {
                match item {
                    InfoBridgePort::Learning(on) => port.learning = on,
                    InfoBridgePort::UnicastFlood(on) => port.flood = on,
                    InfoBridgePort::NeighSupress(on) => port.suppress = on,
                    InfoBridgePort::Isolated(on) => port.isolated = on,
                    _ => {}
                }
            }
            link.port = Some(port);
        }
        _ => {}
    }
}
