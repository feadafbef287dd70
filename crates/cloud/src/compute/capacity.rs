//! What there is room for, and what would become of a node's servers without it. Nothing here claims anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use nephos_ops::placement::{
    self as ops, ListCapacity, LoseNode, Loss, NodeCapacity, NodeLoss, Part, Room, ShowCapacity,
};
use nephos_store::Query;
use nephos_types::{Name, NodeId, Number, Page, Reference, Result};

use super::{
    Compute,
    flavor::Flavor,
    server::{
        BY_NODE, Server,
        workflows::{demand, look},
    },
};
use crate::{
    core::Handlers,
    node::{Aggregate, BY_AGGREGATE, Node},
    placement::{Amounts, Candidate, Demand, Nodes, Policy, choose, fitting},
    resolve::name_of,
    session::Session,
};

/// How many losses are listed.
const SHOWN: usize = 1000;

pub(super) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) {
    handlers.handle(compute, show);
    handlers.handle(compute, list);
    handlers.handle(compute, lose);
}

/// What a server of a flavor needs, whatever its image.
fn asked(session: &Session, flavor: Option<&Reference>) -> Result<Option<Demand>> {
    let Some(flavor) = flavor else { return Ok(None) };
    let flavor = session.find::<Flavor>(flavor)?;
    let size = &flavor.body;
    // As the smallest server of it: an image's own size is one GiB at least.
    let amounts = Amounts { vcpus: size.vcpus.into(), memory_mib: size.memory_mib, disk_gib: size.disk_gib.max(1) };
    Ok(Some(Demand { amounts, needs: size.needs(), ..Demand::default() }))
}

/// A question about a flavor, asked of one node after the other, with the reason where none fits.
struct Fits<'a> {
    policy: &'a Policy,
    demand: Option<&'a Demand>,
}

impl Fits<'_> {
    /// How many more of the flavor fit on a node, and if none does, why.
    fn on(&self, candidate: &Candidate) -> (Option<u64>, Option<String>) {
        let Some(demand) = self.demand else { return (None, None) };
        match choose(&Nodes::new(vec![candidate.clone()]), self.policy, demand) {
            Ok(_) => (Some(candidate.free().holds(demand.amounts)), None),
            Err(error) => {
                let why = error.reasons.iter().map(|reason| reason.detail.as_str()).collect::<Vec<_>>().join("; ");
                (Some(0), Some(why))
            }
        }
    }
}

fn rooms(candidate: &Candidate) -> [Room; 3] {
    let free = if candidate.usable() { candidate.free() } else { Amounts::default() };
    let room = |amount: fn(&Amounts) -> u64| Room {
        total: amount(&candidate.capacity),
        used: amount(&candidate.used),
        free: amount(&free),
    };
    [room(|amounts| amounts.vcpus), room(|amounts| amounts.memory_mib), room(|amounts| amounts.disk_gib)]
}

fn add(sum: &mut Room, room: Room) {
    sum.total = sum.total.saturating_add(room.total);
    sum.used = sum.used.saturating_add(room.used);
    sum.free = sum.free.saturating_add(room.free);
}

impl Compute {
    fn nodes_now(&self) -> (Vec<Candidate>, Policy) {
        (look(self).draw)()
    }
}

fn empty(name: String, asked: bool) -> Part {
    let none = Room::default();
    Part { name, nodes: 0, usable_nodes: 0, vcpus: none, memory_mib: none, disk_gib: none, fits: asked.then_some(0) }
}

fn add_to(part: &mut Part, candidate: &Candidate, fits: Option<u64>) {
    part.nodes += 1;
    part.usable_nodes += u64::from(candidate.usable());
    let [vcpus, memory, disk] = rooms(candidate);
    add(&mut part.vcpus, vcpus);
    add(&mut part.memory_mib, memory);
    add(&mut part.disk_gib, disk);
    part.fits = part.fits.zip(fits).map(|(sum, fits)| sum.saturating_add(fits));
}

async fn show(compute: Arc<Compute>, session: Session, input: ShowCapacity) -> Result<ops::Capacity> {
    let demand = asked(&session, input.flavor.as_ref())?;
    let (candidates, policy) = compute.nodes_now();
    let nodes = Nodes::new(candidates);
    let fitting = demand.as_ref().map(|demand| (demand, fitting(&nodes, &policy, demand)));
    let part = |name: &str| empty(name.to_owned(), demand.is_some());
    let mut all = part("");
    let mut zones: BTreeMap<Name, Part> = BTreeMap::new();
    let mut aggregates = BTreeMap::new();
    for aggregate in compute.store.list::<Aggregate>(&Query::all()).items {
        aggregates.insert(aggregate.meta.id, part(name_of(&aggregate)?.as_str()));
    }
    for (index, candidate) in nodes.candidates().iter().enumerate() {
        let fits = fitting.as_ref().map(|(demand, fitting)| {
            let fits = fitting.get(index).copied().unwrap_or(false);
            if fits { candidate.free().holds(demand.amounts) } else { 0 }
        });
        add_to(&mut all, candidate, fits);
        let zone = &candidate.class.zone;
        add_to(zones.entry(zone.clone()).or_insert_with(|| part(zone.as_str())), candidate, fits);
        if let Some(record) = compute.store.get::<Node>(candidate.node) {
            for aggregate in &record.body.placing.aggregates {
                if let Some(part) = aggregates.get_mut(aggregate) {
                    add_to(part, candidate, fits);
                }
            }
        }
    }
    Ok(ops::Capacity {
        nodes: all.nodes,
        usable_nodes: all.usable_nodes,
        vcpus: all.vcpus,
        memory_mib: all.memory_mib,
        disk_gib: all.disk_gib,
        fits: all.fits,
        zones: zones.into_values().collect(),
        aggregates: aggregates.into_values().collect(),
    })
}

