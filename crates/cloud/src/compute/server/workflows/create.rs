//! `server.create`: find a node with room, let it load the image and start the server.

use nephos_node_api::WantedPower;
use nephos_store::{Record, Transaction};
use nephos_types::{Error, ErrorKind, NodeId, ServerId};
use nephos_workflow::{Definition, Done, Failure, StepContext};

use super::{
    Answer, Input, absent, claim_capacity, effects, failed, finished, forward_claim, is_superseded, let_go_of_images,
    own, refusal, release_node, server, show_progress, used, wait,
};
use crate::{
    compute::{
        Compute, Held, group,
        policy::Placed,
        server::{Server, record::Life},
    },
    journal::Effects,
    node::Summary,
    placement::{Candidate, Demand, Look, Place, Policy},
};

/// The definition's name.
pub(crate) const NAME: &str = "server.create";

pub(super) fn definition(held: &Held) -> Definition<Effects> {
    let mut definition = Definition::builder::<Input>(NAME);

    let compute = held.clone();
    let undoing = held.clone();
    definition
        .step("check request", move |context| {
            let compute = compute.clone();
            async move {
                let compute = compute.get()?;
                own(&compute, &context, context.input().server)?;
                Ok(Done::value(()))
            }
        })
        .undo(move |context, _: Option<()>| {
            let compute = undoing.clone();
            async move { mark_failed(&*compute.get()?, &context) }
        })
        .add();

    let compute = held.clone();
    let undoing = held.clone();
    definition
        .step("find capacity", move |context| {
            let compute = compute.clone();
            async move { find_capacity(&*compute.get()?, &context, NAME, context.input().server) }
        })
        .undo(move |context, _: Option<Placed>| {
            let compute = undoing.clone();
            async move { give_back(&*compute.get()?, &context, NAME, context.input().server) }
        })
        .add();

    let compute = held.clone();
    definition
        .step("load image", move |context| {
            let compute = compute.clone();
            async move { load_image(&*compute.get()?, &context, context.input().server) }
        })
        .add();

    let compute = held.clone();
    definition
        .step("start server", move |context| {
            let compute = compute.clone();
            async move { start(&*compute.get()?, &context) }
        })
        .add();

    definition.build()
}

/// The picture of the nodes that placement decides on.
pub(crate) fn look(compute: &Compute) -> Look<impl Fn() -> (Vec<Candidate>, Policy)> {
    let candidate = |summary: Summary| Candidate {
        used: used(compute, summary.id),
        node: summary.id,
        name: summary.name,
        up: summary.up,
        disabled: summary.disabled,
        class: summary.class,
        capacity: summary.capacity,
    };
    // The version is read before what it stands for.
    let version = compute.nodes.version();
    Look { version, draw: move || (compute.nodes.summaries().into_iter().map(candidate).collect(), compute.policy()) }
}

/// What a server needs of a node, its group included.
pub(crate) fn demand(compute: &Compute, server: &Server) -> Demand {
    let own: Vec<NodeId> = server.places().map(|place| place.node).collect();
    let group = server.placing.group.and_then(|id| group::together(&compute.store, id, &own));
    Demand { group, ..server.demand() }
}

/// A place that was chosen for a server, with what it takes to claim it.
pub(super) struct Chosen {
    pub(super) place: Place,
    pub(super) driver: String,
    /// The node's ports for the server's forwards.
    pub(super) ports: Vec<u16>,
    pub(super) transaction: Transaction,
}

/// Chooses a place, and adds the claims on it to a transaction. They hold only if the node is what it was.
pub(super) fn choose_place(
    compute: &Compute,
    transaction: Transaction,
    record: &Record<Server>,
    demand: &Demand,
) -> Result<Chosen, Failure> {
    // The caller is told at once; asking again is for the caller to decide.
    let place = compute.candidates.place(&look(compute), demand).map_err(Failure::fatal)?;
    let node = place.node;
    let changed = || {
        compute.candidates.give_back(node, demand.amounts);
        Failure::retry(Error::not_found("node", node))
    };
    let summary = compute.nodes.summary(node).ok_or_else(changed)?;
    if !summary.up || summary.disabled.is_some() {
        compute.nodes.changed();
        return Err(changed());
    }
    // Its drivers may have changed since the picture was drawn.
    let driver = summary.driver_for(demand.format, &demand.features).map(|driver| driver.driver.clone());
    let driver = driver.ok_or_else(changed)?;
    let id = record.meta.id;
    let ports = free_ports(compute, id, node, record.body.forwards.len()).inspect_err(|_| drop(changed()))?;
    let mut transaction = claim_capacity(transaction.expect(summary.record()), node, demand.amounts, summary.capacity);
    for port in &ports {
        transaction = transaction.claim(forward_claim(node, *port), id);
    }
    if let (Some(id), Some(group)) = (record.body.placing.group, &demand.group) {
        transaction = group::claim(&compute.store, transaction, id, group, node, record.body.node);
    }
    Ok(Chosen { place, driver, ports, transaction })
}

