//! The ports that servers are made with, and what becomes of them.

use std::sync::Arc;

use ipnet::IpNet;
use nephos_driver::network::StaticRoute;
use nephos_node_api::metadata::{AddressMetadata, AddressMode, InterfaceMetadata, SecurityGroupMetadata};
use nephos_ops::{
    compute::ServerAddress,
    network::{Host, Ipv6Mode, Route},
};
use nephos_store::{CommitError, Query, Record, Transaction};
use nephos_types::{Error, NetworkId, PortId, Reference, Result, SecurityGroupId, ServerId};

use super::{
    Networks,
    kinds::{BY_OPEN, BY_SERVER, Fixed, Network, Nic, Owner, Port, SecurityGroup, Subnet, project_of},
    ports::{Wish, again, draft, end, groups},
};
use crate::{resolve::name_of, session::Session};

/// The most connections of a server.
const MOST: usize = 8;

impl Networks {
    /// What a server is told of its interfaces.
    pub(crate) fn interfaces(&self, nics: &[Nic]) -> Vec<InterfaceMetadata> {
        nics.iter().filter_map(|nic| self.interface(nic)).collect()
    }

    fn interface(&self, nic: &Nic) -> Option<InterfaceMetadata> {
        let port = self.store.get::<Port>(nic.port)?;
        let address = |fixed: &Fixed| {
            let subnet = self.store.get::<Subnet>(fixed.subnet)?;
            let body = &subnet.body;
            let mode = match (body.dhcp, body.ipv6_mode) {
                (false, _) => AddressMode::Static,
                (true, None | Some(Ipv6Mode::DhcpStateful)) => AddressMode::Dhcp,
                (true, Some(Ipv6Mode::Slaac)) => AddressMode::Slaac,
                (true, Some(Ipv6Mode::DhcpStateless)) => AddressMode::DhcpStateless,
            };
            let servers = match body.dns_servers.as_slice() {
                [] => body.service.into_iter().collect(),
                servers => servers.to_vec(),
            };
            let route = |route: &Route| StaticRoute { destination: route.destination, next_hop: route.next_hop };
            Some(AddressMetadata {
                subnet: fixed.subnet,
                address: IpNet::new(fixed.address, body.cidr.net().prefix_len()).ok()?,
                mode,
                gateway: body.gateway,
                routes: body.host_routes.iter().map(route).collect(),
                dns_servers: servers,
            })
        };
        let group = |id: &SecurityGroupId| {
            let name = self.store.get::<SecurityGroup>(*id)?.meta.name.clone()?;
            Some(SecurityGroupMetadata { id: *id, name: name.to_string() })
        };
        Some(InterfaceMetadata {
            port: nic.port,
            network: nic.network,
            mac: nic.mac,
            mtu: nic.mtu,
            addresses: port.body.addresses.iter().filter_map(address).collect(),
            public_addresses: vec![],
            security_groups: port.body.security_groups.iter().filter_map(group).collect(),
        })
    }

    /// What the host names of a network's servers end with.
    pub(crate) fn domain(&self, network: NetworkId) -> Option<String> {
        Some(self.store.get::<Network>(network)?.body.dns_domain.clone())
    }

    /// The addresses of these ports.
    pub(crate) fn addresses(&self, ports: impl Iterator<Item = PortId>) -> Vec<ServerAddress> {
        let mut addresses = vec![];
        for port in ports.filter_map(|port| self.store.get::<Port>(port)) {
            let network = self.store.get::<Network>(port.body.network);
            let Some(name) = network.and_then(|network| network.meta.name.clone()) else { continue };
            addresses.extend(port.body.addresses.iter().map(|fixed| ServerAddress {
                network: port.body.network,
                network_name: name.clone(),
                port: port.meta.id,
                address: Host(fixed.address),
            }));
        }
        addresses
    }
}

/// How a server is connected to one network.
#[derive(Clone, Debug)]
pub(crate) enum Connection {
    /// By a new port on this network.
    Network(Reference),
    /// By this port.
    Port(Reference),
}

/// How a new server is to be connected: as asked for; or to the project's own network, if that is `wanted`.
pub(crate) fn connections(
    session: &Session,
    networks: Option<&[Reference]>,
    ports: &[Reference],
    wanted: impl FnOnce() -> bool,
) -> Result<Vec<Connection>> {
    let by_network = match networks {
        Some(networks) => networks.to_vec(),
        None if ports.is_empty() && wanted() => own_network(session)?.into_iter().collect(),
        None => vec![],
    };
    let by_network = by_network.into_iter().map(Connection::Network);
    Ok(by_network.chain(ports.iter().cloned().map(Connection::Port)).collect())
}

