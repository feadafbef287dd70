//! What people may ask of networks.

use std::sync::Arc;

use nephos_driver::network::Segment;
use nephos_ops::network::{
    self as ops, CreateNetwork, DeleteNetwork, ListNetworks, SegmentType, ShowNetwork, UpdateNetwork,
};
use nephos_store::{Bound, CommitError, Draft, Query, Record, Transaction};
use nephos_types::{Error, ErrorKind, Name, NetworkId, Number, Page, PageRequest, ProjectId, Result};

use super::{
    Networks, address,
    kinds::{BY_NETWORK, BY_OPEN, Network, Port, Subnet, project_of},
    quota, segment,
};
use crate::{
    CLOUD, Handlers, Session,
    idempotency::Made,
    resolve::{name_claim, name_of},
    session::{Visible, refusal},
};

pub(super) fn register(handlers: &mut Handlers, networks: &Arc<Networks>) {
    handlers.handle_creation(networks, create, |networks: Arc<Networks>, session: Session, made: Made| async move {
        networks.network_shown(&session, made.id::<Network>()?)
    });
    handlers.handle(networks, list);
    handlers.handle(networks, show);
    handlers.handle(networks, update);
    handlers.handle(networks, delete);
}

/// The counter of what is on a network; a network with ports is not deleted.
pub(super) fn ports_counter(network: NetworkId) -> String {
    format!("network/{network}/ports")
}

/// Whoever may use it finds it by name: its project, and all others if it is for them.
fn name_claims(project: ProjectId, open: bool, name: &Name) -> impl Iterator<Item = String> {
    let own = name_claim::<Network>(project, name);
    std::iter::once(own).chain(open.then(|| name_claim::<Network>(CLOUD, name)))
}

fn for_administrators(session: &Session, field: &str) -> Result<()> {
    if session.is_admin() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Forbidden, "for_administrators", format!("`{field}` is for administrators"))
        .next("leave it out, or ask an administrator", None))
}

/// Refuses changes of what another project owns, though it may be used.
pub(super) fn owned(session: &Session, network: &Record<Network>) -> Result<()> {
    if session.sees(project_of(network)) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Forbidden, "not_your_network", "The network belongs to another project")
        .detail("it may be used from yours, not changed"))
}

/// A domain for host names (RFC 1123), without dots at the ends.
fn dns_domain(text: &str) -> Result<String> {
    let domain = text.trim_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if domain.split('.').all(label) {
        return Ok(domain);
    }
    Err(Error::invalid("invalid_domain", "Not a domain for host names")
        .detail("words of letters, digits and hyphens, with dots between them, like lab.internal"))
}

/// What host names end with when nobody says otherwise.
fn default_domain(name: &Name) -> String {
    let word: String =
        name.as_str().chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let word: String = word.trim_matches('-').chars().take(63).collect();
    let word = word.trim_end_matches('-');
    if word.is_empty() { "internal".to_owned() } else { format!("{word}.internal") }
}

impl Networks {
    fn network_shown(&self, session: &Session, id: NetworkId) -> Result<ops::Network> {
        network_view(session, &*self.store.get::<Network>(id).ok_or_else(|| Error::not_found("network", id))?)
    }
}

fn network_view(session: &Session, record: &Record<Network>) -> Result<ops::Network> {
    let body = &record.body;
    let (segment, physical, segment_id) = match &body.segment {
        Segment::Vxlan { vni } => (SegmentType::Vxlan, None, Some(*vni)),
        Segment::Flat { physical } => (SegmentType::Flat, Some(physical.clone()), None),
        Segment::Vlan { physical, tag } => (SegmentType::Vlan, Some(physical.clone()), Some(u32::from(*tag))),
        Segment::Host => (SegmentType::Host, None, None),
    };
    let admin = session.visible() == Visible::Everything;
    Ok(ops::Network {
        id: record.meta.id,
        name: name_of(record)?,
        project: project_of(record),
        description: body.description.clone(),
        subnets: body.subnets.clone(),
        mtu: body.mtu,
        external: body.external,
        shared: body.shared,
        up: body.up,
        port_security: body.port_security,
        dns_domain: body.dns_domain.clone(),
        segment: admin.then_some(segment),
        physical: physical.filter(|_| admin),
        segment_id: segment_id.filter(|_| admin),
        labels: record.meta.labels.clone(),
        created_at: record.meta.created_at,
        updated_at: record.meta.updated_at,
    })
}

