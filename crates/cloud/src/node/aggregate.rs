//! Aggregates: named sets of nodes with properties. A node's record says which it is in, so that a set may be as large as
//! the cloud; what a deleted aggregate leaves there means nothing.

use std::{collections::BTreeMap, sync::Arc};

use nephos_ops::{
    image::Properties,
    placement::{
        self as ops, AddAggregateNode, CreateAggregate, DeleteAggregate, ListAggregates, Overcommit,
        RemoveAggregateNode, ShowAggregate, UpdateAggregate,
    },
};
use nephos_store::{Draft, Kind, Query, Record};
use nephos_types::{AggregateId, Error, Number, Page, PageRequest, Reference, Result};
use serde::{Deserialize, Serialize};

use super::{Node, Nodes, record::BY_AGGREGATE};
use crate::{CLOUD, Handlers, Named, Session, idempotency::Made, name_claim, resolve::name_of, session::refusal};

/// The most aggregates that one node is in.
const MOST: usize = 32;
/// How many nodes of an aggregate are shown.
const SHOWN: usize = 1000;

/// An aggregate as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aggregate {
    /// What its nodes have in common.
    pub properties: BTreeMap<String, String>,
    /// What its nodes give out.
    pub overcommit: Overcommit,
}

impl Kind for Aggregate {
    type Id = AggregateId;
    const NAME: &'static str = "aggregate";
}

impl Named for Aggregate {
    const NOUN: &'static str = "aggregate";
    fn spaces(_: &Session) -> Vec<String> {
        vec![CLOUD.to_owned()]
    }
}

/// What is asked for of overcommitment, over what there is: nothing leaves it, 0 takes it away.
pub(super) fn overcommit<const MIN: u64>(
    old: Overcommit,
    [vcpus, memory, disk]: [Option<Number<MIN, 10_000>>; 3],
) -> Overcommit {
    let new = |old: Option<u32>, new: Option<Number<MIN, 10_000>>| match new.map(Number::get_u32) {
        None => old,
        Some(0) => None,
        percent => percent,
    };
    Overcommit { vcpus: new(old.vcpus, vcpus), memory: new(old.memory, memory), disk: new(old.disk, disk) }
}

pub(super) fn register(handlers: &mut Handlers, nodes: &Arc<Nodes>) {
    handlers.handle_creation(nodes, create, |nodes: Arc<Nodes>, _: Session, made: Made| async move {
        nodes.aggregate(made.id::<Aggregate>()?)
    });
    handlers.handle(nodes, list);
    handlers.handle(nodes, show);
    handlers.handle(nodes, update);
    handlers.handle(nodes, delete);
    handlers.handle(nodes, add_node);
    handlers.handle(nodes, remove_node);
}

impl Nodes {
    fn aggregate(&self, id: AggregateId) -> Result<ops::Aggregate> {
        self.aggregate_view(&*self.store.get::<Aggregate>(id).ok_or_else(|| Error::not_found("aggregate", id))?)
    }

    fn aggregate_view(&self, record: &Record<Aggregate>) -> Result<ops::Aggregate> {
        let nodes = self.store.list::<Node>(&Query::all().index(BY_AGGREGATE, record.meta.id).limit(SHOWN));
        Ok(ops::Aggregate {
            id: record.meta.id,
            name: name_of(record)?,
            properties: Properties(record.body.properties.clone()),
            overcommit: record.body.overcommit,
            nodes: nodes.items.iter().filter_map(|node| node.meta.name.clone()).collect(),
            created_at: record.meta.created_at,
        })
    }
}

async fn create(nodes: Arc<Nodes>, session: Session, input: CreateAggregate) -> Result<ops::Aggregate> {
    let id = AggregateId::new();
    let given = [input.overcommit_vcpus, input.overcommit_memory, input.overcommit_disk];
    let body = Aggregate { properties: input.properties.0, overcommit: overcommit(Overcommit::default(), given) };
    let transaction = session
        .transaction()
        .create(Draft::new(id, body).name(input.name.clone()))
        .claim(name_claim::<Aggregate>(CLOUD, &input.name), id);
    session.commit_creation::<Aggregate>(transaction, id, None).await.map_err(refusal)?;
    nodes.aggregate(id)
}