/// The network that servers of the project are connected to when nobody says otherwise: its only one with addresses; with
/// none, one that is shared with all.
fn own_network(session: &Session) -> Result<Option<Reference>> {
    let store = session.store();
    let usable = |query: Query| -> Vec<Arc<Record<Network>>> {
        let all = store.list::<Network>(&query).items;
        all.into_iter().filter(|network| !network.body.subnets.is_empty() && !network.body.external).collect()
    };
    let mut found = usable(Query::all().project(session.project()?));
    if found.is_empty() {
        found = usable(Query::all().index(BY_OPEN, "yes"));
    }
    match found.as_slice() {
        [] => Ok(None),
        [network] => Ok(Some(network.meta.id.to_string().parse()?)),
        several => {
            let names: Vec<String> =
                several.iter().filter_map(|network| Some(network.meta.name.as_ref()?.to_string())).collect();
            Err(Error::invalid("which_network", "There are several networks: say which the server is to be on")
                .detail(names.join(", "))
                .next("name it", Some(format!("--network {}", names.first().map_or("NETWORK", String::as_str)))))
        }
    }
}

/// Whether the creation of a server collided with somebody who was given the same address at the same moment.
pub(crate) fn collided(error: &CommitError) -> bool {
    again(error, true)
}

/// Connects a new server, in the transaction that makes it: its ports, in order.
pub(crate) fn connect(
    networks: &Networks,
    session: &Session,
    mut transaction: Transaction,
    server: ServerId,
    connections: &[Connection],
    groups_wanted: Option<&[Reference]>,
) -> Result<(Transaction, Vec<Nic>)> {
    let project = session.project()?;
    if connections.len() > MOST {
        return Err(
            Error::invalid("too_many_ports", "The server has too many connections").detail(format!("at most {MOST}"))
        );
    }
    let mut nics: Vec<Nic> = vec![];
    let mut security_groups: Option<Vec<SecurityGroupId>> = None;
    for connection in connections {
        match connection {
            Connection::Network(reference) => {
                let network = session.find::<Network>(reference)?;
                if network.body.external && !network.body.shared && !session.sees(project_of(&network)) {
                    return Err(Error::invalid(
                        "external_network",
                        "Servers are not connected to a network that leads outside",
                    )
                    .detail(format!("{} is for routers and floating IPs", name_of(&network)?))
                    .next("connect it to a network of the project, and give it a floating IP", None));
                }
                if network.body.subnets.is_empty() {
                    return Err(Error::invalid("network_without_subnet", "The network has no addresses to give")
                        .detail(name_of(&network)?.to_string())
                        .next(
                            "give it some",
                            Some("nephos subnet create NAME --network NETWORK --cidr RANGE".to_owned()),
                        ));
                }
                if security_groups.is_none() && network.body.port_security {
                    let (next, ids) = groups(session, transaction, project, groups_wanted)?;
                    transaction = next;
                    security_groups = Some(ids);
                }
                let wish = Wish {
                    security_groups: security_groups.clone().unwrap_or_default(),
                    owner: Some(Owner::Server { server, together: true }),
                    ..Wish::default()
                };
                let id = PortId::new();
                let (next, body) = draft(networks, transaction, id, project, &network, wish)?;
                transaction = next;
                nics.push(Nic { port: id, network: network.meta.id, mac: body.mac, mtu: network.body.mtu });
            }
            Connection::Port(reference) => {
                let record = session.find::<Port>(reference)?;
                let free = record.body.owner.is_none() && record.meta.project == Some(project);
                if !free || nics.iter().any(|nic| nic.port == record.meta.id) {
                    return Err(
                        Error::conflict("port_attached", "The port is in use").detail(record.meta.id.to_string())
                    );
                }
                let mut body = record.body.clone();
                body.owner = Some(Owner::Server { server, together: false });
                transaction = transaction.update(&record, body.clone());
                let network = networks.store.get::<Network>(body.network);
                let network = network.ok_or_else(|| Error::not_found("network", body.network))?;
                nics.push(Nic { port: record.meta.id, network: body.network, mac: body.mac, mtu: network.body.mtu });
            }
        }
    }
    Ok((transaction, nics))
}

/// Disconnects a server, in the transaction that ends it: ports that were made with it end, others are free.
pub(crate) fn disconnect(networks: &Networks, mut transaction: Transaction, server: ServerId) -> Transaction {
    for record in networks.store.list::<Port>(&Query::all().index(BY_SERVER, server)).items {
        transaction = match record.body.owner {
            Some(Owner::Server { together: false, .. }) => {
                transaction.save(record.edit().modify(|port| port.owner = None))
            }
            _ => end(transaction, &record),
        };
    }
    transaction
}
