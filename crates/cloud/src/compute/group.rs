//! Server groups: servers that are placed with regard to each other.
//!
//! Who is where is counted in the store, in the transactions that claim and give back a place on a node:
//!
//! - `group/<group>/servers`: how many belong to it; a group with servers is not deleted;
//! - `group/<group>/node/<node>`: how many of them have a claim on a node, bounded for anti-affinity;
//! - `group/<group>/placed`: how many claims there are, with affinity;
//! - the claim `group/<group>/place`: the node of a group with affinity. It counts while something is placed; whoever is
//!   the first one takes it over, and can only be the first one once.
//!
//! So no race can break a hard policy: the loser's transaction is refused, and decides again.

use std::{collections::BTreeMap, sync::Arc};

use nephos_ops::placement::{
    self as ops, CreateServerGroup, DeleteServerGroup, GroupMember, GroupPolicy, ListServerGroups, ShowServerGroup,
};
use nephos_store::{Bound, CommitError, Draft, Kind, Query, Record, Store, Transaction};
use nephos_types::{Error, ErrorKind, Name, NodeId, Number, Page, PageRequest, ProjectId, Result, ServerGroupId};
use serde::{Deserialize, Serialize};

use super::{
    Compute,
    server::{BY_GROUP, Server},
};
use crate::{
    core::Handlers,
    idempotency::Made,
    placement::Together,
    resolve::{Named, name_claim, name_of},
    session::{Session, Visible, refusal},
};

/// The most groups of a project.
const MOST_GROUPS: i64 = 100;
/// The most servers of a group.
const MOST_SERVERS: i64 = 1000;

/// A server group as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerGroup {
    /// How its servers are placed.
    pub policy: GroupPolicy,
    /// The most on one node, for anti-affinity.
    pub max_per_node: u64,
}

impl Kind for ServerGroup {
    type Id = ServerGroupId;
    const NAME: &'static str = "server_group";
}

impl Named for ServerGroup {
    const NOUN: &'static str = "server-group";
}

fn groups_counter(project: ProjectId) -> String {
    format!("quota/{project}/server_groups")
}

fn servers_counter(group: ServerGroupId) -> String {
    format!("group/{group}/servers")
}

fn nodes_prefix(group: ServerGroupId) -> String {
    format!("group/{group}/node/")
}

fn node_counter(group: ServerGroupId, node: NodeId) -> String {
    format!("group/{group}/node/{node}")
}

fn placed_counter(group: ServerGroupId) -> String {
    format!("group/{group}/placed")
}

fn place_claim(group: ServerGroupId) -> String {
    format!("group/{group}/place")
}

/// What of this family stands against deleting a project.
pub(super) fn project_use() -> crate::identity::ProjectUse {
    crate::identity::ProjectUse {
        what: "server groups",
        count: |store, project| u64::try_from(store.counter(&groups_counter(project))).unwrap_or(0),
        counter: Some(groups_counter),
    }
}

/// A server joins a group, in the transaction that makes it.
pub(super) fn join(transaction: Transaction, group: &Record<ServerGroup>) -> Transaction {
    transaction.expect(group).add(servers_counter(group.meta.id), 1, Bound::AtMost(MOST_SERVERS))
}

/// A server leaves its group, in the transaction that ends it.
pub(super) fn leave(transaction: Transaction, group: Option<ServerGroupId>) -> Transaction {
    match group {
        Some(group) => transaction.add(servers_counter(group), -1, Bound::Any),
        None => transaction,
    }
}

/// The refusal, if a commit failed because a group is full.
pub(super) fn exceeded(counter: &str) -> Option<Error> {
    (counter.starts_with("group/") && counter.ends_with("/servers")).then(|| {
        Error::new(ErrorKind::Quota, "group_full", "The server group is full")
            .detail(format!("at most {MOST_SERVERS} servers belong to one"))
            .next("make another group", Some("nephos server-group create NAME --policy POLICY".to_owned()))
    })
}