async fn list(compute: Arc<Compute>, session: Session, input: ListCapacity) -> Result<Page<NodeCapacity>> {
    let demand = asked(&session, input.flavor.as_ref())?;
    let aggregate = input.aggregate.as_ref().map(|aggregate| session.find::<Aggregate>(aggregate)).transpose()?;
    let members: Option<BTreeSet<NodeId>> = aggregate.map(|aggregate| {
        let query = Query::all().index(BY_AGGREGATE, aggregate.meta.id);
        compute.store.list::<Node>(&query).items.iter().map(|node| node.meta.id).collect()
    });
    let (mut candidates, policy) = compute.nodes_now();
    candidates.sort_by_key(|candidate| candidate.node);
    let limit = input.limit.map_or(100, Number::get) as usize;
    let wanted = |candidate: &&Candidate| {
        input.after.is_none_or(|after| candidate.node > after)
            && input.zone.as_ref().is_none_or(|zone| *zone == candidate.class.zone)
            && members.as_ref().is_none_or(|members| members.contains(&candidate.node))
    };
    let mut found = candidates.iter().filter(wanted);
    let page: Vec<&Candidate> = found.by_ref().take(limit).collect();
    let next = found.next().and(page.last()).map(|last| last.node.to_string());
    let fits = Fits { policy: &policy, demand: demand.as_ref() };
    let row = |candidate: &&Candidate| {
        let [vcpus, memory_mib, disk_gib] = rooms(candidate);
        let (fits, why) = fits.on(candidate);
        NodeCapacity {
            id: candidate.node,
            name: candidate.name.clone(),
            zone: candidate.class.zone.clone(),
            usable: candidate.usable(),
            vcpus,
            memory_mib,
            disk_gib,
            fits,
            why,
        }
    };
    Ok(Page { items: page.iter().map(row).collect(), next })
}

async fn lose(compute: Arc<Compute>, session: Session, input: LoseNode) -> Result<NodeLoss> {
    let node = session.find::<Node>(&input.node)?;
    let id = node.meta.id;
    let (candidates, policy) = compute.nodes_now();
    let mut nodes = Nodes::new(candidates.into_iter().filter(|candidate| candidate.node != id).collect());
    let mut servers = compute.store.list::<Server>(&Query::all().index(BY_NODE, id)).items;
    // The largest first: small ones find a place in what those leave.
    servers.sort_by_key(|server| {
        let amounts = server.body.amounts();
        std::cmp::Reverse((amounts.memory_mib, amounts.vcpus, amounts.disk_gib))
    });
    let (mut losses, mut placed) = (vec![], 0);
    // Where servers of groups went in this game; on the lost node there is none any more.
    let mut gone: BTreeMap<nephos_types::ServerGroupId, Vec<NodeId>> = BTreeMap::new();
    for record in &servers {
        let mut demand = demand(&compute, &record.body);
        if let (Some(group), Some(together)) = (record.body.placing.group, &mut demand.group) {
            together.on.remove(&id);
            for node in gone.get(&group).into_iter().flatten() {
                *together.on.entry(*node).or_default() += 1;
            }
        }
        let mut loss = Loss {
            server: record.meta.id,
            name: name_of(record)?,
            project: record.meta.project.unwrap_or_else(crate::resolve::no_id),
            node_name: None,
            why: None,
        };
        match choose(&nodes, &policy, &demand) {
            Ok(decision) => {
                if let Some(candidate) = nodes.taken(decision.index, demand.amounts) {
                    loss.node_name = Some(candidate.name.clone());
                    placed += 1;
                    if let Some(group) = record.body.placing.group {
                        gone.entry(group).or_default().push(candidate.node);
                    }
                }
            }
            Err(error) => loss.why = Some(error.detail),
        }
        losses.push(loss);
    }
    losses.sort_by_key(|loss| loss.node_name.is_some());
    let count = servers.len() as u64;
    losses.truncate(SHOWN);
    Ok(NodeLoss { id, name: name_of(&node)?, servers: count, placed, unplaced: count - placed, losses })
}
