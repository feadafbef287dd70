//! What people may ask of ports; and the ports that servers are made with.

use std::sync::Arc;

use nephos_ops::network::{
    self as ops, CreatePort, DeletePort, ListPorts, PortAddress, PortOwner, PortState, ShowPort, UpdatePort,
};
use nephos_store::{Bound, CommitError, Draft, Query, Record, Transaction};
use nephos_types::{
    Error, Id, MacAddress, NetworkId, Page, PageRequest, PortId, ProjectId, Reference, Result, SecurityGroupId,
};

use super::{
    Networks, address,
    kinds::{BY_NETWORK, BY_SERVER, Fixed, Network, Owner, Port, SecurityGroup, project_of},
    networks::{explain, ports_counter},
    quota, security_groups,
};
use crate::{Handlers, Session, idempotency::Made, resolve::name_claim, session::Visible};

pub(super) fn register(handlers: &mut Handlers, networks: &Arc<Networks>) {
    handlers.handle_creation(networks, create, |networks: Arc<Networks>, session: Session, made: Made| async move {
        networks.port_shown(&session, made.id::<Port>()?)
    });
    handlers.handle(networks, list);
    handlers.handle(networks, show);
    handlers.handle(networks, update);
    handlers.handle(networks, delete);
}

/// The claim that makes a MAC address one port's.
fn mac_claim(network: NetworkId, mac: MacAddress) -> String {
    format!("mac/{network}/{mac}")
}

/// A MAC address out of a port's id.
fn made_up(id: PortId) -> MacAddress {
    MacAddress::made_up(id.bits().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40)
}

impl Networks {
    fn port_shown(&self, session: &Session, id: PortId) -> Result<ops::Port> {
        Ok(self.port_view(session, &*self.store.get::<Port>(id).ok_or_else(|| Error::not_found("port", id))?))
    }

    fn port_view(&self, session: &Session, record: &Record<Port>) -> ops::Port {
        let body = &record.body;
        let place = body.server().and_then(|server| self.place(server));
        let (state, trouble) = match &place {
            None => (PortState::Down, None),
            Some(place) => place.port(record.meta.id),
        };
        let admin = session.visible() == Visible::Everything;
        ops::Port {
            id: record.meta.id,
            name: record.meta.name.clone(),
            project: project_of(record),
            network: body.network,
            state: if body.up { state } else { PortState::Down },
            trouble,
            owner: body.owner.map(|owner| match owner {
                Owner::Server { server, .. } => PortOwner::Server { server },
                Owner::RouterInterface { router } => PortOwner::RouterInterface { router },
                Owner::RouterGateway { router } => PortOwner::RouterGateway { router },
            }),
            node: place.and_then(|place| place.node).filter(|_| admin),
            mac: body.mac,
            addresses: body.addresses.iter().map(|fixed| PortAddress::fixed(fixed.subnet, fixed.address)).collect(),
            allowed_pairs: body.allowed_pairs.clone(),
            port_security: body.port_security,
            security_groups: body.security_groups.clone(),
            up: body.up,
            dns_name: body.dns_name.clone(),
            send_kbit: body.send_kbit,
            receive_kbit: body.receive_kbit,
            labels: record.meta.labels.clone(),
            created_at: record.meta.created_at,
            updated_at: record.meta.updated_at,
        }
    }
}

/// A host name (RFC 1123).
fn dns_name(text: &str) -> Result<Option<String>> {
    let good = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    match text {
        "" => Ok(None),
        text if good && !text.starts_with('-') && !text.ends_with('-') => Ok(Some(text.to_ascii_lowercase())),
        _ => Err(Error::invalid("invalid_dns_name", "Not a host name")
            .detail("letters, digits and hyphens, beginning and ending with a letter or digit")),
    }
}

/// What is asked of a new port.
#[derive(Default)]
pub(super) struct Wish<'a> {
    pub(super) addresses: Option<&'a [PortAddress]>,
    pub(super) mac: Option<MacAddress>,
    pub(super) port_security: Option<bool>,
    pub(super) security_groups: Vec<SecurityGroupId>,
    pub(super) owner: Option<Owner>,
    pub(super) input: Option<&'a CreatePort>,
}