/// A group's servers as placement looks at them, without those claims that are a server's own.
pub(super) fn together(store: &Store, group: ServerGroupId, own: &[NodeId]) -> Option<Together> {
    let record = store.get::<ServerGroup>(group)?;
    let prefix = nodes_prefix(group);
    let mut on: BTreeMap<NodeId, u64> = store
        .counters(&prefix, None, usize::try_from(MOST_SERVERS).unwrap_or(usize::MAX) * 2)
        .into_iter()
        .filter_map(|(key, count)| Some((key.strip_prefix(&prefix)?.parse().ok()?, u64::try_from(count).ok()?)))
        .collect();
    if record.body.policy == GroupPolicy::Affinity {
        // One that may go back to where it was before a resize draws nobody there.
        let place = store.owner(&place_claim(group));
        on.retain(|node, _| place == Some(node.to_string()));
    }
    for node in own {
        if let Some(count) = on.get_mut(node) {
            *count = count.saturating_sub(1);
        }
    }
    on.retain(|_, count| *count > 0);
    Some(Together { policy: record.body.policy, most: record.body.max_per_node, on })
}

/// Claims a place of a group's server on a node, which was decided on `group` as [`together`] gave it. `from`: the node
/// that the server is on and stays on until it has moved.
pub(super) fn claim(
    store: &Store,
    mut transaction: Transaction,
    id: ServerGroupId,
    group: &Together,
    node: NodeId,
    from: Option<NodeId>,
) -> Transaction {
    let most = match group.policy {
        GroupPolicy::AntiAffinity => Bound::AtMost(i64::try_from(group.most).unwrap_or(i64::MAX)),
        _ => Bound::Any,
    };
    transaction = transaction.add(node_counter(id, node), 1, most);
    if group.policy != GroupPolicy::Affinity {
        return transaction;
    }
    if !group.on.is_empty() {
        // Refused if the others have gone and somebody has begun elsewhere.
        return transaction.claim(place_claim(id), node).add(placed_counter(id), 1, Bound::Any);
    }
    // The first one, or the only one, which counts twice while it moves.
    if let Some(old) = store.owner(&place_claim(id)) {
        transaction = transaction.release(place_claim(id), old);
    }
    let alone = if from.is_some() { 2 } else { 1 };
    transaction.claim(place_claim(id), node).add(placed_counter(id), 1, Bound::AtMost(alone))
}

/// Gives back a place of a group's server on a node.
pub(super) fn release(store: &Store, transaction: Transaction, id: Option<ServerGroupId>, node: NodeId) -> Transaction {
    let Some(id) = id else { return transaction };
    let transaction = transaction.add(node_counter(id, node), -1, Bound::Any);
    match store.get::<ServerGroup>(id).map(|group| group.body.policy) {
        Some(GroupPolicy::Affinity) => transaction.add(placed_counter(id), -1, Bound::Any),
        _ => transaction,
    }
}

/// Gives a place back that a server would have moved to, so that its group's place is again where it stayed.
pub(super) fn turn_back(
    store: &Store,
    transaction: Transaction,
    id: Option<ServerGroupId>,
    node: NodeId,
    stays: NodeId,
) -> Transaction {
    let alone = id.filter(|id| store.counter(&placed_counter(*id)) == 2);
    let transaction = release(store, transaction, id, node);
    match alone {
        // If somebody joins it there at this moment, the place stays where that one is.
        Some(id) => transaction
            .add(placed_counter(id), 1, Bound::AtMost(2))
            .add(placed_counter(id), -1, Bound::Any)
            .release(place_claim(id), node)
            .claim(place_claim(id), stays),
        None => transaction,
    }
}

/// Makes the one of its two places that a server is to be on, `to`, the place of its group with affinity. `None` if others
/// have joined it on the other one, so that it has to stay there.
pub(super) fn prefer(
    store: &Store,
    transaction: Transaction,
    id: Option<ServerGroupId>,
    from: NodeId,
    to: NodeId,
) -> Option<Transaction> {
    let affinity = |id: &ServerGroupId| {
        store.get::<ServerGroup>(*id).is_some_and(|group| group.body.policy == GroupPolicy::Affinity)
    };
    let Some(id) = id.filter(affinity) else { return Some(transaction) };
    (store.counter(&placed_counter(id)) <= 2).then(|| {
        transaction
            // Up and down again: refused if somebody joins it at this moment.
            .add(placed_counter(id), 1, Bound::AtMost(3))
            .add(placed_counter(id), -1, Bound::Any)
            .release(place_claim(id), from)
            .claim(place_claim(id), to)
    })
}

