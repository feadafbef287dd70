//! What people may ask of subnets.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use nephos_ops::network::{
    self as ops, AddressRange, CreateSubnet, DeleteSubnet, Host, Ipv6Mode, ListSubnets, ShowSubnet, UpdateSubnet,
};
use nephos_store::{Bound, CommitError, Draft, Query, Record, Store, Transaction};
use nephos_types::{Cidr, Error, NetworkId, Page, PageRequest, Result, SubnetId};

use super::{
    Networks, address,
    kinds::{BY_NETWORK, Network, Subnet, project_of},
    networks::{explain, owned},
    quota,
};
use crate::{
    Handlers, Session,
    idempotency::Made,
    resolve::{Named, name_claim, name_of},
    session::Visible,
};

/// The most subnets of a network.
const MOST: usize = 32;

pub(super) fn register(handlers: &mut Handlers, networks: &Arc<Networks>) {
    handlers.handle_creation(networks, create, |networks: Arc<Networks>, _: Session, made: Made| async move {
        networks.subnet_shown(made.id::<Subnet>()?)
    });
    handlers.handle(networks, list);
    handlers.handle(networks, show);
    handlers.handle(networks, update);
    handlers.handle(networks, delete);
}

impl Networks {
    fn subnet_shown(&self, id: SubnetId) -> Result<ops::Subnet> {
        self.subnet_view(&*self.store.get::<Subnet>(id).ok_or_else(|| Error::not_found("subnet", id))?)
    }

    fn subnet_view(&self, record: &Record<Subnet>) -> Result<ops::Subnet> {
        let body = &record.body;
        Ok(ops::Subnet {
            id: record.meta.id,
            name: name_of(record)?,
            project: project_of(record),
            network: body.network,
            cidr: body.cidr,
            gateway: body.gateway.map(Host),
            pools: body.pools.clone(),
            dhcp: body.dhcp,
            service: body.service.map(Host),
            dns_servers: body.dns_servers.iter().copied().map(Host).collect(),
            host_routes: body.host_routes.clone(),
            ipv6_mode: body.ipv6_mode,
            used: u64::try_from(self.store.counter(&address::used(record.meta.id))).unwrap_or(0),
            labels: record.meta.labels.clone(),
            created_at: record.meta.created_at,
            updated_at: record.meta.updated_at,
        })
    }
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(|next| Ipv4Addr::from(next).into()),
        IpAddr::V6(address) => u128::from(address).checked_add(1).map(|next| Ipv6Addr::from(next).into()),
    }
}

fn previous(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_sub(1).map(|previous| Ipv4Addr::from(previous).into()),
        IpAddr::V6(address) => u128::from(address).checked_sub(1).map(|previous| Ipv6Addr::from(previous).into()),
    }
}

/// The lowest and the highest address of a host.
fn hosts(net: IpNet) -> Option<(IpAddr, IpAddr)> {
    let mut ends = (net.network(), net.broadcast());
    if !address::is_for_hosts(net, ends.0) {
        ends.0 = next(ends.0)?;
    }
    if !address::is_for_hosts(net, ends.1) {
        ends.1 = previous(ends.1)?;
    }
    (ends.0 <= ends.1).then_some(ends)
}

/// All addresses of hosts but for one.
fn all_but(net: IpNet, gateway: Option<IpAddr>) -> Vec<AddressRange> {
    let Some((first, last)) = hosts(net) else { return vec![] };
    let Some(gateway) = gateway.filter(|gateway| net.contains(gateway)) else {
        return AddressRange::new(first, last).into_iter().collect();
    };
    let below = previous(gateway).and_then(|end| AddressRange::new(first, end));
    let above = next(gateway).and_then(|start| AddressRange::new(start, last));
    below.into_iter().chain(above).collect()
}

fn invalid(field: &str, why: impl Into<String>) -> Error {
    Error::invalid("invalid_subnet", "Such a subnet cannot be made").reason(field, "value", why.into())
}