/// A port, in the transaction that makes it. The security groups were `expect`ed there.
pub(super) fn draft(
    networks: &Networks,
    transaction: Transaction,
    id: PortId,
    project: ProjectId,
    network: &Record<Network>,
    wish: Wish<'_>,
) -> Result<(Transaction, Port)> {
    let mac = wish.mac.unwrap_or_else(|| made_up(id));
    let owner = id.to_string();
    let assigned = address::assign(
        &networks.cursors,
        &networks.store,
        transaction.expect(network),
        network,
        wish.addresses,
        (&owner, mac),
    )?;
    let port_security = wish.port_security.unwrap_or(network.body.port_security);
    if !port_security
        && wish.input.is_some_and(|input| input.security_groups.as_ref().is_some_and(|groups| !groups.is_empty()))
    {
        return Err(Error::invalid("groups_without_security", "Security groups hold only on ports that are checked")
            .next("leave out either --security-groups or --port-security false", None));
    }
    let input = wish.input;
    let body = Port {
        network: network.meta.id,
        mac,
        addresses: assigned.addresses,
        owner: wish.owner,
        security_groups: if port_security { wish.security_groups } else { vec![] },
        allowed_pairs: input.map(|input| input.allowed_pairs.as_slice().to_vec()).unwrap_or_default(),
        port_security,
        up: true,
        dns_name: match input.and_then(|input| input.dns_name.as_ref()) {
            Some(name) => dns_name(name.as_str())?,
            None => None,
        },
        send_kbit: input.and_then(|input| input.send_kbit).map(nephos_types::Number::get),
        receive_kbit: input.and_then(|input| input.receive_kbit).map(nephos_types::Number::get),
    };
    let mut transaction = quota::take(assigned.transaction, project, "ports", 1)
        .claim(mac_claim(network.meta.id, mac), id)
        .add(ports_counter(network.meta.id), 1, Bound::Any);
    let mut new = Draft::new(id, body.clone()).project(project);
    if let Some(input) = input {
        new = new.labels(input.labels.clone());
        if let Some(name) = &input.name {
            transaction = transaction.claim(name_claim::<Port>(project, name), id);
            new = new.name(name.clone());
        }
    }
    for group in &body.security_groups {
        transaction = security_groups::hold(transaction, *group);
    }
    Ok((transaction.create(new), body))
}

/// The end of a port, in the transaction that ends it.
pub(super) fn end(transaction: Transaction, record: &Record<Port>) -> Transaction {
    let (id, body) = (record.meta.id, &record.body);
    let mut transaction = address::release(transaction, body.network, &id.to_string(), &body.addresses)
        .release(mac_claim(body.network, body.mac), id)
        .add(ports_counter(body.network), -1, Bound::Any)
        .delete(record);
    if let Some(name) = &record.meta.name {
        transaction = transaction.release(name_claim::<Port>(project_of(record), name), id);
    }
    for group in &body.security_groups {
        transaction = security_groups::let_go(transaction, *group);
    }
    quota::give_back(transaction, project_of(record), "ports", 1)
}

/// The security groups of the caller's project that are meant; its `default` when nothing is said.
pub(super) fn groups(
    session: &Session,
    mut transaction: Transaction,
    project: ProjectId,
    references: Option<&[Reference]>,
) -> Result<(Transaction, Vec<SecurityGroupId>)> {
    let Some(references) = references else {
        let (transaction, id) = security_groups::default_of(session.store(), transaction, project)?;
        return Ok((transaction, vec![id]));
    };
    let mut ids = vec![];
    for reference in references {
        let group = session.find::<SecurityGroup>(reference)?;
        // Others' rules must not decide over this project's servers.
        if group.meta.project != Some(project) {
            return Err(Error::not_found("security-group", reference));
        }
        if !ids.contains(&group.meta.id) {
            ids.push(group.meta.id);
            transaction = transaction.expect(&group);
        }
    }
    Ok((transaction, ids))
}

/// Whether what was decided collided with somebody who was given the same address or made the same default group.
pub(crate) fn again(error: &CommitError, by_chance: bool) -> bool {
    match error {
        CommitError::Taken { key, .. } => {
            (by_chance && key.starts_with("ip/"))
                || (key.starts_with("name/security_group/") && key.ends_with("/default"))
        }
        _ => false,
    }
}