/// Places a server and lets it run there.
pub(super) fn find_capacity<I>(
    compute: &Compute,
    context: &StepContext<I>,
    definition: &str,
    id: ServerId,
) -> Answer<Placed> {
    let record = own(compute, context, id)?;
    if let Some(node) = record.body.node {
        return Ok(Done::value(Placed::Bare(node)));
    }
    let demand = demand(compute, &record.body);
    let Chosen { place, driver, ports, transaction } =
        choose_place(compute, effects(definition, context), &record, &demand)?;
    let mut body = record.body.clone();
    body.node = Some(place.node);
    body.driver = driver;
    body.generation += 1;
    body.wanted = WantedPower::On { restart: body.restart };
    for (forward, port) in body.forwards.iter_mut().zip(ports) {
        forward.host_port = port;
    }
    Ok(Done::value(Placed::from(&place)).with(Some(transaction.update(&record, body))))
}

/// Ports of a node that no server has claimed, from a place in the range that differs from server to server.
fn free_ports(compute: &Compute, id: ServerId, node: NodeId, count: usize) -> Result<Vec<u16>, Failure> {
    use nephos_types::Id;
    if count == 0 {
        return Ok(vec![]);
    }
    let Some(summary) = compute.nodes.summary(node) else {
        return Err(Failure::retry(Error::not_found("node", node)));
    };
    let (first, last) = summary.forward_ports;
    let size = u64::from(last.saturating_sub(first)) + 1;
    let start = id.bits().wrapping_mul(0x9E37_79B9_7F4A_7C15) % size;
    let free: Vec<u16> = (0..size)
        .filter_map(|step| u16::try_from(u64::from(first) + (start + step) % size).ok())
        .filter(|port| compute.store.owner(&forward_claim(node, *port)).is_none())
        .take(count)
        .collect();
    if free.len() < count {
        let error = Error::new(ErrorKind::Capacity, "no_free_ports", "The node has no free ports for forwarding")
            .detail(format!("node {}: ports {first} to {last} are all in use", summary.name));
        return Err(Failure::fatal(error));
    }
    Ok(free)
}

/// Waits until the node has the server's image.
pub(super) fn load_image<I>(compute: &Compute, context: &StepContext<I>, id: ServerId) -> Answer<()> {
    use nephos_node_api::ServerState::{Present, Working};
    let record = own(compute, context, id)?;
    if let Some(error) = refusal(&record.body) {
        return Err(Failure::fatal(error));
    }
    let loaded = record.body.observed.as_ref().is_some_and(|observed| match &observed.state {
        Present(_) => true,
        Working { doing, .. } => doing != nephos_node_api::FETCHING_IMAGE,
        _ => false,
    });
    if loaded {
        return Ok(Done::value(()));
    }
    show_progress(compute, context, &record.body);
    Ok(wait(record.meta.id))
}

fn start(compute: &Compute, context: &StepContext<Input>) -> Answer<()> {
    let record = own(compute, context, context.input().server)?;
    if record.body.reached() && record.body.running() {
        let mut body = finished(record.body.clone());
        body.life = Life::Made;
        body.held = vec![];
        let transaction = let_go_of_images(effects(NAME, context), &record.body);
        return Ok(Done::value(()).with(Some(transaction.update(&record, body))));
    }
    if let Some(error) = refusal(&record.body) {
        return Err(Failure::fatal(error));
    }
    show_progress(compute, context, &record.body);
    Ok(wait(record.meta.id))
}

/// Undo of the placement: the node removes what it has of the server, then what was claimed there is free again.
pub(super) fn give_back<I>(compute: &Compute, context: &StepContext<I>, definition: &str, id: ServerId) -> Answer<()> {
    let Some(record) = compute.store.get::<Server>(id) else { return Ok(Done::value(())) };
    if let Some(not_yet) = absent(compute, context, definition, &record) {
        return Ok(not_yet);
    }
    let Some(node) = record.body.node else { return Ok(Done::value(())) };
    let transaction = release_node(compute, effects(definition, context), record.meta.id, &record.body);
    let body = unplaced(record.body.clone());
    compute.candidates.give_back(node, record.body.amounts());
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}

/// A server as it is on no node.
pub(super) fn unplaced(mut body: Server) -> Server {
    body.node = None;
    body.observed = None;
    for forward in &mut body.forwards {
        forward.host_port = 0;
    }
    body
}

/// Undo of it all: the server stays, says why it could not be made, and waits to be deleted.
fn mark_failed(compute: &Compute, context: &StepContext<Input>) -> Answer<()> {
    match own(compute, context, context.input().server) {
        Ok(record) => {
            let mut body = failed(record.body.clone(), context);
            body.life = Life::Failed;
            body.held = vec![];
            let transaction = let_go_of_images(effects(NAME, context), &record.body);
            Ok(Done::value(()).with(Some(transaction.update(&record, body))))
        }
        Err(failure) if is_superseded(&failure) => match server(compute, context.input().server) {
            // A deletion goes on with it; it only has to know that there is nothing to wait for.
            Ok(record) if record.body.life == Life::Building => {
                let mut body = record.body.clone();
                body.life = Life::Failed;
                body.held = vec![];
                let transaction = let_go_of_images(effects(NAME, context), &record.body);
                Ok(Done::value(()).with(Some(transaction.update(&record, body))))
            }
            _ => Ok(Done::value(())),
        },
        Err(failure) => Err(failure),
    }
}
