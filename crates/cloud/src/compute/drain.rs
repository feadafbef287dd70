//! Emptying a node: `node.drain` keeps new servers off it and has its servers moved to others, a few at a time, each by a
//! workflow of its own that lives on if this one is cancelled. What cannot be moved stays, and is said.
//!
//! Nothing is remembered but what the records say: a server that is being moved has the task; one whose move failed has
//! that workflow as its last one.

use std::sync::Arc;

use nephos_ops::{Started, node as ops, placement::DrainNode};
use nephos_store::{CommitError, Query, Record, Transaction};
use nephos_types::{Error, NodeId, Result, WorkflowId};
use nephos_workflow::{Definition, Done, Failure, Run, RunState, StepContext, settled_key};
use serde::{Deserialize, Serialize};

use super::{
    Compute, Held,
    server::{
        BY_NODE, Server, actions,
        workflows::{MOVE, Move, signal},
    },
};
use crate::{
    core::Handlers,
    journal::{self, Effects, WorkflowRun},
    node::Node,
    resolve::name_of,
    session::Session,
};

/// The definition's name.
const NAME: &str = "node.drain";
/// Servers that move at the same time.
const AT_ONCE: usize = 4;
/// How many servers an error names.
const NAMED: usize = 50;
/// Signals that are waited for at once.
const SIGNALS: usize = 60;
/// How often it is looked even without a signal.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

/// What the workflow is given.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Input {
    node: NodeId,
}

/// What became of the servers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Drained {
    /// In a sentence.
    summary: String,
    /// Why servers stayed: their names, and a sentence each.
    stayed: Vec<(String, String)>,
    /// How many stayed, those included that are not named.
    left: usize,
}

type Answer<T> = Result<Done<T, Effects>, Failure>;

pub(super) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) -> Result<()> {
    handlers.handle(compute, drain);
    compute.engine.register(definition(&Held::of(compute)))
}

async fn drain(compute: Arc<Compute>, session: Session, input: DrainNode) -> Result<Started<ops::Node>> {
    let reason = input.reason.as_ref().map_or_else(|| "drained".to_owned(), ToString::to_string);
    let (id, workflow) = session
        .decide(|transaction| {
            let record = session.find::<Node>(&input.node)?;
            let id = record.meta.id;
            if let Some(workflow) = record.body.placing.drain {
                return Ok((transaction.expect(&record), (id, workflow)));
            }
            let workflow = WorkflowId::new();
            let run = compute
                .engine
                .prepare(NAME, workflow, &Input { node: id })?
                .subject(id.to_string())
                .author(journal::asked_by(&session));
            let mut body = record.body.clone();
            body.disabled = Some(reason.clone());
            body.placing.drain = Some(workflow);
            Ok((journal::start(transaction.update(&record, body), run), (id, workflow)))
        })
        .await?;
    compute.nodes.changed();
    let answer = Started { workflow, resource: compute.nodes.shown(id)? };
    compute.engine.kick(workflow);
    Ok(answer)
}

/// The definition; it begins with a node that takes no new servers, and says which workflow drains it.
pub(crate) fn definition(held: &Held) -> Definition<Effects> {
    let mut definition = Definition::builder::<Input>(NAME);
    let (compute, undoing) = (held.clone(), held.clone());
    definition
        .step("keep new servers off", move |context: StepContext<Input>| {
            let compute = compute.clone();
            async move { Ok(Done::value(servers(&*compute.get()?, context.input().node).len())) }
        })
        .undo(move |context, _: Option<usize>| {
            let compute = undoing.clone();
            async move { unmark(&*compute.get()?, &context) }
        })
        .add();
    let compute = held.clone();
    let drained = definition
        .step("move servers", move |context: StepContext<Input>| {
            let compute = compute.clone();
            async move { move_servers(&*compute.get()?, &context).await }
        })
        .limit(std::time::Duration::from_secs(7 * 24 * 3600))
        .add();
    definition
        .step("see that it is empty", move |context: StepContext<Input>| async move {
            let drained: Drained = context.get(drained)?;
            if drained.left == 0 {
                return Ok(Done::value(()));
            }
            let mut error = Error::conflict("drain_incomplete", "Not every server could be moved")
                .detail(format!("{}; the node stays out of service, and those that moved stay moved", drained.summary));
            for (name, why) in drained.stayed {
                error = error.reason(name, "move", why);
            }
            let error = error.next("see to them, and drain again", None);
            Err::<Done<(), Effects>, _>(Failure::fatal(error))
        })
        .add();
    let compute = held.clone();
    definition
        .step("finish", move |context: StepContext<Input>| {
            let compute = compute.clone();
            async move { unmark(&*compute.get()?, &context) }
        })
        .no_return()
        .add();
    definition.build()
}

/// The node is not being drained any more; new servers are kept off it as before.
fn unmark(compute: &Compute, context: &StepContext<Input>) -> Answer<()> {
    let Some(record) = compute.store.get::<Node>(context.input().node) else { return Ok(Done::value(())) };
    if record.body.placing.drain != Some(context.run_id()) {
        return Ok(Done::value(()));
    }
    let mut body = record.body.clone();
    body.placing.drain = None;
    Ok(Done::value(()).with(Some(journal::effects(NAME, context.run_id()).update(&record, body))))
}

fn servers(compute: &Compute, node: NodeId) -> Vec<Arc<Record<Server>>> {
    compute.store.list::<Server>(&Query::all().index(BY_NODE, node)).items
}