async fn create(networks: Arc<Networks>, session: Session, input: CreatePort) -> Result<ops::Port> {
    let (id, project) = (PortId::new(), session.project()?);
    let wanted = input.addresses.as_ref().map(nephos_types::List::as_slice);
    let decide = |transaction: Transaction| {
        let network = session.find::<Network>(&input.network)?;
        let chosen = wanted.is_some()
            || input.mac.is_some()
            || input.port_security == Some(false)
            || !input.allowed_pairs.is_empty();
        if chosen && !session.sees(project_of(&network)) {
            return Err(Error::new(
                nephos_types::ErrorKind::Forbidden,
                "not_your_network",
                "On a network of another project a port takes what it is given",
            )
            .next("leave out addresses, MAC address, pairs and port security", None));
        }
        let asked = input.security_groups.as_ref().map(nephos_types::List::as_slice);
        let secure = input.port_security.unwrap_or(network.body.port_security);
        let (transaction, security_groups) = match asked {
            None if !secure => (transaction, vec![]),
            asked => groups(&session, transaction, project, asked)?,
        };
        let wish = Wish {
            addresses: wanted,
            mac: input.mac,
            port_security: input.port_security,
            security_groups,
            owner: None,
            input: Some(&input),
        };
        let (transaction, _) = draft(&networks, transaction, id, project, &network, wish)?;
        Ok((session.remember::<Port>(transaction, id, None), ()))
    };
    session.decide_again(decide, |error| again(error, wanted.is_none()), explain).await?;
    networks.port_shown(&session, id)
}

async fn list(networks: Arc<Networks>, session: Session, input: ListPorts) -> Result<Page<ops::Port>> {
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let mut query = Query::all().page::<Port>(&request)?;
    match session.listed(input.all_projects) {
        Visible::Everything => {}
        Visible::Project(project) => query = query.project(project),
        Visible::Domain(_) | Visible::Nothing => return Ok(Page { items: vec![], next: None }),
    }
    if let Some(network) = &input.network {
        query = query.index(BY_NETWORK, session.find::<Network>(network)?.meta.id);
    }
    let server = input.server.as_ref().map(|server| networks.server(&session, server)).transpose()?;
    if let (Some(server), None) = (server, &input.network) {
        query = query.index(BY_SERVER, server);
    }
    let page = networks.store.list::<Port>(&query);
    let of_server = |record: &&Arc<Record<Port>>| server.is_none_or(|server| record.body.server() == Some(server));
    let items = page.items.iter().filter(of_server).map(|record| networks.port_view(&session, record)).collect();
    Ok(Page { items, next: page.next })
}

async fn show(networks: Arc<Networks>, session: Session, input: ShowPort) -> Result<ops::Port> {
    Ok(networks.port_view(&session, &*session.find::<Port>(&input.port)?))
}

fn limit(old: Option<u64>, new: Option<nephos_types::Number<0, 400_000_000>>) -> Option<u64> {
    match new.map(nephos_types::Number::get) {
        None => old,
        Some(0) => None,
        new => new,
    }
}