fn check_cidr(cidr: Cidr) -> Result<()> {
    let net = cidr.net();
    let unusable = match net.network() {
        IpAddr::V4(address) => {
            address.is_multicast()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.octets()[0] >= 240
        }
        IpAddr::V6(address) => {
            address.is_multicast()
                || address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local()
        }
    };
    if unusable {
        return Err(invalid("cidr", format!("{cidr} is not a range of addresses for hosts")));
    }
    match net {
        IpNet::V4(net) if net.prefix_len() < 8 => Err(invalid("cidr", "a prefix of at least 8 bits is needed")),
        IpNet::V6(net) if net.prefix_len() < 32 => Err(invalid("cidr", "a prefix of at least 32 bits is needed")),
        _ => Ok(()),
    }
}

/// A range is one of the hosts of a subnet, not over another one, and without its gateway.
fn check_pools(cidr: Cidr, gateway: Option<IpAddr>, pools: &[AddressRange]) -> Result<()> {
    for (place, pool) in pools.iter().enumerate() {
        let ends = [pool.first(), pool.last()];
        if !ends.iter().all(|end| address::is_for_hosts(cidr.net(), *end)) {
            return Err(invalid("pools", format!("{pool} goes beyond the hosts of {cidr}")));
        }
        if gateway.is_some_and(|gateway| pool.contains(gateway)) {
            return Err(invalid("pools", format!("{pool} has the gateway in it")));
        }
        if let Some(other) = pools[..place].iter().find(|other| other.overlaps(*pool)) {
            return Err(invalid("pools", format!("{pool} and {other} have addresses in common")));
        }
    }
    Ok(())
}

/// The gateway is a host of the subnet, or anywhere else (then servers reach it over the wire), of the same version.
fn check_gateway(cidr: Cidr, gateway: Option<IpAddr>) -> Result<()> {
    let Some(gateway) = gateway else { return Ok(()) };
    let link_local = matches!(gateway, IpAddr::V6(address) if address.is_unicast_link_local());
    if address::is_for_hosts(cidr.net(), gateway) || (cidr.is_ipv6() && link_local) {
        return Ok(());
    }
    Err(invalid("gateway", format!("{gateway} is not one of the hosts of {cidr}")))
}

fn check_servers(cidr: Cidr, servers: &[IpAddr], routes: &[ops::Route]) -> Result<()> {
    if routes.iter().any(|route| route.destination.is_ipv6() != cidr.is_ipv6()) {
        return Err(invalid("host_routes", "routes are of the same version as the subnet"));
    }
    match servers.iter().find(|server| server.is_ipv6() != cidr.is_ipv6()) {
        Some(server) => Err(invalid("dns_servers", format!("{server} is not of the same version as the subnet"))),
        None => Ok(()),
    }
}

/// What a new subnet is, as far as it alone says.
pub(super) fn body(network: NetworkId, input: &CreateSubnet) -> Result<Subnet> {
    let cidr = input.cidr;
    check_cidr(cidr)?;
    let few = cidr.net().max_prefix_len() - cidr.net().prefix_len() <= 1;
    let gateway = match (input.gateway, input.no_gateway) {
        (Some(_), true) => return Err(invalid("no_gateway", "a subnet has a gateway or none, not both")),
        (Some(gateway), false) => Some(gateway.0),
        (None, true) => None,
        (None, false) if few => None,
        (None, false) => hosts(cidr.net()).map(|(first, _)| first),
    };
    check_gateway(cidr, gateway)?;
    let pools = match input.pools.as_slice() {
        [] => all_but(cidr.net(), gateway),
        pools => pools.to_vec(),
    };
    check_pools(cidr, gateway, &pools)?;
    let dns_servers: Vec<IpAddr> = input.dns_servers.as_slice().iter().map(|host| host.0).collect();
    check_servers(cidr, &dns_servers, input.host_routes.as_slice())?;
    let ipv6_mode = match (cidr.is_ipv6(), input.ipv6_mode) {
        (false, Some(_)) => return Err(invalid("ipv6_mode", "only subnets of IPv6 have one")),
        (false, None) => None,
        (true, mode) => Some(mode.unwrap_or(Ipv6Mode::Slaac)),
    };
    if matches!(ipv6_mode, Some(Ipv6Mode::Slaac | Ipv6Mode::DhcpStateless)) && cidr.net().prefix_len() != 64 {
        return Err(invalid("cidr", "hosts make up addresses of their own in a range with a prefix of 64 bits only")
            .next("choose such a range, or the mode dhcp-stateful", None));
    }
    Ok(Subnet {
        network,
        cidr,
        gateway,
        pools,
        dhcp: !input.no_dhcp,
        service: None,
        dns_servers,
        host_routes: input.host_routes.as_slice().to_vec(),
        ipv6_mode,
    })
}

