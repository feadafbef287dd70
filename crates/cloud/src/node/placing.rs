//! What nodes are to placement: zone, traits, aggregates, what they give out, and whether they take new servers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use nephos_ops::{
    node as ops,
    placement::{AssignNode, CordonNode, ListTraits, ListZones, Overcommit, Trait, UncordonNode, Zone},
};
use nephos_store::{Query, Record, Revision};
use nephos_types::{AggregateId, Error, Name, NodeId, Result, Text, WorkflowId};
use serde::{Deserialize, Serialize};

use super::{Node, Nodes, Reachable, aggregate, aggregate::Aggregate, record::NodeRecord, traits};
use crate::{
    Handlers, Session,
    placement::{Abilities, Amounts, Class, DEFAULT_ZONE, Policy, first_of},
    resolve::name_of,
};

/// What a node is to placement, as stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placing {
    /// Its zone; `None` for the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// Traits that an administrator set.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub traits: BTreeSet<String>,
    /// The aggregates that it is in.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub aggregates: BTreeSet<AggregateId>,
    /// What it gives out.
    #[serde(default, skip_serializing_if = "Overcommit::is_empty")]
    pub overcommit: Overcommit,
    /// The workflow that drains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<WorkflowId>,
}

/// Kinds of nodes that were looked at before: a node's kind is made anew only when its record or an aggregate changed.
#[derive(Default)]
pub(super) struct Classes(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// As of which change of the aggregates.
    aggregates: u64,
    of: HashMap<NodeId, (Revision, Arc<Class>)>,
    all: HashSet<Arc<Class>>,
}

pub(super) fn register(handlers: &mut Handlers, nodes: &Arc<Nodes>) {
    aggregate::register(handlers, nodes);
    handlers.handle(nodes, assign);
    handlers.handle(nodes, cordon);
    handlers.handle(nodes, uncordon);
    handlers.handle(nodes, zones);
    handlers.handle(nodes, list_traits);
}

/// The zone of nodes that were given none.
fn default_zone() -> Result<Name> {
    DEFAULT_ZONE.parse()
}

impl Nodes {
    /// Something that placement rests on has changed.
    pub(crate) fn changed(&self) {
        self.version.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
    }

    fn aggregates_of(&self, node: &Node) -> impl Iterator<Item = Arc<Record<Aggregate>>> {
        node.placing.aggregates.iter().filter_map(|id| self.store.get::<Aggregate>(*id))
    }

    /// What a node gives out, in percent.
    fn overcommit(&self, node: &Node) -> Overcommit {
        let least = |one: Option<u32>, other: Option<u32>| match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let of_aggregates = self.aggregates_of(node).fold(Overcommit::default(), |sum, aggregate| {
            let by = &aggregate.body.overcommit;
            Overcommit {
                vcpus: least(sum.vcpus, by.vcpus),
                memory: least(sum.memory, by.memory),
                disk: least(sum.disk, by.disk),
            }
        });
        let of_cloud = self.store.get::<Policy>(Policy::id()).map(|policy| policy.body.overcommit());
        let of_cloud = of_cloud.unwrap_or_else(|| Policy::default().overcommit());
        first_of(&node.placing.overcommit, &first_of(&of_aggregates, &of_cloud))
    }

    /// What servers may have on a node in sum.
    pub(super) fn capacity(&self, node: &Node) -> Amounts {
        let Some(inventory) = &node.inventory else { return Amounts::default() };
        let has = Amounts {
            vcpus: u64::from(inventory.cpus),
            memory_mib: inventory.memory.0 >> 20,
            disk_gib: inventory.disk.0 >> 30,
        };
        has.overcommitted(&self.overcommit(node))
    }

    pub(super) fn zone_of(node: &Node) -> Result<Name> {
        node.placing.zone.clone().map_or_else(default_zone, Ok)
    }

    pub(super) fn traits_of(node: &Node) -> BTreeSet<String> {
        let mut all = node.inventory.as_ref().map(traits::detected).unwrap_or_default();
        all.extend(node.placing.traits.iter().cloned());
        all
    }

    pub(super) fn aggregate_names(&self, node: &Node) -> Vec<Name> {
        self.aggregates_of(node).filter_map(|aggregate| aggregate.meta.name.clone()).collect()
    }