/// What a refused commit of this family means.
pub(crate) fn explain(error: CommitError) -> Error {
    match &error {
        CommitError::Exceeded { counter, limit, .. } => {
            quota::exceeded(counter, *limit).unwrap_or_else(|| error.into())
        }
        CommitError::Taken { key, owner } if key.starts_with("segment/") => {
            let what = key.trim_start_matches("segment/").replace('/', " ");
            Error::conflict("segment_taken", "Another network is there already")
                .detail(format!("{what} is that of {owner}"))
                .next("choose another one", None)
        }
        CommitError::Taken { key, owner } if key.starts_with("ip/") => {
            address::taken(key.rsplit('/').next().unwrap_or_default(), owner)
        }
        CommitError::Taken { key, owner } if key.starts_with("mac/") => {
            Error::conflict("mac_address_taken", "The MAC address is in use")
                .detail(format!("{} is that of {owner}", key.rsplit('/').next().unwrap_or_default()))
        }
        _ => refusal(error),
    }
}

/// A network, in the transaction that makes it.
pub(super) fn draft(
    transaction: Transaction,
    id: NetworkId,
    project: ProjectId,
    name: &Name,
    body: Network,
    labels: &nephos_types::Labels,
) -> Transaction {
    let mut transaction = quota::take(transaction, project, "networks", 1);
    for claim in name_claims(project, body.external || body.shared, name).chain(segment::claim(&body.segment)) {
        transaction = transaction.claim(claim, id);
    }
    transaction.create(Draft::new(id, body).project(project).name(name.clone()).labels(labels.clone()))
}

async fn create(networks: Arc<Networks>, session: Session, input: CreateNetwork) -> Result<ops::Network> {
    let (id, project) = (NetworkId::new(), session.project()?);
    let reserved = [
        (input.external, "external"),
        (input.shared, "shared"),
        (input.segment.is_some(), "segment"),
        (input.physical.is_some(), "physical"),
        (input.segment_id.is_some(), "segment_id"),
    ];
    for (_, field) in reserved.into_iter().filter(|(given, _)| *given) {
        for_administrators(&session, field)?;
    }
    let segment = segment::choose(&networks.store, id, &input)?;
    let body = Network {
        description: input.description.as_ref().map(ToString::to_string).unwrap_or_default(),
        mtu: mtu(&segment, input.mtu.map(Number::get_u32))?,
        segment,
        external: input.external,
        shared: input.shared,
        up: true,
        port_security: !input.no_port_security,
        dns_domain: match &input.dns_domain {
            Some(domain) => dns_domain(domain.as_str())?,
            None => default_domain(&input.name),
        },
        subnets: vec![],
    };
    let transaction = draft(session.transaction(), id, project, &input.name, body, &input.labels);
    session.commit_creation::<Network>(transaction, id, None).await.map_err(explain)?;
    networks.network_shown(&session, id)
}

fn mtu(segment: &Segment, asked: Option<u32>) -> Result<u32> {
    let most = segment::most_mtu(segment);
    match asked {
        Some(asked) if asked > most => {
            Err(Error::invalid("mtu_too_large", "The nodes' wire has no room for such packets")
                .detail(format!("{asked} bytes; at most {most} bytes fit")))
        }
        asked => Ok(asked.unwrap_or(most)),
    }
}

async fn list(networks: Arc<Networks>, session: Session, input: ListNetworks) -> Result<Page<ops::Network>> {
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let query = || Query::all().page::<Network>(&request);
    // Of those that are left out some may be on the page: what is asked of them is asked of each.
    let fits = |record: &Arc<Record<Network>>| input.external.is_none_or(|external| record.body.external == external);
    let page = match session.listed(input.all_projects) {
        Visible::Everything => networks.store.list::<Network>(&query()?),
        Visible::Project(project) => {
            let own = networks.store.list::<Network>(&query()?.project(project));
            let open = networks.store.list::<Network>(&query()?.index(BY_OPEN, "yes"));
            merge(own, open, request.limit())
        }
        Visible::Domain(_) | Visible::Nothing => return Ok(Page { items: vec![], next: None }),
    };
    let items = page.items.iter().filter(|record| fits(record)).map(|record| network_view(&session, record));
    Ok(Page { items: items.collect::<Result<_>>()?, next: page.next })
}

type Records = Page<Arc<Record<Network>>>;

/// One page out of the same page of two lists that may have records in common.
fn merge(one: Records, other: Records, limit: usize) -> Records {
    let more = one.next.is_some() || other.next.is_some();
    let mut items = one.items;
    items.extend(other.items);
    items.sort_by_key(|record| record.meta.id);
    items.dedup_by_key(|record| record.meta.id);
    let cut = items.len() > limit;
    items.truncate(limit);
    let next = (more || cut).then(|| items.last().map(|record| record.meta.id.to_string())).flatten();
    Page { items, next }
}