/// The lowest address that is given out and free: there the subnet serves its servers.
fn service(store: &Store, subnet: &Subnet) -> Option<IpAddr> {
    const LOOKS: usize = 1000;
    let all = subnet.pools.iter().flat_map(|pool| {
        std::iter::successors(Some(pool.first()), |address| next(*address).filter(|next| pool.contains(*next)))
    });
    all.take(LOOKS).find(|address| store.owner(&address::claim(subnet.network, *address)).is_none())
}

/// A subnet, in the transaction that makes it: the network names it.
pub(super) fn draft(
    store: &Store,
    mut transaction: Transaction,
    network: &Record<Network>,
    id: SubnetId,
    name: &nephos_types::Name,
    mut subnet: Subnet,
    labels: &nephos_types::Labels,
) -> Result<Transaction> {
    if network.body.subnets.len() >= MOST {
        return Err(Error::invalid("too_many_subnets", "The network has as many subnets as possible")
            .detail(format!("at most {MOST}")));
    }
    for other in network.body.subnets.iter().filter_map(|id| store.get::<Subnet>(*id)) {
        if other.body.cidr.overlaps(subnet.cidr) {
            return Err(Error::conflict("subnet_overlaps", "The network has these addresses already")
                .detail(format!("{} and {} have addresses in common", subnet.cidr, other.body.cidr))
                .next("choose another range", None));
        }
    }
    if subnet.dhcp {
        subnet.service = service(store, &subnet);
        if let Some(service) = subnet.service {
            transaction = transaction.claim(address::claim(network.meta.id, service), id);
        }
    }
    let project = project_of(network);
    transaction = quota::take(transaction, project, "subnets", 1);
    Ok(transaction
        .claim(name_claim::<Subnet>(project, name), id)
        .save(network.edit().modify(|network| network.subnets.push(id)))
        .create(Draft::new(id, subnet).project(project).name(name.clone()).labels(labels.clone())))
}

async fn create(networks: Arc<Networks>, session: Session, input: CreateSubnet) -> Result<ops::Subnet> {
    let id = SubnetId::new();
    let decide = |transaction: Transaction| {
        let network = session.find::<Network>(&input.network)?;
        owned(&session, &network)?;
        let subnet = body(network.meta.id, &input)?;
        let transaction = draft(&networks.store, transaction, &network, id, &input.name, subnet, &input.labels)?;
        Ok((session.remember::<Subnet>(transaction, id, None), ()))
    };
    session.decide_or(decide, explain).await?;
    networks.subnet_shown(id)
}

async fn list(networks: Arc<Networks>, session: Session, input: ListSubnets) -> Result<Page<ops::Subnet>> {
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let mut query = Query::all().page::<Subnet>(&request)?;
    if let Some(network) = &input.network {
        query = query.index(BY_NETWORK, session.find::<Network>(network)?.meta.id);
    } else {
        match session.listed(input.all_projects) {
            Visible::Everything => {}
            Visible::Project(project) => query = query.project(project),
            Visible::Domain(_) | Visible::Nothing => return Ok(Page { items: vec![], next: None }),
        }
    }
    let page = networks.store.list::<Subnet>(&query);
    let items = page.items.iter().map(|record| networks.subnet_view(record)).collect::<Result<_>>()?;
    Ok(Page { items, next: page.next })
}

