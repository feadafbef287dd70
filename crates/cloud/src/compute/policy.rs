//! The operations on how it is decided where servers go, and why one is where it is.

use std::sync::Arc;

use nephos_ops::placement::{
    self as ops, ExplainPlacement, Overcommit, PlacementReasons, ServerPlacement, SetFilter, SetOvercommit, SetWeight,
    ShowPlacement,
};
use nephos_store::{Draft, Query};
use nephos_types::{Error, Name, NodeId, Number, Result};
use serde::{Deserialize, Serialize};

use super::{Compute, server::Server};
use crate::{
    core::Handlers,
    journal::{BY_SUBJECT, WorkflowRun},
    placement::{Place, Policy},
    resolve::name_of,
    session::Session,
};

/// The most that a weight may count, either way.
const MOST: i32 = 10_000;

/// What the step that places a server gives: the node, and why it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Placed {
    /// With the reasons.
    Explained {
        /// The node.
        node: NodeId,
        /// Its name.
        name: Name,
        /// In a sentence.
        summary: String,
        /// The reasons.
        reasons: Box<PlacementReasons>,
    },
    /// It was placed before.
    Bare(NodeId),
}

impl From<&Place> for Placed {
    fn from(place: &Place) -> Self {
        Self::Explained {
            node: place.node,
            name: place.name.clone(),
            summary: place.summary(),
            reasons: Box::new(place.reasons.clone()),
        }
    }
}

pub(super) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) {
    handlers.handle(compute, show);
    handlers.handle(compute, set_filter);
    handlers.handle(compute, set_weight);
    handlers.handle(compute, set_overcommit);
    handlers.handle(compute, explain);
}

impl Compute {
    /// How servers are placed.
    pub(crate) fn policy(&self) -> Policy {
        self.store.get::<Policy>(Policy::id()).map(|record| record.body.clone()).unwrap_or_default()
    }
}

fn view(compute: &Compute) -> ops::Placement {
    let policy = compute.policy();
    ops::Placement { filters: policy.filters(), weights: policy.weights(), overcommit: policy.overcommit() }
}

async fn show(compute: Arc<Compute>, _: Session, _: ShowPlacement) -> Result<ops::Placement> {
    Ok(view(&compute))
}

async fn change(
    compute: &Compute,
    session: &Session,
    change: impl Fn(Policy) -> Result<Policy>,
) -> Result<ops::Placement> {
    session
        .decide(|transaction| {
            let record = compute.store.get::<Policy>(Policy::id());
            let new = change(record.as_ref().map(|record| record.body.clone()).unwrap_or_default())?;
            let transaction = match record {
                Some(record) => transaction.update(&record, new),
                None => transaction.create(Draft::new(Policy::id(), new)),
            };
            Ok((transaction, ()))
        })
        .await?;
    compute.nodes.changed();
    Ok(view(compute))
}

async fn set_filter(compute: Arc<Compute>, session: Session, input: SetFilter) -> Result<ops::Placement> {
    change(&compute, &session, |policy| policy.filtered(input.filter, input.enabled)).await
}

async fn set_weight(compute: Arc<Compute>, session: Session, input: SetWeight) -> Result<ops::Placement> {
    if !(-MOST..=MOST).contains(&input.multiplier) {
        return Err(Error::invalid("invalid_input", "The input of placement.set-weight is not valid").reason(
            "multiplier",
            "range",
            format!("-{MOST} to {MOST}"),
        ));
    }
    change(&compute, &session, |policy| Ok(policy.weighed(input.weight, input.multiplier))).await
}

async fn set_overcommit(compute: Arc<Compute>, session: Session, input: SetOvercommit) -> Result<ops::Placement> {
    let by = Overcommit {
        vcpus: input.vcpus.map(Number::get_u32),
        memory: input.memory.map(Number::get_u32),
        disk: input.disk.map(Number::get_u32),
    };
    change(&compute, &session, |policy| Ok(policy.overcommitted(&by))).await
}

async fn explain(compute: Arc<Compute>, session: Session, input: ExplainPlacement) -> Result<ServerPlacement> {
    let record = session.find::<Server>(&input.server)?;
    let unknown = || {
        Error::conflict("placement_unknown", "It is not known (any more) why the server is where it is").next(
            "look at the server",
            Some(format!("nephos server show {}", record.meta.name.as_ref().map_or("", |name| name.as_str()))),
        )
    };
    let node = record.body.node.ok_or_else(|| {
        Error::conflict("placement_unknown", "The server is on no node")
            .next("see what is done to it", Some(format!("nephos workflow list --subject {}", record.meta.id)))
    })?;
    name_of(&record)?;
    let runs = compute.store.list::<WorkflowRun>(&Query::all().index(BY_SUBJECT, record.meta.id));
    let placed = runs.items.iter().rev().find_map(|run| {
        let step =
            run.body.0.steps.iter().find_map(|step| match Placed::deserialize(&**step.output.as_ref()?).ok()? {
                Placed::Explained { node: chosen, name, summary, reasons } if chosen == node => {
                    Some((step.finished_at.unwrap_or(run.meta.updated_at), name, summary, reasons))
                }
                _ => None,
            });
        step.map(|step| (run.meta.id, step))
    });
    let (workflow, (decided_at, node_name, summary, reasons)) = placed.ok_or_else(unknown)?;
    let server = record.meta.id;
    Ok(ServerPlacement { server, node, node_name, decided_at, workflow, summary, reasons: *reasons })
}