/// What a server that is on the node does about leaving it.
enum Leaving {
    /// A workflow does something to it: its move, or something else after which it may move.
    Busy(WorkflowId, bool),
    /// It stays, for this reason.
    Stays(String),
    /// It can be moved.
    Ready,
}

fn leaving(compute: &Compute, record: &Record<Server>, drain: WorkflowId) -> Leaving {
    if let Some(task) = &record.body.task {
        let run = compute.store.get::<WorkflowRun>(task.workflow);
        return match run.map(|run| run.body.0.state) {
            Some(RunState::Stuck) => Leaving::Stays(format!("`{}` of it is stuck: {}", task.name, task.workflow)),
            _ => Leaving::Busy(task.workflow, task.name == "move"),
        };
    }
    let tried = record.body.last_workflow.and_then(|last| compute.store.get::<WorkflowRun>(last));
    if let Some(run) = tried.filter(|run| drain_of(&run.body.0) == Some(drain)) {
        let why = run.body.0.error.as_ref().map_or_else(|| "it was cancelled".to_owned(), ToString::to_string);
        return Leaving::Stays(why);
    }
    match actions::movable(compute, record) {
        Ok(()) => Leaving::Ready,
        Err(error) => Leaving::Stays(error.to_string()),
    }
}

/// The moves that this drain has begun and that are neither over nor stuck.
fn unsettled(compute: &Compute, drain: WorkflowId) -> Vec<WorkflowId> {
    let open = compute.store.list::<WorkflowRun>(&journal::open_runs()).items;
    let ours = |run: &&Arc<Record<WorkflowRun>>| {
        let run = &run.body.0;
        run.state != RunState::Stuck && drain_of(run) == Some(drain)
    };
    open.iter().filter(ours).map(|run| run.meta.id).collect()
}

/// The drain that a run is part of, if it is a move that a drain has begun.
fn drain_of(run: &Run) -> Option<WorkflowId> {
    if *run.definition != *MOVE {
        return None;
    }
    run.input.get("change").and_then(|change| Move::deserialize(change).ok())?.drain
}

async fn move_servers(compute: &Compute, context: &StepContext<Input>) -> Answer<Drained> {
    let (node, drain) = (context.input().node, context.run_id());
    let all = servers(compute, node);
    let (mut busy, mut moving, mut stayed) = (vec![], 0, vec![]);
    let mut ready = vec![];
    for record in &all {
        match leaving(compute, record, drain) {
            Leaving::Busy(workflow, moves) => {
                // Whoever committed it may have been cut off before it was taken up.
                compute.engine.kick(workflow);
                busy.push((record.meta.id, workflow));
                moving += usize::from(moves);
            }
            Leaving::Stays(why) => stayed.push((name_of(record)?.to_string(), why)),
            Leaving::Ready => ready.push(record),
        }
    }
    for record in ready {
        if moving >= AT_ONCE {
            // Its turn comes when another one has moved.
            break;
        }
        match begin(compute, context, record).await? {
            Begun::Moving(workflow) => {
                busy.push((record.meta.id, workflow));
                moving += 1;
            }
            Begun::Refused(why) => stayed.push((name_of(record)?.to_string(), why)),
            // It is looked at again.
            Begun::Changed => return Ok(Done::after(std::time::Duration::ZERO)),
        }
    }
    if busy.is_empty() {
        // A move that is not over may still fail and bring its server back.
        let ending = unsettled(compute, drain);
        if !ending.is_empty() {
            context.progress(None, format!("{} on the node, {} about to have moved", all.len(), ending.len()));
            return Ok(Done::wait(ending.into_iter().take(SIGNALS).map(settled_key).collect::<Vec<_>>(), LOOK_AGAIN));
        }
        let left = stayed.len();
        stayed.truncate(NAMED);
        let summary = if left == 0 { "no server is left".to_owned() } else { format!("{left} could not be moved") };
        return Ok(Done::value(Drained { summary, stayed, left }));
    }
    let names: Vec<&str> = stayed.iter().map(|(name, _)| name.as_str()).collect();
    let cannot = if names.is_empty() { String::new() } else { format!("; cannot move: {}", names.join(", ")) };
    context.progress(None, format!("{} on the node, {moving} moving{cannot}", all.len()));
    let signals = busy.iter().flat_map(|(server, workflow)| [signal(*server), settled_key(*workflow)]);
    Ok(Done::wait(signals.take(SIGNALS).collect::<Vec<_>>(), LOOK_AGAIN))
}

enum Begun {
    Moving(WorkflowId),
    Refused(String),
    Changed,
}

/// Has a server moved. Called again it finds the server busy, so it happens once.
async fn begin(compute: &Compute, context: &StepContext<Input>, record: &Record<Server>) -> Result<Begun, Failure> {
    let transaction = journal::effects(NAME, context.run_id());
    let author = context.author().clone();
    let begun = actions::begin_move(compute, transaction, record, (None, Some(context.run_id())), author);
    let (transaction, workflow): (Transaction, WorkflowId) = match begun {
        Ok(begun) => begun,
        Err(error) => return Ok(Begun::Refused(words(&error))),
    };
    match compute.store.commit(transaction).await {
        Ok(_) => {
            compute.engine.kick(workflow);
            Ok(Begun::Moving(workflow))
        }
        Err(CommitError::Conflict { .. }) => Ok(Begun::Changed),
        Err(CommitError::Failed(error)) => Err(Failure::from(error)),
        Err(error) => Ok(Begun::Refused(Error::from(error).to_string())),
    }
}

fn words(error: &Error) -> String {
    let mut words = error.to_string();
    if words.len() > 500 {
        words = words.chars().take(500).collect();
    }
    words
}