async fn show(networks: Arc<Networks>, session: Session, input: ShowSubnet) -> Result<ops::Subnet> {
    networks.subnet_view(&*session.find::<Subnet>(&input.subnet)?)
}

/// A subnet whose network the caller may change.
fn changeable(session: &Session, reference: &nephos_types::Reference) -> Result<Arc<Record<Subnet>>> {
    let record = session.find::<Subnet>(reference)?;
    let network = session.store().get::<Network>(record.body.network);
    owned(session, &*network.ok_or_else(|| Error::not_found(Subnet::NOUN, reference))?)?;
    Ok(record)
}

async fn update(networks: Arc<Networks>, session: Session, input: UpdateSubnet) -> Result<ops::Subnet> {
    let decide = |mut transaction: Transaction| {
        let record = changeable(&session, &input.subnet)?;
        let (id, project, old) = (record.meta.id, project_of(&record), name_of(&record)?);
        let mut body = record.body.clone();
        match (input.gateway, input.no_gateway) {
            (Some(_), true) => return Err(invalid("no_gateway", "a subnet has a gateway or none, not both")),
            (Some(gateway), false) => body.gateway = Some(gateway.0),
            (None, true) => body.gateway = None,
            (None, false) => {}
        }
        check_gateway(body.cidr, body.gateway)?;
        if let Some(pools) = &input.pools {
            body.pools = pools.as_slice().to_vec();
        }
        check_pools(body.cidr, body.gateway, &body.pools)?;
        if let Some(servers) = &input.dns_servers {
            body.dns_servers = servers.as_slice().iter().map(|host| host.0).collect();
        }
        if let Some(routes) = &input.host_routes {
            body.host_routes = routes.as_slice().to_vec();
        }
        check_servers(body.cidr, &body.dns_servers, &body.host_routes)?;
        body.dhcp = input.dhcp.unwrap_or(body.dhcp);
        if body.dhcp && body.service.is_none() {
            body.service = service(&networks.store, &body);
            if let Some(service) = body.service {
                transaction = transaction.claim(address::claim(body.network, service), id);
            }
        }
        let mut edit = record.edit();
        if let Some(new) = input.name.as_ref().filter(|new| **new != old) {
            transaction = transaction
                .release(name_claim::<Subnet>(project, &old), id)
                .claim(name_claim::<Subnet>(project, new), id);
            edit = edit.name(new.clone());
        }
        if let Some(labels) = &input.labels {
            edit = edit.labels(labels.clone());
        }
        Ok((transaction.save(edit.modify(|subnet| *subnet = body)), id))
    };
    let id = session.decide_or(decide, explain).await?;
    networks.subnet_shown(id)
}

/// The end of a subnet, in the transaction that ends it; what its network says of it is another matter.
pub(super) fn end(transaction: Transaction, record: &Record<Subnet>) -> Result<Transaction> {
    let (id, project) = (record.meta.id, project_of(record));
    let mut transaction = transaction.release(name_claim::<Subnet>(project, name_of(record)?), id);
    if let Some(service) = record.body.service {
        transaction = transaction.release(address::claim(record.body.network, service), id);
    }
    Ok(quota::give_back(transaction, project, "subnets", 1)
        // One more would be too many: refused if there is any.
        .add(address::used(id), 1, Bound::AtMost(1))
        .add(address::used(id), -1, Bound::Any)
        .delete(record))
}