async fn show(_: Arc<Networks>, session: Session, input: ShowNetwork) -> Result<ops::Network> {
    network_view(&session, &*session.find::<Network>(&input.network)?)
}

async fn update(networks: Arc<Networks>, session: Session, input: UpdateNetwork) -> Result<ops::Network> {
    for (_, field) in
        [(input.external, "external"), (input.shared, "shared")].iter().filter(|(value, _)| value.is_some())
    {
        for_administrators(&session, field)?;
    }
    let decide = |mut transaction: Transaction| {
        let record = session.find::<Network>(&input.network)?;
        owned(&session, &record)?;
        let (id, project, old) = (record.meta.id, project_of(&record), name_of(&record)?);
        let mut body = record.body.clone();
        if let Some(description) = &input.description {
            body.description = description.to_string();
        }
        if let Some(asked) = input.mtu {
            body.mtu = mtu(&body.segment, Some(asked.get_u32()))?;
        }
        if let Some(domain) = &input.dns_domain {
            body.dns_domain = dns_domain(domain.as_str())?;
        }
        body.up = input.up.unwrap_or(body.up);
        body.port_security = input.port_security.unwrap_or(body.port_security);
        body.external = input.external.unwrap_or(body.external);
        body.shared = input.shared.unwrap_or(body.shared);
        let name = input.name.as_ref().unwrap_or(&old);
        let before: Vec<String> = name_claims(project, record.body.external || record.body.shared, &old).collect();
        let after: Vec<String> = name_claims(project, body.external || body.shared, name).collect();
        for claim in before.iter().filter(|claim| !after.contains(claim)) {
            transaction = transaction.release(claim, id);
        }
        for claim in after.iter().filter(|claim| !before.contains(claim)) {
            transaction = transaction.claim(claim, id);
        }
        let mut edit = record.edit().name(name.clone()).modify(|network| *network = body);
        if let Some(labels) = &input.labels {
            edit = edit.labels(labels.clone());
        }
        Ok((transaction.save(edit), id))
    };
    let id = session.decide_or(decide, explain).await?;
    networks.network_shown(&session, id)
}

async fn delete(networks: Arc<Networks>, session: Session, input: DeleteNetwork) -> Result<()> {
    let decide = |mut transaction: Transaction| {
        let record = session.find::<Network>(&input.network)?;
        owned(&session, &record)?;
        let (id, project) = (record.meta.id, project_of(&record));
        let name = name_of(&record)?;
        let claims = name_claims(project, record.body.external || record.body.shared, &name);
        for claim in claims.chain(segment::claim(&record.body.segment)) {
            transaction = transaction.release(claim, id);
        }
        // One more would be too many: refused if there is any.
        transaction = transaction
            .add(ports_counter(id), 1, Bound::AtMost(1))
            .add(ports_counter(id), -1, Bound::Any)
            .delete(&record);
        for subnet in networks.store.list::<Subnet>(&Query::all().index(BY_NETWORK, id)).items {
            transaction = super::subnets::end(transaction, &subnet)?;
        }
        Ok((quota::give_back(transaction, project, "networks", 1), ()))
    };
    let refused = |error| match error {
        CommitError::Exceeded { ref counter, value, .. } if counter.starts_with("network/") => {
            Error::conflict("network_in_use", "The network has ports")
                .detail(format!("{value} of them"))
                .next("see which", Some(format!("nephos port list --network {}", input.network)))
        }
        other => explain(other),
    };
    session.decide_or(decide, refused).await
}

/// Who is on a network.
pub(super) fn ports_of(networks: &Networks, network: NetworkId) -> Vec<Arc<Record<Port>>> {
    networks.store.list::<Port>(&Query::all().index(BY_NETWORK, network)).items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_for_host_names() {
        assert_eq!(dns_domain("Lab.Internal.").unwrap(), "lab.internal");
        for bad in ["", ".", "a..b", "-a", "a-.b", "ä", "a b", &"x".repeat(64)] {
            assert!(dns_domain(bad).is_err(), "{bad}");
        }
        let name = |text: &str| default_domain(&text.parse().unwrap());
        assert_eq!(
            (name("My net!"), name("-"), name("ä")),
            ("my-net.internal".into(), "internal".into(), "internal".into())
        );
    }
}