pub(super) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) {
    handlers.handle_creation(compute, create, |compute: Arc<Compute>, _: Session, made: Made| async move {
        compute.group_shown(made.id::<ServerGroup>()?)
    });
    handlers.handle(compute, list);
    handlers.handle(compute, show);
    handlers.handle(compute, delete);
}

/// What stands against a policy, given where a group's servers are; in the same order.
fn violations(group: &ServerGroup, nodes: &[Option<NodeId>]) -> Vec<Option<String>> {
    let mut on: BTreeMap<NodeId, usize> = BTreeMap::new();
    for node in nodes.iter().flatten() {
        *on.entry(*node).or_default() += 1;
    }
    // Together are those on the node that most are on.
    let home = on.iter().max_by_key(|(node, count)| (**count, std::cmp::Reverse(**node))).map(|(node, _)| *node);
    let most = match group.policy {
        GroupPolicy::AntiAffinity => usize::try_from(group.max_per_node).unwrap_or(usize::MAX),
        _ => 1,
    };
    let mut seen: BTreeMap<NodeId, usize> = BTreeMap::new();
    let violation = |node: &Option<NodeId>| {
        let node = (*node)?;
        match group.policy {
            GroupPolicy::Affinity | GroupPolicy::SoftAffinity => {
                (Some(node) != home).then(|| "it is on another node than most of the group".to_owned())
            }
            GroupPolicy::AntiAffinity | GroupPolicy::SoftAntiAffinity => {
                let place = seen.entry(node).or_default();
                *place += 1;
                let others = on.get(&node).copied().unwrap_or(1) - 1;
                (*place > most).then(|| format!("{others} more of the group are on its node"))
            }
        }
    };
    nodes.iter().map(violation).collect()
}

impl Compute {
    fn group_shown(&self, id: ServerGroupId) -> Result<ops::ServerGroup> {
        self.group_view(&*self.store.get::<ServerGroup>(id).ok_or_else(|| Error::not_found("server-group", id))?)
    }

    fn group_view(&self, record: &Record<ServerGroup>) -> Result<ops::ServerGroup> {
        let id = record.meta.id;
        let servers = self.store.list::<Server>(&Query::all().index(BY_GROUP, id)).items;
        let nodes: Vec<Option<NodeId>> = servers.iter().map(|server| server.body.node).collect();
        let violations = violations(&record.body, &nodes);
        let violators = violations.iter().flatten().count() as u64;
        let node_name = |node: NodeId| self.nodes.summary(node).map(|summary| summary.name);
        let member = |(server, violation): (&Arc<Record<Server>>, Option<String>)| -> Result<GroupMember> {
            let node_name: Option<Name> = server.body.node.and_then(node_name);
            Ok(GroupMember { server: server.meta.id, name: name_of(server)?, node_name, violation })
        };
        let anti = record.body.policy == GroupPolicy::AntiAffinity;
        Ok(ops::ServerGroup {
            id,
            name: name_of(record)?,
            project: record.meta.project.unwrap_or_else(crate::resolve::no_id),
            policy: record.body.policy,
            max_per_node: anti.then_some(record.body.max_per_node),
            satisfied: violators == 0,
            violators,
            servers: servers.len() as u64,
            members: servers.iter().zip(violations).map(member).collect::<Result<_>>()?,
            labels: record.meta.labels.clone(),
            created_at: record.meta.created_at,
        })
    }
}