async fn delete(networks: Arc<Networks>, session: Session, input: DeleteSubnet) -> Result<()> {
    let decide = |transaction: Transaction| {
        let record = changeable(&session, &input.subnet)?;
        let id = record.meta.id;
        let network = networks.store.get::<Network>(record.body.network);
        let network = network.ok_or_else(|| Error::not_found("network", record.body.network))?;
        let transaction =
            transaction.save(network.edit().modify(|network| network.subnets.retain(|subnet| *subnet != id)));
        Ok((end(transaction, &record)?, ()))
    };
    let refused = |error| match error {
        CommitError::Exceeded { ref counter, value, .. } if counter.starts_with("subnet/") => {
            Error::conflict("subnet_in_use", "Ports have addresses of the subnet")
                .detail(format!("{value} addresses"))
                .next("see which ports", Some("nephos port list".to_owned()))
        }
        other => explain(other),
    };
    session.decide_or(decide, refused).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(cidr: &str, gateway: Option<&str>) -> String {
        let ranges = all_but(cidr.parse().unwrap(), gateway.map(|gateway| gateway.parse().unwrap()));
        ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_is_given_out_is_all_but_the_gateway() {
        assert_eq!(pools("10.0.0.0/24", Some("10.0.0.1")), "10.0.0.2-10.0.0.254");
        assert_eq!(pools("10.0.0.0/24", Some("10.0.0.9")), "10.0.0.1-10.0.0.8 10.0.0.10-10.0.0.254");
        assert_eq!(pools("10.0.0.0/24", Some("10.0.0.254")), "10.0.0.1-10.0.0.253");
        assert_eq!(pools("10.0.0.0/31", None), "10.0.0.0-10.0.0.1");
        assert_eq!(pools("10.0.0.7/32", None), "10.0.0.7-10.0.0.7");
        assert_eq!(pools("0.0.0.0/0", None), "0.0.0.1-255.255.255.254");
        assert_eq!(pools("fd00::/64", Some("fd00::1")), "fd00::2-fd00::ffff:ffff:ffff:ffff");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let subnet = |cidr: &str, more: serde_json::Value| {
            let mut input = serde_json::json!({ "name": "n", "network": "n", "cidr": cidr });
            input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body(NetworkId::new(), &serde_json::from_value(input).unwrap())
        };
        let refused = |cidr: &str, more: serde_json::Value| {
            subnet(cidr, more.clone()).err().unwrap_or_else(|| panic!("{cidr} {more}"))
        };
        use serde_json::json;
        assert!(subnet("10.0.0.0/24", json!({})).is_ok());
        for cidr in [
            "224.0.0.0/24",
            "127.0.0.0/24",
            "169.254.0.0/16",
            "0.0.0.0/8",
            "240.0.0.0/8",
            "10.0.0.0/7",
            "ff02::/64",
            "fe80::/64",
        ] {
            if let Ok(range) = cidr.parse::<Cidr>() {
                refused(&range.to_string(), json!({}));
            }
        }
        refused("fd00::/80", json!({}));
        assert!(subnet("fd00::/80", json!({ "ipv6_mode": "dhcp-stateful" })).is_ok());
        refused("10.0.0.0/24", json!({ "ipv6_mode": "slaac" }));
        refused("10.0.0.0/24", json!({ "gateway": "10.0.1.1" }));
        refused("10.0.0.0/24", json!({ "gateway": "10.0.0.0" }));
        refused("10.0.0.0/24", json!({ "gateway": "10.0.0.1", "no_gateway": true }));
        refused("10.0.0.0/24", json!({ "pools": ["10.0.0.1-10.0.0.9"] }));
        refused("10.0.0.0/24", json!({ "pools": ["10.0.0.2-10.0.0.9", "10.0.0.9-10.0.0.20"] }));
        refused("10.0.0.0/24", json!({ "pools": ["10.0.0.2-10.0.0.255"] }));
        refused("10.0.0.0/24", json!({ "dns_servers": ["fd00::1"] }));
        refused("10.0.0.0/24", json!({ "host_routes": ["fd00::/64=fd00::1"] }));
    }
}
