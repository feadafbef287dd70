//! `operation.call`: calls an operation in somebody's name, and waits for the workflow that it starts.
//!
//! Whoever asked for it is looked up anew at each call: a user who has lost a role meanwhile has lost it here, too. The
//! call carries the step's key as idempotency key, so that a repeat after a crash makes nothing twice.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use nephos_ops::{Answer, AnswerKind, Caller, table};
use nephos_types::{Error, ErrorKind, ProjectId, UserId, WorkflowId};
use nephos_workflow::{Definition, Done, Failure, RunState, StepContext, settled_key};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Workflows;
use crate::journal::{Effects, WorkflowRun};

/// The definition's name.
pub(super) const NAME: &str = "operation.call";

/// How often the started workflow is looked at even without a signal.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What is called, and for whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) operation: String,
    pub(super) input: Map<String, Value>,
    pub(super) user: UserId,
    pub(super) project: ProjectId,
}

pub(super) fn definition(workflows: &Arc<Workflows>) -> Definition<Effects> {
    let mut definition = Definition::builder::<Input>(NAME);
    let held = Arc::downgrade(workflows);
    let started = definition
        .step("call", move |context: StepContext<Input>| {
            let held = held.clone();
            async move { call(&*get(&held)?, &context).await }
        })
        .add();
    let held = Arc::downgrade(workflows);
    definition
        .step("wait for its workflow", move |context: StepContext<Input>| {
            let held = held.clone();
            async move { wait(&*get(&held)?, context.get(started)?) }
        })
        .add();
    definition.build()
}

fn get(held: &Weak<Workflows>) -> Result<Arc<Workflows>, Error> {
    held.upgrade().ok_or_else(|| Error::new(ErrorKind::Unavailable, "stopping", "The control plane is stopping"))
}

async fn call(
    workflows: &Workflows,
    context: &StepContext<Input>,
) -> Result<Done<Option<WorkflowId>, Effects>, Failure> {
    let input = context.input();
    let Some(entry) = table().iter().find(|entry| entry.spec.name == input.operation) else {
        return Err(Failure::fatal(Error::not_found("operation", &input.operation)));
    };
    let cloud = workflows
        .cloud
        .get()
        .ok_or_else(|| Error::new(ErrorKind::Unavailable, "starting", "The control plane is not ready yet"))?;
    let identity = workflows.authority.on_behalf_of(input.user, input.project).map_err(|error| {
        Failure::fatal(
            Error::new(ErrorKind::Forbidden, "caller_gone", "Whoever asked for this may not do it any more")
                .detail(error.to_string()),
        )
    })?;
    let caller = Caller { identity: Some(identity), address: "internal".to_owned(), front_end: "schedule" };
    let mut call = cloud.context(caller);
    call.idempotency_key = Some(context.key());
    match (entry.call)(call, Value::Object(input.input.clone())).await? {
        Answer::Json(text) if entry.answer == AnswerKind::Started => {
            let started: Value = serde_json::from_slice(&text)
                .map_err(|error| Failure::fatal(Error::internal("an answer could not be read", error)))?;
            Ok(Done::value(started["workflow"].as_str().and_then(|id| id.parse().ok())))
        }
        _ => Ok(Done::value(None)),
    }
}

fn wait(workflows: &Workflows, started: Option<WorkflowId>) -> Result<Done<(), Effects>, Failure> {
    let Some(id) = started else { return Ok(Done::value(())) };
    let Some(record) = workflows.store.get::<WorkflowRun>(id) else { return Ok(Done::value(())) };
    let run = &record.body.0;
    match run.state {
        RunState::Succeeded => Ok(Done::value(())),
        RunState::Failed | RunState::Cancelled | RunState::Stuck => {
            let why = run.error.as_deref().cloned();
            Err(Failure::fatal(why.unwrap_or_else(|| {
                Error::conflict("workflow_ended", "The workflow that was started did not succeed")
                    .detail(id.to_string())
            })))
        }
        _ => Ok(Done::wait(settled_key(id), LOOK_AGAIN)),
    }
}
