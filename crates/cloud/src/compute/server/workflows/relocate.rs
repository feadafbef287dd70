//! `server.move`: bring a server to another node. Room is claimed there first; then its disk becomes an image, it leaves
//! its node, and is made from the image on the other one. Until it leaves, everything can be undone; from there on its
//! disk is safe in the image, and it can only go on.

use nephos_node_api::WantedPower;
use nephos_store::{Record, Transaction};
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
    compute::{
        Compute, Held, group,
        policy::Placed,
        server::{Server, record::Place},
    },
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
        if record.body.placing.elsewhere.is_none() {
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
pub(crate) fn demand(compute: &Compute, server: &Server, to: Option<NodeId>) -> Demand {
    Demand { only: to, not: server.node, ..super::demand(compute, server) }
}

/// Claims room on another node.
fn reserve(step: &Step<Move>) -> Answer<Placed> {
    let record = step.own()?;
    if let Some(to) = &record.body.placing.elsewhere {
        return Ok(Done::value(Placed::Bare(to.node)));
    }
    let demand = demand(&step.compute, &record.body, step.change().to);
    let Chosen { place, driver, ports, transaction } = choose_place(&step.compute, step.effects(), &record, &demand)?;
    let mut body = record.body.clone();
    let (node, by) = (place.node, Some(step.change().image));
    body.placing.elsewhere = Some(Place { node, driver, ports, taken: demand.amounts, by });
    Ok(Done::value(Placed::from(&place)).with(Some(transaction.update(&record, body))))
}

/// Undo of the claim.
fn give_back(step: &Step<Move>) -> Answer<()> {
    let Some(record) = step.compute.store.get::<Server>(step.id()) else { return Ok(Done::value(())) };
    let mut body = record.body.clone();
    // A deletion that goes on with the server gives back what is left here.
    let Some(to) = body.placing.elsewhere.take().filter(|_| step.own().is_ok()) else { return Ok(Done::value(())) };
    let transaction = turn_back(&step.compute, step.effects(), &record, &to);
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}

/// Gives back the place that a server would have moved to.
pub(super) fn turn_back(
    compute: &Compute,
    transaction: Transaction,
    record: &Record<Server>,
    to: &Place,
) -> Transaction {
    let transaction = release_place(compute, transaction, record.meta.id, None, to);
    compute.candidates.give_back(to.node, to.taken);
    let group = record.body.placing.group;
    match record.body.node {
        Some(stays) => group::turn_back(&compute.store, transaction, group, to.node, stays),
        None => group::release(&compute.store, transaction, group, to.node),
    }
}

/// Has a server's disk made anew from an image that exists for that, wherever the server is then.
pub(super) fn made_from<C>(
    step: &Step<C>,
    transaction: Transaction,
    server: &mut Server,
    image: ImageId,
) -> Result<Transaction, Failure> {
    let (source, _) = step
        .compute
        .images
        .source(image)
        .map_err(Failure::fatal)?
        .ok_or_else(|| Failure::fatal(Error::bug("a disk that was copied has no image")))?;
    server.image = source;
    server.incarnation += 1;
    server.generation += 1;
    server.wanted =
        if step.before().ran { WantedPower::On { restart: server.restart } } else { WantedPower::Off { grace_ms: 0 } };
    // What the disk was made from before is of no use any more if it was made for this server.
    Ok(match server.own_image.replace(image).filter(|old| *old != image) {
        Some(old) => step.compute.images.discard(transaction, old),
        None => transaction,
    })
}

/// The server is on the other node from now on, and made there from the copy of its disk.
fn change_node(step: &Step<Move>) -> Answer<()> {
    let image = step.change().image;
    let Some(record) = step.still_own()? else {
        // A deletion goes on with the server; what it does not know of is the copy.
        let discarded = step.compute.images.discard(step.effects(), image);
        return Ok(Done::value(()).with(Some(discarded)));
    };
    let mut body = record.body.clone();
    let Some(to) = body.placing.elsewhere.take() else { return Ok(Done::value(())) };
    let mut transaction = made_from(step, step.effects(), &mut body, image)?;
    if let Some(from) = record.body.place() {
        transaction = release_place(&step.compute, transaction, record.meta.id, body.placing.group, &from);
        step.compute.candidates.give_back(from.node, from.taken);
    }
    body.take_place(&to);
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}