    /// What kind of node a node is.
    pub(super) fn class(&self, record: &NodeRecord) -> Result<Arc<Class>> {
        let mut known = self.classes.0.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.store.generation::<Aggregate>();
        if known.aggregates != generation {
            *known = Known { aggregates: generation, ..Known::default() };
        }
        if let Some((revision, class)) = known.of.get(&record.id())
            && *revision == record.meta.revision
        {
            return Ok(Arc::clone(class));
        }
        let node = &record.body;
        let properties = self.aggregates_of(node).flat_map(|aggregate| aggregate.body.properties.clone()).collect();
        let drivers = node.inventory.as_ref().map(|inventory| &*inventory.compute).unwrap_or_default();
        let class = Class {
            zone: Self::zone_of(node)?,
            traits: Self::traits_of(node),
            properties,
            abilities: Abilities::of(drivers),
        };
        let class = match known.all.get(&class) {
            Some(class) => Arc::clone(class),
            None => {
                let class = Arc::new(class);
                known.all.insert(Arc::clone(&class));
                class
            }
        };
        known.of.insert(record.id(), (record.meta.revision, Arc::clone(&class)));
        Ok(class)
    }
}

async fn assign(nodes: Arc<Nodes>, session: Session, input: AssignNode) -> Result<ops::Node> {
    let traits = input
        .traits
        .as_ref()
        .map(|traits| traits::check_custom(traits.as_slice().iter().map(Text::as_str)))
        .transpose()?;
    let id = session
        .decide(|transaction| {
            let record = session.find::<Node>(&input.node)?;
            let mut body = record.body.clone();
            if let Some(zone) = &input.zone {
                let old = Nodes::zone_of(&record.body)?;
                let asked = nodes.workload()?.asked_for_zone(record.id(), &old);
                if *zone != old && asked > 0 {
                    return Err(Error::conflict("zone_in_use", "Servers are on the node that asked for its zone")
                        .detail(format!("{asked} of them asked for `{old}`"))
                        .next("move them first", Some(format!("nephos node drain {}", name_of(&record)?))));
                }
                body.placing.zone = Some(zone.clone()).filter(|zone| zone.as_str() != DEFAULT_ZONE);
            }
            if let Some(traits) = &traits {
                body.placing.traits.clone_from(traits);
            }
            let given = [input.overcommit_vcpus, input.overcommit_memory, input.overcommit_disk];
            body.placing.overcommit = aggregate::overcommit(body.placing.overcommit, given);
            Ok((transaction.update(&record, body), record.id()))
        })
        .await?;
    nodes.changed();
    nodes.shown(id)
}

async fn cordon(nodes: Arc<Nodes>, session: Session, input: CordonNode) -> Result<ops::Node> {
    let reason = input.reason.as_ref().map(ToString::to_string).unwrap_or_default();
    let id = session
        .decide(|transaction| {
            let record = session.find::<Node>(&input.node)?;
            let mut body = record.body.clone();
            body.disabled = Some(reason.clone());
            Ok((transaction.update(&record, body), record.id()))
        })
        .await?;
    nodes.changed();
    nodes.shown(id)
}

async fn uncordon(nodes: Arc<Nodes>, session: Session, input: UncordonNode) -> Result<ops::Node> {
    let id = session
        .decide(|transaction| {
            let record = session.find::<Node>(&input.node)?;
            not_drained(&record)?;
            let mut body = record.body.clone();
            body.disabled = None;
            Ok((transaction.update(&record, body), record.id()))
        })
        .await?;
    nodes.changed();
    nodes.shown(id)
}

/// Refuses while servers are moved away from a node.
pub(super) fn not_drained(record: &Record<Node>) -> Result<()> {
    match record.body.placing.drain {
        None => Ok(()),
        Some(workflow) => Err(Error::conflict("node_draining", "The node is being drained")
            .next("wait for that", Some(format!("nephos workflow wait {workflow}")))
            .next("or cancel it", Some(format!("nephos workflow cancel {workflow}")))),
    }
}

fn usable(node: &Node) -> bool {
    node.reachable == Reachable::Up && node.disabled.is_none()
}

async fn zones(nodes: Arc<Nodes>, _: Session, _: ListZones) -> Result<Vec<Zone>> {
    let mut zones: BTreeMap<Name, (u64, u64)> = [(default_zone()?, (0, 0))].into();
    for record in nodes.store.list::<Node>(&Query::all()).items {
        let (all, able) = zones.entry(Nodes::zone_of(&record.body)?).or_default();
        *all += 1;
        *able += u64::from(usable(&record.body));
    }
    let zone = |(name, (nodes, usable_nodes))| Zone { name, available: usable_nodes > 0, nodes, usable_nodes };
    Ok(zones.into_iter().map(zone).collect())
}

async fn list_traits(nodes: Arc<Nodes>, _: Session, _: ListTraits) -> Result<Vec<Trait>> {
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    for record in nodes.store.list::<Node>(&Query::all()).items {
        for name in &nodes.class(&record)?.traits {
            match all.get_mut(name) {
                Some(count) => *count += 1,
                None => drop(all.insert(name.clone(), 1)),
            }
        }
    }
    let one = |(name, nodes): (String, u64)| Trait { detected: !name.starts_with("CUSTOM_"), name, nodes };
    Ok(all.into_iter().map(one).collect())
}