async fn update(networks: Arc<Networks>, session: Session, input: UpdatePort) -> Result<ops::Port> {
    let by_chance =
        input.addresses.as_ref().is_some_and(|wanted| wanted.as_slice().iter().any(|wish| wish.address.is_none()));
    let decide = |mut transaction: Transaction| {
        let record = session.find::<Port>(&input.port)?;
        let (id, project) = (record.meta.id, project_of(&record));
        let network = networks.store.get::<Network>(record.body.network);
        let network = network.ok_or_else(|| Error::not_found("network", record.body.network))?;
        let reserved = input.addresses.is_some() || input.allowed_pairs.is_some() || input.port_security == Some(false);
        if reserved && !session.sees(project_of(&network)) {
            return Err(Error::new(
                nephos_types::ErrorKind::Forbidden,
                "not_your_network",
                "On a network of another project a port keeps what it was given",
            ));
        }
        if matches!(record.body.owner, Some(Owner::RouterInterface { .. } | Owner::RouterGateway { .. })) && reserved {
            return Err(Error::conflict("port_attached", "The port is a router's")
                .detail("its addresses follow from what the router connects"));
        }
        let mut body = record.body.clone();
        if let Some(wanted) = &input.addresses {
            transaction = readdress(&networks, transaction, &network, &mut body, wanted.as_slice(), id)?;
        }
        if let Some(asked) = &input.security_groups {
            let (next, ids) = groups(&session, transaction, project, Some(asked.as_slice()))?;
            transaction = next;
            body.security_groups = ids;
        }
        if let Some(pairs) = &input.allowed_pairs {
            body.allowed_pairs = pairs.as_slice().to_vec();
        }
        body.port_security = input.port_security.unwrap_or(body.port_security);
        if !body.port_security {
            if !input.security_groups.as_ref().is_none_or(nephos_types::List::is_empty) {
                return Err(Error::invalid(
                    "groups_without_security",
                    "Security groups hold only on ports that are checked",
                )
                .next("leave out either --security-groups or --port-security false", None));
            }
            body.security_groups.clear();
        }
        let gone = record.body.security_groups.iter().filter(|group| !body.security_groups.contains(group));
        transaction = gone.fold(transaction, |transaction, group| security_groups::let_go(transaction, *group));
        let new = body.security_groups.iter().filter(|group| !record.body.security_groups.contains(group));
        transaction = new.fold(transaction, |transaction, group| security_groups::hold(transaction, *group));
        body.up = input.up.unwrap_or(body.up);
        if let Some(name) = &input.dns_name {
            body.dns_name = dns_name(name.as_str())?;
        }
        body.send_kbit = limit(body.send_kbit, input.send_kbit);
        body.receive_kbit = limit(body.receive_kbit, input.receive_kbit);
        let mut edit = record.edit();
        if let Some(new) = input.name.as_ref().filter(|new| record.meta.name.as_ref() != Some(new)) {
            if let Some(old) = &record.meta.name {
                transaction = transaction.release(name_claim::<Port>(project, old), id);
            }
            transaction = transaction.claim(name_claim::<Port>(project, new), id);
            edit = edit.name(new.clone());
        }
        if let Some(labels) = &input.labels {
            edit = edit.labels(labels.clone());
        }
        Ok((transaction.save(edit.modify(|port| *port = body)), id))
    };
    let id = session.decide_again(decide, |error| again(error, by_chance), explain).await?;
    networks.port_shown(&session, id)
}

/// Gives a port other addresses; those that it had and is to have stay.
fn readdress(
    networks: &Networks,
    transaction: Transaction,
    network: &Record<Network>,
    body: &mut Port,
    wanted: &[PortAddress],
    id: PortId,
) -> Result<Transaction> {
    let has = |wish: &PortAddress| {
        body.addresses.iter().copied().find(|fixed| {
            wish.address.is_some_and(|address| address == fixed.address)
                && wish.subnet.is_none_or(|subnet| subnet == fixed.subnet)
        })
    };
    let kept: Vec<Fixed> = wanted.iter().filter_map(has).collect();
    let new: Vec<PortAddress> = wanted.iter().filter(|wish| has(wish).is_none()).copied().collect();
    let gone: Vec<Fixed> = body.addresses.iter().filter(|fixed| !kept.contains(fixed)).copied().collect();
    let owner = id.to_string();
    let transaction = address::release(transaction.expect(network), network.meta.id, &owner, &gone);
    let assigned =
        address::assign(&networks.cursors, &networks.store, transaction, network, Some(&new), (&owner, body.mac))?;
    body.addresses = kept.into_iter().chain(assigned.addresses).collect();
    Ok(assigned.transaction)
}

async fn delete(_: Arc<Networks>, session: Session, input: DeletePort) -> Result<()> {
    let decide = |transaction: Transaction| {
        let record = session.find::<Port>(&input.port)?;
        if let Some(owner) = record.body.owner {
            let (whose, next) = match owner {
                Owner::Server { server, .. } => (server.to_string(), "delete the server".to_owned()),
                Owner::RouterInterface { router } | Owner::RouterGateway { router } => {
                    (router.to_string(), "take it from the router".to_owned())
                }
            };
            return Err(Error::conflict("port_attached", "The port is in use")
                .detail(format!("{whose} has it"))
                .next(next, None));
        }
        Ok((end(transaction, &record), ()))
    };
    session.decide_or(decide, explain).await
}
