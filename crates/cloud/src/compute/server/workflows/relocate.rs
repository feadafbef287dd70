//! `server.move`: bring a server to another node. Room is claimed there first; then its disk becomes an image, it leaves
//! its node, and is made from the image on the other one. Until it leaves, everything can be undone; from there on its
//! disk is safe in the image, and it can only go on.

use nephos_node_api::WantedPower;
use nephos_types::{Error, ImageId, NodeId, WorkflowId};
use nephos_workflow::{Definition, Done, Failure};
use serde::{Deserialize, Serialize};

use super::{
    Answer, absent,
    act::{GRACE_MS, Plan, Step},
    create::{self, Chosen, choose_place},
    release_place,
    snapshot::{copied, discard},
};
use crate::{
    compute::{Held, group, policy::Placed, server::record::Destination},
    image::Image,
    journal::Effects,
    placement::Demand,
};

/// The definition's name.
pub(crate) const MOVE: &str = "server.move";

/// What is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Move {
    /// The image that the disk becomes; its record is there.
    pub(crate) image: ImageId,
    /// The node to move to; the best one if `None`.
    #[serde(default)]
    pub(crate) to: Option<NodeId>,
    /// The workflow that empties the node.
    #[serde(default)]
    pub(crate) drain: Option<WorkflowId>,
}

pub(super) fn definition(held: &Held) -> Definition<Effects> {
    let mut plan = Plan::<Move>::undone_by(held, MOVE, |step| discard(step, step.change().image));
    plan.deciding("find capacity", reserve, give_back);
    plan.step("stop server", |step| step.stop(GRACE_MS));
    plan.step("copy disk", |step| {
        copied(step, step.change().image, false).map_or_else(|answer| answer, |_| Ok(Done::value(())))
    });
    plan.final_step("remove from node", |step| {
        let record = step.own()?;
        if record.body.placing.moving.is_none() {
            return Ok(Done::value(()));
        }
        Ok(absent(&step.compute, &step.context, step.name, &record).unwrap_or_else(|| Done::value(())))
    });
    plan.step("change node", change_node);
    plan.step("load image", |step| create::load_image(&step.compute, &step.context, step.id()));
    plan.step("start server", |step| step.start(step.before().ran));
    plan.step("finish", |step| step.finish(|transaction, _, _| Ok(transaction)));
    plan.build()
}

/// What a server needs of the node that it moves to.
pub(crate) fn demand(compute: &crate::compute::Compute, server: &super::Server, to: Option<NodeId>) -> Demand {
    Demand { only: to, not: server.node, ..super::demand(compute, server) }
}

/// Claims room on another node.
fn reserve(step: &Step<Move>) -> Answer<Placed> {
    let record = step.own()?;
    if let Some(to) = &record.body.placing.moving {
        return Ok(Done::value(Placed::Bare(to.node)));
    }
    let demand = demand(&step.compute, &record.body, step.change().to);
    let Chosen { place, driver, ports, transaction } = choose_place(&step.compute, step.effects(), &record, &demand)?;
    let mut body = record.body.clone();
    body.placing.moving = Some(Destination { node: place.node, driver, ports });
    Ok(Done::value(Placed::from(&place)).with(Some(transaction.update(&record, body))))
}

/// Undo of the claim.
fn give_back(step: &Step<Move>) -> Answer<()> {
    let Some(record) = step.compute.store.get::<super::Server>(step.id()) else { return Ok(Done::value(())) };
    let mut body = record.body.clone();
    // A deletion that goes on with the server gives back what is left here.
    let Some(to) = body.placing.moving.take().filter(|_| step.own().is_ok()) else { return Ok(Done::value(())) };
    let none = crate::compute::server::Server { placing: Default::default(), ..record.body.clone() };
    let transaction = release_place(&step.compute, step.effects(), record.meta.id, &none, to.node, to.ports);
    let group = record.body.placing.group;
    let transaction = match record.body.node {
        Some(stays) => group::turn_back(&step.compute.store, transaction, group, to.node, stays),
        None => group::release(&step.compute.store, transaction, group, to.node),
    };
    step.compute.candidates.give_back(to.node, record.body.amounts());
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}

/// The server is on the other node from now on, and made there from the copy of its disk.
fn change_node(step: &Step<Move>) -> Answer<()> {
    let image = step.change().image;
    let Some(record) = step.still_own()? else {
        // A deletion goes on with the server; what it does not know of is the copy.
        let discarded = step.compute.images.discard(step.effects(), image);
        return Ok(Done::value(()).with(Some(discarded)));
    };
    let Some(to) = record.body.placing.moving.clone() else { return Ok(Done::value(())) };
    let (source, _) = step
        .compute
        .images
        .source(image)
        .map_err(Failure::fatal)?
        .ok_or_else(|| Failure::fatal(Error::bug("a disk that was copied has no image")))?;
    let mut body = record.body.clone();
    body.placing.moving = None;
    let mut transaction = step.effects();
    if let Some(node) = record.body.node {
        let ports = record.body.forwards.iter().map(|forward| forward.host_port);
        transaction = release_place(&step.compute, transaction, record.meta.id, &body, node, ports);
        step.compute.candidates.give_back(node, record.body.amounts());
    }
    body.node = Some(to.node);
    body.driver = to.driver;
    for (forward, port) in body.forwards.iter_mut().zip(to.ports) {
        forward.host_port = port;
    }
    body.observed = None;
    body.snapshots.clear();
    body.image = source;
    body.incarnation += 1;
    body.generation += 1;
    body.wanted =
        if step.before().ran { WantedPower::On { restart: body.restart } } else { WantedPower::Off { grace_ms: 0 } };
    // What the disk was made from before is of no use any more if it was made for this server.
    if let Some(old) = body.own_image.replace(image).filter(|old| *old != image)
        && step.compute.store.get::<Image>(old).is_some()
    {
        transaction = step.compute.images.discard(transaction, old);
    }
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}