async fn create(compute: Arc<Compute>, session: Session, input: CreateServerGroup) -> Result<ops::ServerGroup> {
    if input.max_per_node.is_some() && input.policy != GroupPolicy::AntiAffinity {
        return Err(Error::invalid("max_without_anti_affinity", "A most per node is for anti-affinity only")
            .next("leave it out, or choose the policy anti-affinity", None));
    }
    let (id, project) = (ServerGroupId::new(), session.project()?);
    let body = ServerGroup { policy: input.policy, max_per_node: input.max_per_node.map_or(1, Number::get) };
    let transaction = session
        .transaction()
        .create(Draft::new(id, body).project(project).name(input.name.clone()).labels(input.labels.clone()))
        .claim(name_claim::<ServerGroup>(project, &input.name), id)
        .add(groups_counter(project), 1, Bound::AtMost(MOST_GROUPS));
    session.commit_creation::<ServerGroup>(transaction, id, None).await.map_err(|error| match error {
        CommitError::Exceeded { limit, .. } => {
            Error::new(ErrorKind::Quota, "quota_exceeded", "The project has too many server groups")
                .detail(format!("have {limit} of {limit}"))
                .next("delete what is not needed", Some("nephos server-group list".to_owned()))
        }
        other => refusal(other),
    })?;
    compute.group_shown(id)
}

async fn list(compute: Arc<Compute>, session: Session, input: ListServerGroups) -> Result<Page<ops::ServerGroup>> {
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let mut query = Query::all().page::<ServerGroup>(&request)?;
    match session.listed(input.all_projects) {
        Visible::Everything => {}
        Visible::Project(project) => query = query.project(project),
        Visible::Domain(_) | Visible::Nothing => return Ok(Page { items: vec![], next: None }),
    }
    let page = compute.store.list::<ServerGroup>(&query);
    Ok(Page {
        items: page.items.iter().map(|record| compute.group_view(record)).collect::<Result<_>>()?,
        next: page.next,
    })
}

async fn show(compute: Arc<Compute>, session: Session, input: ShowServerGroup) -> Result<ops::ServerGroup> {
    compute.group_view(&*session.find::<ServerGroup>(&input.server_group)?)
}

async fn delete(_: Arc<Compute>, session: Session, input: DeleteServerGroup) -> Result<()> {
    session
        .decide_or(
            |transaction| {
                let record = session.find::<ServerGroup>(&input.server_group)?;
                let id = record.meta.id;
                let project = record.meta.project.unwrap_or_else(crate::resolve::no_id);
                let transaction = transaction
                    .delete(&record)
                    .release(name_claim::<ServerGroup>(project, name_of(&record)?), id)
                    .add(groups_counter(project), -1, Bound::Any)
                    // One more would be too many: refused if there is any.
                    .add(servers_counter(id), 1, Bound::AtMost(1))
                    .add(servers_counter(id), -1, Bound::Any);
                Ok((transaction, ()))
            },
            |error| match error {
                CommitError::Exceeded { value, .. } => Error::conflict("group_in_use", "Servers belong to the group")
                    .detail(format!("{value} of them"))
                    .next("see which", Some(format!("nephos server-group show {}", input.server_group)))
                    .next("delete them first", Some("nephos server delete NAME".to_owned())),
                other => refusal(other),
            },
        )
        .await
}

#[cfg(test)]
mod tests {
    use nephos_types::Id;

    use super::*;

    #[test]
    fn who_violates_a_policy() {
        let node = |number: u64| Some(NodeId::from_bits(number));
        let count = |policy, max_per_node, nodes: &[Option<NodeId>]| {
            violations(&ServerGroup { policy, max_per_node }, nodes).iter().flatten().count()
        };
        let split = [node(1), node(1), node(2), None];
        assert_eq!(count(GroupPolicy::Affinity, 1, &split), 1);
        assert_eq!(count(GroupPolicy::SoftAffinity, 1, &[node(1), node(1), None]), 0);
        assert_eq!(count(GroupPolicy::AntiAffinity, 1, &split), 1);
        assert_eq!(count(GroupPolicy::AntiAffinity, 2, &split), 0);
        assert_eq!(count(GroupPolicy::SoftAntiAffinity, 5, &[node(1), node(1), node(1)]), 2);
        assert_eq!(count(GroupPolicy::AntiAffinity, 1, &[None, None]), 0);
    }
}