async fn list(nodes: Arc<Nodes>, _: Session, input: ListAggregates) -> Result<Page<ops::Aggregate>> {
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let page = nodes.store.list::<Aggregate>(&Query::all().page::<Aggregate>(&request)?);
    let items = page.items.iter().map(|record| nodes.aggregate_view(record)).collect::<Result<_>>()?;
    Ok(Page { items, next: page.next })
}

async fn show(nodes: Arc<Nodes>, session: Session, input: ShowAggregate) -> Result<ops::Aggregate> {
    nodes.aggregate_view(&*session.find::<Aggregate>(&input.aggregate)?)
}

async fn update(nodes: Arc<Nodes>, session: Session, input: UpdateAggregate) -> Result<ops::Aggregate> {
    let id = session
        .decide(|mut transaction| {
            let record = session.find::<Aggregate>(&input.aggregate)?;
            let (id, old) = (record.meta.id, name_of(&record)?);
            let mut edit = record.edit();
            if let Some(new) = input.name.as_ref().filter(|new| **new != old) {
                transaction = transaction
                    .release(name_claim::<Aggregate>(CLOUD, &old), id)
                    .claim(name_claim::<Aggregate>(CLOUD, new), id);
                edit = edit.name(new.clone());
            }
            let edit = edit.modify(|body| {
                if let Some(properties) = &input.properties {
                    body.properties.clone_from(&properties.0);
                }
                let given = [input.overcommit_vcpus, input.overcommit_memory, input.overcommit_disk];
                body.overcommit = overcommit(body.overcommit, given);
            });
            Ok((transaction.save(edit), id))
        })
        .await?;
    nodes.changed();
    nodes.aggregate(id)
}

async fn delete(nodes: Arc<Nodes>, session: Session, input: DeleteAggregate) -> Result<()> {
    session
        .decide(|transaction| {
            let record = session.find::<Aggregate>(&input.aggregate)?;
            let claim = name_claim::<Aggregate>(CLOUD, name_of(&record)?);
            Ok((transaction.delete(&record).release(claim, record.meta.id), ()))
        })
        .await?;
    nodes.changed();
    Ok(())
}

async fn add_node(nodes: Arc<Nodes>, session: Session, input: AddAggregateNode) -> Result<ops::Aggregate> {
    member(&nodes, &session, &input.aggregate, &input.node, true).await
}

async fn remove_node(nodes: Arc<Nodes>, session: Session, input: RemoveAggregateNode) -> Result<ops::Aggregate> {
    member(&nodes, &session, &input.aggregate, &input.node, false).await
}

async fn member(
    nodes: &Nodes,
    session: &Session,
    aggregate: &Reference,
    node: &Reference,
    wanted: bool,
) -> Result<ops::Aggregate> {
    let id = session
        .decide(|transaction| {
            let aggregate = session.find::<Aggregate>(aggregate)?;
            let record = session.find::<Node>(node)?;
            let id = aggregate.meta.id;
            let mut body = record.body.clone();
            // Those that were deleted do not count.
            body.placing.aggregates.retain(|other| nodes.store.get::<Aggregate>(*other).is_some());
            if wanted {
                body.placing.aggregates.insert(id);
            } else {
                body.placing.aggregates.remove(&id);
            }
            if body.placing.aggregates.len() > MOST {
                return Err(Error::conflict("too_many_aggregates", "The node is in too many aggregates")
                    .detail(format!("at most {MOST}")));
            }
            let transaction = transaction.expect(&*aggregate);
            Ok((if body == record.body { transaction } else { transaction.update(&record, body) }, id))
        })
        .await?;
    nodes.changed();
    nodes.aggregate(id)
}
