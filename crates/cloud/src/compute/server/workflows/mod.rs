//! The workflows of servers, and what their steps have in common.
//!
//! A step reads the server's record, looks whether what it is for is so already, and otherwise commits what should be
//! together with its own record and waits for the node's report. So it can be called any number of times.

mod act;
mod create;
mod delete;
mod power;
mod rebuild;
pub(crate) mod reclaim;
pub(crate) mod relocate;
mod rescue;
mod resize;
mod shelve;
mod snapshot;
mod trash;
mod whereto;

use std::{sync::Arc, time::Duration};

use nephos_ops::compute::Fault;
use nephos_store::{Bound, Record, Transaction};
use nephos_types::{Error, ErrorKind, NodeId, Result, ServerGroupId, ServerId, Timestamp};
use nephos_workflow::{Done, Failure, StepContext};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use tests::World;
#[cfg(test)]
pub(super) use tests::{a_server, stands};

pub(super) use act::{Before, Input as ActInput};
pub(super) use create::NAME as CREATE;
pub(crate) use create::{demand, look};
pub(super) use delete::{Input as DeleteInput, NAME as DELETE};
pub(super) use power::{Action, Input as PowerInput};
pub(super) use rebuild::{NAME as REBUILD, Rebuild};
pub(crate) use relocate::{MOVE, Move};
pub(super) use rescue::{RESCUE, Rescue, UNRESCUE};
pub(super) use resize::{RESIZE, REVERT, Resize as ResizeTo, settled};
pub(super) use shelve::{SHELVE, Shelve, UNSHELVE};
pub(super) use snapshot::{NAME as SNAPSHOT, Snapshot, drafted};
pub(super) use trash::{RESTORE, TRASH, Trash};
pub(super) use whereto::{suits, way_back, whereto};

use super::{
    Server,
    record::{Life, Place},
};
use crate::{
    compute::{Compute, Held, group},
    image,
    journal::{self, Effects},
    placement::Amounts,
};

/// How often a step looks at the server even without a signal.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

pub(crate) fn register(compute: &Arc<Compute>) -> Result<()> {
    let held = Held::of(compute);
    compute.engine.register(create::definition(&held))?;
    compute.engine.register(delete::definition(&held))?;
    for definition in power::definitions(&held) {
        compute.engine.register(definition)?;
    }
    let actions = [
        rebuild::definition(&held),
        resize::definition(&held),
        resize::revert(&held),
        snapshot::definition(&held),
        rescue::definition(&held),
        rescue::unrescue(&held),
        relocate::definition(&held),
        shelve::definition(&held),
        shelve::unshelve(&held),
        trash::definition(&held),
        trash::restore(&held),
    ];
    for definition in actions {
        compute.engine.register(definition)?;
    }
    Ok(())
}

/// What workflows on one server are given.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) server: ServerId,
}

/// A step's answer.
type Answer<T> = Result<Done<T, Effects>, Failure>;

/// Signalled whenever a node reports something new of a server.
pub(crate) fn signal(server: ServerId) -> String {
    format!("server/{server}")
}

/// The server that a step works on.
fn server(compute: &Compute, id: ServerId) -> Result<Arc<Record<Server>>, Failure> {
    compute.store.get::<Server>(id).ok_or_else(|| Failure::fatal(Error::not_found("server", id)))
}

/// The server that a step works on, if this run still is what works on it.
fn own<I>(compute: &Compute, context: &StepContext<I>, id: ServerId) -> Result<Arc<Record<Server>>, Failure> {
    let record = server(compute, id)?;
    if record.body.task.as_ref().is_some_and(|task| task.workflow == context.run_id()) {
        Ok(record)
    } else {
        Err(Failure::fatal(Error::conflict("superseded", "Something else is being done to the server now")))
    }
}

/// An empty transaction in the name of a step's run.
fn effects<I>(definition: &str, context: &StepContext<I>) -> Transaction {
    journal::effects(definition, context.run_id())
}

/// Not yet: look again when the node reports.
fn wait<T>(id: ServerId) -> Done<T, Effects> {
    Done::wait(signal(id), LOOK_AGAIN)
}

/// Shows what the node does about a server.
fn show_progress<I>(compute: &Compute, context: &StepContext<I>, server: &Server) {
    use nephos_node_api::ServerState::Working;
    let node = server.node.and_then(|node| compute.nodes.summary(node));
    if let Some(node) = node.filter(|node| !node.up) {
        context.progress(None, format!("waiting for node {}, which is not heard of", node.name));
    } else if let Some(Working { doing, percent }) = server.observed.as_ref().map(|observed| &observed.state) {
        context.progress(*percent, doing.clone());
    }
}

