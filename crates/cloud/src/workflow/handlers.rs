//! What people may ask of workflows.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use nephos_ops::{
    Event, EventStream,
    workflow::{
        self as ops, CancelWorkflow, ListWorkflows, RetryWorkflow, ShowWorkflow, StepState, WatchWorkflow,
        WorkflowState,
    },
};
use nephos_store::{Query, Record};
use nephos_types::{Error, Page, PageRequest, Result, WorkflowId};
use nephos_workflow::{Run, RunState, StepRecord, StepState as Stored};

use super::Workflows;
use crate::{
    core::Handlers,
    journal::{BY_SUBJECT, WorkflowRun, open_runs},
    session::{Session, Visible},
};

pub(super) fn register(handlers: &mut Handlers, workflows: &Arc<Workflows>) {
    handlers.handle(workflows, list);
    handlers.handle(workflows, show);
    handlers.handle(workflows, watch);
    handlers.handle(workflows, cancel);
    handlers.handle(workflows, retry);
}

fn step(record: &StepRecord) -> ops::Step {
    let state = match record.state {
        Stored::Pending => StepState::Pending,
        Stored::Running if record.wait.is_some() => StepState::Waiting,
        Stored::Running => StepState::Running,
        Stored::Succeeded => StepState::Succeeded,
        Stored::Failed => StepState::Failed,
        Stored::Undoing => StepState::Undoing,
        Stored::Undone => StepState::Undone,
        Stored::Stuck => StepState::UndoFailed,
    };
    ops::Step {
        name: record.name.to_string(),
        state,
        attempts: record.attempts,
        detail: detail(record),
        percent: record.progress.as_ref().and_then(|progress| progress.percent),
        error: record.error.as_ref().map(ToString::to_string),
        started_at: record.started_at,
        finished_at: record.finished_at,
    }
}

/// What a step says of itself: what it came to, if it gave a summary; else what it does or did last.
fn detail(record: &StepRecord) -> Option<String> {
    let came_to = record.output.as_ref().and_then(|output| output.get("summary")?.as_str().map(str::to_owned));
    let does = || record.progress.as_ref().map(|progress| progress.text.clone());
    came_to.or_else(does).filter(|text| !text.is_empty())
}

/// What people see of a run.
#[must_use]
pub fn view(run: &Run) -> ops::Workflow {
    ops::Workflow {
        id: run.id,
        name: run.definition.to_string(),
        project: run.project,
        subject: Some(run.subject.to_string()).filter(|subject| !subject.is_empty()),
        state: match run.state {
            RunState::Running => WorkflowState::Running,
            RunState::Waiting => WorkflowState::Waiting,
            RunState::Undoing => WorkflowState::Undoing,
            RunState::Succeeded => WorkflowState::Succeeded,
            RunState::Failed => WorkflowState::Failed,
            RunState::Cancelled => WorkflowState::Cancelled,
            RunState::Stuck => WorkflowState::Stuck,
        },
        steps: run.steps.iter().map(step).collect(),
        error: run.error.as_deref().cloned(),
        created_at: run.created_at,
        updated_at: run.updated_at,
    }
}

impl Workflows {
    /// A run that the caller may see.
    fn find(&self, session: &Session, id: WorkflowId) -> Result<Arc<Record<WorkflowRun>>> {
        self.store
            .get::<WorkflowRun>(id)
            .filter(|record| match session.visible() {
                Visible::Everything => true,
                Visible::Project(project) => record.meta.project == Some(project),
                Visible::Domain(_) | Visible::Nothing => false,
            })
            .ok_or_else(|| Error::not_found("workflow", id))
    }

    fn current(&self, id: WorkflowId) -> Result<ops::Workflow> {
        let record = self.store.get::<WorkflowRun>(id).ok_or_else(|| Error::not_found("workflow", id))?;
        Ok(view(&record.body.0))
    }
}

async fn list(workflows: Arc<Workflows>, session: Session, input: ListWorkflows) -> Result<Page<ops::Workflow>> {
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let mut query = if input.open { open_runs() } else { Query::all() }.page::<WorkflowRun>(&request)?;
    if let Some(subject) = &input.subject {
        query = query.index(BY_SUBJECT, subject);
    }
    match session.listed(input.all_projects) {
        Visible::Everything => {}
        Visible::Project(project) => query = query.project(project),
        Visible::Domain(_) | Visible::Nothing => return Ok(Page { items: vec![], next: None }),
    }
    Ok(workflows.store.list::<WorkflowRun>(&query).map(|record| view(&record.body.0)))
}

async fn show(workflows: Arc<Workflows>, session: Session, input: ShowWorkflow) -> Result<ops::Workflow> {
    Ok(view(&workflows.find(&session, input.workflow)?.body.0))
}

async fn watch(workflows: Arc<Workflows>, session: Session, input: WatchWorkflow) -> Result<EventStream> {
    workflows.find(&session, input.workflow)?;
    let runs = workflows.engine.watch(input.workflow).await?;
    let states = stream::unfold(Some((runs, true)), |state| async move {
        let (mut runs, first) = state?;
        // A channel that closes early belongs to an engine that stops; the client asks again.
        if !first && runs.changed().await.is_err() {
            return None;
        }
        let run = Arc::clone(&runs.borrow_and_update());
        let event = serde_json::to_string(&view(&run))
            .map(|data| Event { id: Some(run.sequence.to_string()), name: "workflow".into(), data })
            .map_err(|error| Error::internal("a workflow could not be rendered", error));
        Some((event, (!run.state.is_settled()).then_some((runs, false))))
    });
    Ok(EventStream(states.boxed()))
}

async fn cancel(workflows: Arc<Workflows>, session: Session, input: CancelWorkflow) -> Result<ops::Workflow> {
    workflows.find(&session, input.workflow)?;
    workflows.engine.cancel(input.workflow).await?;
    workflows.current(input.workflow)
}

async fn retry(workflows: Arc<Workflows>, session: Session, input: RetryWorkflow) -> Result<ops::Workflow> {
    workflows.find(&session, input.workflow)?;
    workflows.engine.retry_stuck(input.workflow).await?;
    workflows.current(input.workflow)
}
