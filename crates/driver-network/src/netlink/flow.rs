//! Connections that the kernel follows, and the generation of its packet filter.

use std::{io, net::IpAddr};

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Tuple as TuplePart},
    nftables::{GenAttribute, GenMessage, NfTablesMessage},
};

use super::{Space, is_gone};

/// `CTA_ZONE`.
const ZONE: u16 = 18;

/// What the packets of a connection look like in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Its number (IANA).
    pub(crate) protocol: u8,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// Type and code of ICMP.
    pub(crate) icmp: Option<(u8, u8)>,
}

/// A connection.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// Whose it is, where several networks have the same addresses.
    pub(crate) zone: u16,
    pub(crate) mark: u32,
    /// As it began.
    pub(crate) original: Tuple,
    /// What answers look like; differs from the reverse of the original where addresses are translated.
    pub(crate) reply: Tuple,
    /// As the kernel names it.
    name: Vec<TuplePart>,
}

impl Flow {
    fn message(&self, mark: Option<u32>) -> Vec<ConntrackAttribute> {
        let mut attributes = vec![ConntrackAttribute::CtaTupleOrig(self.name.clone())];
        if self.zone != 0 {
            attributes.push(ConntrackAttribute::Other(DefaultNla::new(ZONE, self.zone.to_be_bytes().to_vec())));
        }
        attributes.extend(mark.map(ConntrackAttribute::CtaMark));
        attributes
    }

    fn family(&self) -> NetfilterProtoFamily {
        if self.original.source.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 }
    }
}

fn message(family: NetfilterProtoFamily, inner: impl Into<NetfilterMessageInner>) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

fn read_tuple(parts: &[TuplePart]) -> Option<Tuple> {
    let (mut source, mut destination, mut kind, mut code) = (None, None, None, None);
    let mut tuple = (0, 0, 0);
    for part in parts {
        match part {
            TuplePart::Ip(parts) => {
                for part in parts {
                    match part {
                        IPTuple::SourceAddress(address) => source = Some(*address),
                        IPTuple::DestinationAddress(address) => destination = Some(*address),
                        _ => {}
                    }
                }
            }
            TuplePart::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(protocol) => tuple.0 = (*protocol).into(),
                        ProtoTuple::SourcePort(port) => tuple.1 = *port,
                        ProtoTuple::DestinationPort(port) => tuple.2 = *port,
                        ProtoTuple::Other(other) => {
                            use netlink_packet_core::Nla;
                            let mut value = vec![0; other.value_len()];
                            other.emit_value(&mut value);
                            // CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMP_CODE, and those of ICMPv6.
                            match other.kind() {
                                5 | 8 => kind = value.first().copied(),
                                6 | 9 => code = value.first().copied(),
                                _ => {}
                            }
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(Tuple {
        source: source?,
        destination: destination?,
        protocol: tuple.0,
        source_port: tuple.1,
        destination_port: tuple.2,
        icmp: kind.zip(code),
    })
}

fn read(message: NetfilterMessage) -> Option<Flow> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else { return None };
    let (mut zone, mut mark, mut original, mut reply) = (0, 0, None, None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(parts) => original = Some(parts),
            ConntrackAttribute::CtaTupleReply(parts) => reply = read_tuple(&parts),
            ConntrackAttribute::CtaMark(is) => mark = is,
            ConntrackAttribute::Other(other) => {
                use netlink_packet_core::Nla;
                if other.kind() == ZONE && other.value_len() == 2 {
                    let mut value = [0; 2];
                    other.emit_value(&mut value);
                    zone = u16::from_be_bytes(value);
                }
            }
            _ => {}
        }
    }
    let name = original?;
    Some(Flow { zone, mark, original: read_tuple(&name)?, reply: reply?, name })
}

impl Space {
    /// All connections.
    pub(crate) fn flows(&mut self) -> io::Result<Vec<Flow>> {
        let question = message(NetfilterProtoFamily::Unspec, ConntrackMessage::Get(vec![]));
        Ok(self.netfilter.list(question)?.into_iter().filter_map(read).collect())
    }

    /// Writes a mark on a connection, unless it is over.
    pub(crate) fn mark_flow(&mut self, flow: &Flow, mark: u32) -> io::Result<()> {
        self.changes().one();
        let change = message(flow.family(), ConntrackMessage::New(flow.message(Some(mark))));
        ended(self.netfilter.change(change, 0))
    }

    /// Forgets a connection.
    pub(crate) fn delete_flow(&mut self, flow: &Flow) -> io::Result<()> {
        self.changes().one();
        let change = message(flow.family(), ConntrackMessage::Delete(flow.message(None)));
        ended(self.netfilter.change(change, 0))
    }

    /// The generation of the packet filter: another one after each change of it, by whomever.
    pub(crate) fn generation(&mut self) -> io::Result<u32> {
        let question =
            message(NetfilterProtoFamily::Unspec, NfTablesMessage::GetGen(GenMessage { attributes: vec![] }));
        let answer = self.netfilter.get(question)?;
        let Some(NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(answer))) = answer.map(|answer| answer.inner)
        else {
            return Err(io::Error::other("the kernel does not say the generation of its packet filter"));
        };
        answer
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                GenAttribute::Id(generation) => Some(*generation),
                _ => None,
            })
            .ok_or_else(|| io::Error::other("the kernel does not say the generation of its packet filter"))
    }
}

fn ended(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}