/// Why a node cannot do what it was asked for, if it says that trying again will not help.
fn refusal(server: &Server) -> Option<Error> {
    let observed = server.observed.as_ref()?;
    observed.error.clone().filter(|error| observed.generation < server.generation && !error.retryable())
}

/// Lets go of the images that a server's node may have had to fetch, in the transaction in which it has or will not.
fn let_go_of_images(transaction: Transaction, server: &Server) -> Transaction {
    let transaction = server.held.iter().fold(transaction, |transaction, held| image::let_go(transaction, *held));
    match server.life {
        Life::Building => image::let_go(transaction, server.image.id),
        Life::Made | Life::Failed => transaction,
    }
}

/// The server with its work done: nothing is being done to it any more.
fn finished(mut server: Server) -> Server {
    server.last_workflow = server.task.take().map(|task| task.workflow);
    server
}

/// The server after its work failed.
fn failed<I>(server: Server, context: &StepContext<I>) -> Server {
    let mut server = finished(server);
    server.fault = context.failure().map(|error| Fault::of(error, Timestamp::now()));
    server
}

fn capacity(node: NodeId, what: &str) -> String {
    format!("capacity/{node}/{what}")
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn forward_claim(node: NodeId, port: u16) -> String {
    format!("forward/{node}/{port}")
}

/// Claims what a server takes on a node.
fn claim_capacity(transaction: Transaction, node: NodeId, taken: Amounts, capacity_of_node: Amounts) -> Transaction {
    let at_most = |value| Bound::AtMost(signed(value));
    transaction
        .add(capacity(node, "vcpus"), signed(taken.vcpus), at_most(capacity_of_node.vcpus))
        .add(capacity(node, "memory_mib"), signed(taken.memory_mib), at_most(capacity_of_node.memory_mib))
        .add(capacity(node, "disk_gib"), signed(taken.disk_gib), at_most(capacity_of_node.disk_gib))
        .add(capacity(node, "servers"), 1, Bound::Any)
}

/// Gives back everything that a server has claimed on nodes.
fn release_node(compute: &Compute, transaction: Transaction, id: ServerId, server: &Server) -> Transaction {
    let group = server.placing.group;
    server.places().fold(transaction, |transaction, place| release_place(compute, transaction, id, group, &place))
}

/// Gives back what a server of a group has claimed on one node.
fn release_place(
    compute: &Compute,
    mut transaction: Transaction,
    id: ServerId,
    group: Option<ServerGroupId>,
    place: &Place,
) -> Transaction {
    let Place { node, taken, ports, .. } = place;
    transaction = transaction
        .add(capacity(*node, "vcpus"), -signed(taken.vcpus), Bound::Any)
        .add(capacity(*node, "memory_mib"), -signed(taken.memory_mib), Bound::Any)
        .add(capacity(*node, "disk_gib"), -signed(taken.disk_gib), Bound::Any)
        .add(capacity(*node, "servers"), -1, Bound::Any);
    for port in ports.iter().filter(|port| **port != 0) {
        transaction = transaction.release(forward_claim(*node, *port), id);
    }
    group::release(&compute.store, transaction, group, *node)
}

/// What is claimed on a node, as the store counts.
pub(crate) fn used(compute: &Compute, node: NodeId) -> Amounts {
    let count = |what| u64::try_from(compute.store.counter(&capacity(node, what))).unwrap_or(0);
    Amounts { vcpus: count("vcpus"), memory_mib: count("memory_mib"), disk_gib: count("disk_gib") }
}

/// Makes a server be gone from its node, for undoing a creation and for deleting. Answers `None` once it is.
fn absent<T, I>(
    compute: &Compute,
    context: &StepContext<I>,
    definition: &str,
    record: &Record<Server>,
) -> Option<Done<T, Effects>> {
    use nephos_node_api::WantedPower;
    let id = record.meta.id;
    let removed = record.body.node.is_some_and(|node| compute.nodes.summary(node).is_none());
    if record.body.node.is_none() || removed {
        return None;
    }
    if record.body.wanted != WantedPower::Absent {
        let mut server = record.body.clone();
        server.wanted = WantedPower::Absent;
        server.generation += 1;
        return Some(wait(id).with(Some(effects(definition, context).update(record, server))));
    }
    if record.body.gone() {
        return None;
    }
    show_progress(compute, context, &record.body);
    Some(wait(id))
}

/// The kind of failure that ends a run because the server it worked on is not its own any more.
fn is_superseded(failure: &Failure) -> bool {
    failure.error().code == "superseded" || failure.error().kind == ErrorKind::NotFound
}
