//! `server.delete`: end what else is being done to the server, remove it from its node, forget it.

use nephos_types::{ServerId, WorkflowId};
use nephos_workflow::{Definition, Done, StepContext, settled_key};
use serde::{Deserialize, Serialize};

use super::{Answer, LOOK_AGAIN, absent, effects, let_go_of_images, release_node};
use crate::{
    compute::{Compute, Held, group, quota, server::Server},
    image,
    journal::{Effects, WorkflowRun},
    network,
    resolve::{name_claim, name_of},
};

/// The definition's name.
pub(crate) const NAME: &str = "server.delete";

/// What the workflow is given.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Input {
    /// The server.
    pub(crate) server: ServerId,
    /// What was being done to it when its deletion was asked for.
    pub(crate) other: Option<WorkflowId>,
}

pub(super) fn definition(held: &Held) -> Definition<Effects> {
    let mut definition = Definition::builder::<Input>(NAME);

    let compute = held.clone();
    definition
        .step("end other work", move |context: StepContext<Input>| {
            let compute = compute.clone();
            async move { end_other_work(&*compute.get()?, &context).await }
        })
        .no_return()
        .add();

    let compute = held.clone();
    definition
        .step("remove from node", move |context: StepContext<Input>| {
            let compute = compute.clone();
            async move {
                let compute = compute.get()?;
                let Some(record) = compute.store.get::<Server>(context.input().server) else {
                    return Ok(Done::value(()));
                };
                Ok(absent(&compute, &context, NAME, &record).unwrap_or_else(|| Done::value(())))
            }
        })
        .add();

    let compute = held.clone();
    definition
        .step("release", move |context: StepContext<Input>| {
            let compute = compute.clone();
            async move { release(&*compute.get()?, &context) }
        })
        .add();

    definition.build()
}

async fn end_other_work(compute: &Compute, context: &StepContext<Input>) -> Answer<()> {
    let Some(other) = context.input().other else { return Ok(Done::value(())) };
    let Some(run) = compute.store.get::<WorkflowRun>(other) else { return Ok(Done::value(())) };
    // What is stuck does nothing more by itself, and its server is not its own any more.
    if run.body.0.state.is_settled() {
        return Ok(Done::value(()));
    }
    if !run.body.0.cancel_requested {
        // Refused only past a point of no return; then it ends by itself.
        let _ = compute.engine.cancel(other).await;
    }
    Ok(Done::wait(settled_key(other), LOOK_AGAIN))
}

fn release(compute: &Compute, context: &StepContext<Input>) -> Answer<()> {
    let Some(record) = compute.store.get::<Server>(context.input().server) else { return Ok(Done::value(())) };
    let id = record.meta.id;
    let transaction = release_node(compute, effects(NAME, context).delete(&record), id, &record.body);
    let transaction = network::disconnect(&compute.networks, transaction, id);
    let mut transaction = group::leave(transaction, record.body.placing.group);
    transaction = image::let_go_all(let_go_of_images(transaction, &record.body), &record.body.kept);
    if let Some(image) = record.body.own_image {
        transaction = compute.images.discard(transaction, image);
    }
    if let Some(project) = record.meta.project {
        transaction = quota::give_back(&compute.store, transaction, project, record.body.charged())
            .release(name_claim::<Server>(&project.to_string(), name_of(&record)?), id);
    }
    for place in record.body.places() {
        compute.candidates.give_back(place.node, place.taken);
    }
    Ok(Done::value(()).with(Some(transaction)))
}
