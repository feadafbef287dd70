//! `node.upgrade`: a node's agent becomes the program that the control plane is.
//!
//! What is wanted stands in the node's record while the workflow runs; the agent fetches it, tries it, replaces its own
//! file and goes on as the new program, which says hello. Servers notice nothing.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use nephos_node_api::UPGRADE_FAILED;
use nephos_ops::{Started, node as ops};
use nephos_types::{Error, ErrorKind, NodeId, Result, WorkflowId};
use nephos_workflow::{Definition, Done, Failure, StepContext};
use serde::{Deserialize, Serialize};

use super::{
    Node, Nodes,
    program::Program,
    record::{NodeRecord, WantedProgram},
};
use crate::{
    Handlers, Session,
    journal::{self, Effects, Engine},
};

#[cfg(test)]
mod tests;

const NAME: &str = "node.upgrade";
/// How long the agent may take, the download over a slow line included.
const WITHIN: Duration = Duration::from_secs(1800);
/// How often a step looks at the node even without a signal.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What a run is given.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Input {
    node: NodeId,
    sha256: String,
    size: u64,
}

type Answer<T> = Result<Done<T, Effects>, Failure>;

/// Registers operation and workflow.
pub(super) fn register(nodes: &Arc<Nodes>, handlers: &mut Handlers, engine: &Engine) -> Result<()> {
    handlers.handle(nodes, upgrade);
    engine.register(definition(&Arc::downgrade(nodes)))
}

async fn upgrade(nodes: Arc<Nodes>, session: Session, input: ops::UpgradeNode) -> Result<Started<ops::Node>> {
    let program = Program::own().await?;
    let workflow = WorkflowId::new();
    let engine = nodes.engine()?;
    let id = session
        .decide(|transaction| {
            let record = session.find::<Node>(&input.node)?;
            check(&record)?;
            let given = Input { node: record.id(), sha256: program.sha256.clone(), size: program.size };
            let run = engine
                .prepare(NAME, workflow, &given)?
                .subject(record.id().to_string())
                .author(journal::asked_by(&session));
            Ok((journal::start(transaction.expect(&record), run), record.id()))
        })
        .await?;
    engine.kick(workflow);
    Ok(Started { workflow, resource: nodes.view(&*nodes.record(id)?)? })
}

/// Whether the node's agent can take up another program now.
fn check(record: &NodeRecord) -> Result<()> {
    let node = &record.body;
    if node.program.is_none() {
        let error =
            Error::conflict("agent_not_replaceable", "The node's agent cannot take up another program by itself");
        return Err(match &node.local {
            Some(_) => {
                error.detail("it is part of `nephos up`").next("install the new program here and restart it", None)
            }
            None => error
                .detail("it has not said hello yet, or is too old to know how")
                .next("install the new program on the machine and restart the agent; servers go on running", None),
        });
    }
    if let Some(wanted) = &node.wanted_program {
        return Err(Error::conflict("upgrade_running", "The node is being upgraded already")
            .next("follow it", Some(format!("nephos workflow wait {}", wanted.workflow))));
    }
    let architecture = node.inventory.as_ref().map(|inventory| inventory.architecture.as_str());
    if architecture.is_some_and(|architecture| architecture != std::env::consts::ARCH) {
        return Err(Error::conflict("other_architecture", "The node cannot run the control plane's program")
            .detail(format!(
                "its CPUs are {}, the program is for {}",
                architecture.unwrap_or_default(),
                std::env::consts::ARCH
            ))
            .next("install the program for its architecture on the machine and restart the agent", None));
    }
    Ok(())
}

fn definition(nodes: &Weak<Nodes>) -> Definition<Effects> {
    let held = |nodes: &Weak<Nodes>| {
        nodes.upgrade().ok_or_else(|| Error::new(ErrorKind::Unavailable, "stopping", "The control plane is stopping"))
    };
    let mut definition = Definition::builder::<Input>(NAME);

    let (doing, undoing) = (nodes.clone(), nodes.clone());
    definition
        .step("offer the program", move |context| {
            let nodes = doing.clone();
            async move { offer(&*held(&nodes)?, &context) }
        })
        .undo(move |context, _: Option<()>| {
            let nodes = undoing.clone();
            async move { withdraw(&*held(&nodes)?, &context) }
        })
        .add();

    let doing = nodes.clone();
    definition
        .step("wait until the agent is it", move |context| {
            let nodes = doing.clone();
            async move { until_so(&*held(&nodes)?, &context) }
        })
        .limit(WITHIN)
        .add();

    let doing = nodes.clone();
    definition
        .step("finish", move |context| {
            let nodes = doing.clone();
            async move { withdraw(&*held(&nodes)?, &context) }
        })
        .add();

    definition.build()
}

fn record(nodes: &Nodes, context: &StepContext<Input>) -> Result<NodeRecord, Failure> {
    let id = context.input().node;
    nodes.store.get::<Node>(id).ok_or_else(|| Failure::fatal(Error::not_found("node", id)))
}

fn offer(nodes: &Nodes, context: &StepContext<Input>) -> Answer<()> {
    let record = record(nodes, context)?;
    let input = context.input();
    let wanted = WantedProgram { sha256: input.sha256.clone(), size: input.size, workflow: context.run_id() };
    match &record.body.wanted_program {
        Some(other) if other.workflow != wanted.workflow => {
            Err(Failure::fatal(Error::conflict("superseded", "The node is being upgraded by another workflow")))
        }
        _ => {
            let mut body = record.body.clone();
            body.wanted_program = Some(wanted);
            Ok(Done::value(()).with(Some(journal::effects(NAME, context.run_id()).update(&record, body))))
        }
    }
}

fn until_so(nodes: &Nodes, context: &StepContext<Input>) -> Answer<()> {
    let record = record(nodes, context)?;
    if record.body.program.as_ref() == Some(&context.input().sha256) {
        return Ok(Done::value(()));
    }
    // What an earlier attempt left behind is not about this one.
    let offered = record.body.wanted_program.as_ref().map(|wanted| wanted.workflow);
    let failed = record.body.health.iter().find(|condition| condition.code == UPGRADE_FAILED);
    if let Some(failed) = failed.filter(|_| offered == Some(context.run_id())) {
        return Err(Failure::fatal(
            Error::conflict(UPGRADE_FAILED, "The agent could not take up the program").detail(failed.message.clone()),
        ));
    }
    nodes.wake(record.id());
    let name = record.meta.name.as_ref().map_or("", |name| name.as_str());
    context.progress(None, format!("waiting for the agent on {name}"));
    Ok(Done::wait(Nodes::signal_of(record.id()), LOOK_AGAIN))
}

/// Wants no program any more; what the agent has taken up it is.
fn withdraw(nodes: &Nodes, context: &StepContext<Input>) -> Answer<()> {
    let Some(record) = nodes.store.get::<Node>(context.input().node) else { return Ok(Done::value(())) };
    if record.body.wanted_program.as_ref().is_none_or(|wanted| wanted.workflow != context.run_id()) {
        return Ok(Done::value(()));
    }
    let mut body = record.body.clone();
    body.wanted_program = None;
    Ok(Done::value(()).with(Some(journal::effects(NAME, context.run_id()).update(&record, body))))
}
