//! Schedules: operations that are called again and again.
//!
//! The engine decides when ([`nephos_workflow::due`]); here is where schedules are kept, and what people ask of them.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use nephos_ops::{
    AnswerKind, table,
    workflow::{self as ops, CreateSchedule, DeleteSchedule, ListSchedules, MissedRuns, ShowSchedule},
};
use nephos_store::{Author, Bound, CommitError, Draft, Kind, Query, Record, Store, Transaction};
use nephos_types::{Error, ErrorKind, Id, Page, PageRequest, ProjectId, Result, ScheduleId, Timestamp};
use nephos_workflow::{MAX_MADE_UP, Missed, Revision, Run, SaveError, Schedule, ScheduleStore, Timing};
use serde::{Deserialize, Serialize};

use super::{
    Workflows,
    call::{self, Input},
};
use crate::{
    core::Handlers,
    idempotency::Made,
    journal::{self, asked_by},
    resolve::{Named, name_claim, name_of},
    session::{Session, refusal},
};

/// The most schedules that one project may have.
pub(crate) const MOST_SCHEDULES: i64 = 1000;

/// The counter of a project's schedules.
pub(crate) fn schedules_counter(project: ProjectId) -> String {
    format!("quota/{project}/schedules")
}

/// A schedule as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoredSchedule(pub Schedule);

impl Kind for StoredSchedule {
    type Id = ScheduleId;
    const NAME: &'static str = "schedule";
    const VERSION: u32 = nephos_workflow::SCHEDULE_VERSION;
}

impl Named for StoredSchedule {
    const NOUN: &'static str = "schedule";
}

/// Schedules as the engine keeps them.
pub(super) struct Kept(pub(super) Store);

impl ScheduleStore for Kept {
    fn load(&self) -> BoxFuture<'_, Result<Vec<(Schedule, Revision)>>> {
        Box::pin(async move {
            let records = self.0.list::<StoredSchedule>(&Query::all());
            Ok(records.items.iter().map(|record| (record.body.0.clone(), Revision(record.meta.revision.0))).collect())
        })
    }

    fn fire(&self, schedule: Schedule, expected: Revision, runs: Vec<Run>) -> BoxFuture<'_, Result<(), SaveError>> {
        Box::pin(async move {
            let record = self.0.get::<StoredSchedule>(schedule.id);
            let Some(record) = record.filter(|record| record.meta.revision.0 == expected.0) else {
                return Err(SaveError::Fenced);
            };
            let author = Author::new("schedule").operation("schedule.fire").source(schedule.id);
            let mut transaction = Transaction::new(author).update(&record, StoredSchedule(schedule));
            for run in runs {
                transaction = journal::start(transaction, run);
            }
            match self.0.commit(transaction).await {
                Ok(_) => Ok(()),
                Err(CommitError::Exists { .. }) => Err(SaveError::Exists),
                Err(CommitError::Conflict { .. }) => Err(SaveError::Fenced),
                Err(error) => Err(SaveError::Unavailable(error.into())),
            }
        })
    }
}

pub(super) fn register(handlers: &mut Handlers, workflows: &Arc<Workflows>) {
    handlers.handle_creation(workflows, create, |workflows: Arc<Workflows>, _: Session, made: Made| async move {
        workflows.schedule(made.id::<StoredSchedule>()?)
    });
    handlers.handle(workflows, list);
    handlers.handle(workflows, show);
    handlers.handle(workflows, delete);
}

fn view(record: &Record<StoredSchedule>) -> Result<ops::Schedule> {
    let schedule = &record.body.0;
    let input: Input = serde_json::from_value(schedule.input.as_ref().clone())
        .map_err(|error| Error::internal("a schedule's input cannot be read", error))?;
    let (every_seconds, cron) = match &schedule.timing {
        Timing::Interval { seconds } => (Some(*seconds), None),
        Timing::Cron { expression } => (None, Some(expression.clone())),
    };
    Ok(ops::Schedule {
        id: record.meta.id,
        name: name_of(record)?,
        project: record.meta.project.unwrap_or_else(|| ProjectId::from_bits(0)),
        every_seconds,
        cron,
        operation: input.operation,
        input: input.input.into(),
        missed: match schedule.missed {
            Missed::Skip => MissedRuns::Skip,
            Missed::Once => MissedRuns::Once,
            Missed::All { .. } => MissedRuns::All,
        },
        last_at: schedule.last_run.map(|_| schedule.last_slot),
        next_at: schedule.timing.next_after(Timestamp::now().max(schedule.last_slot))?,
        created_at: record.meta.created_at,
    })
}

impl Workflows {
    fn schedule(&self, id: ScheduleId) -> Result<ops::Schedule> {
        view(&*self.store.get::<StoredSchedule>(id).ok_or_else(|| Error::not_found("schedule", id))?)
    }
}

/// The operation that a schedule shall call; only what answers by itself can be called when nobody listens.
fn check_operation(operation: &str) -> Result<()> {
    let entry = table().iter().find(|entry| entry.spec.name == operation).ok_or_else(|| {
        Error::invalid("unknown_operation", format!("There is no operation `{operation}`"))
            .next("see what there is", Some("nephos --help".to_owned()))
    })?;
    let plain = matches!(entry.answer, AnswerKind::Json | AnswerKind::Started | AnswerKind::Nothing);
    if !plain || entry.spec.upload || entry.spec.noun() == "token" {
        return Err(Error::invalid("not_schedulable", format!("`{operation}` cannot be called by a schedule"))
            .detail("it streams, or logs somebody in"));
    }
    Ok(())
}

async fn create(workflows: Arc<Workflows>, session: Session, input: CreateSchedule) -> Result<ops::Schedule> {
    let project = session.project()?;
    let user = session.identity()?.user;
    let timing = match (input.every_seconds, &input.cron) {
        (Some(seconds), None) => Timing::Interval { seconds: seconds.get() },
        (None, Some(expression)) => Timing::Cron { expression: expression.as_str().to_owned() },
        _ => {
            return Err(Error::invalid("ambiguous_timing", "A schedule has either an interval or a cron expression")
                .next("give one of every_seconds and cron", None));
        }
    };
    timing.check()?;
    check_operation(input.operation.as_str())?;
    let id = ScheduleId::new();
    let call = Input { operation: input.operation.as_str().to_owned(), input: input.input, user, project };
    let schedule = Schedule {
        id,
        timing,
        missed: match input.missed {
            MissedRuns::Skip => Missed::Skip,
            MissedRuns::Once => Missed::Once,
            MissedRuns::All => Missed::All { at_most: MAX_MADE_UP },
        },
        overlap: false,
        paused: false,
        definition: call::NAME.into(),
        input: Arc::new(serde_json::json!(call)),
        subject: id.to_string().into(),
        project: Some(project),
        author: Arc::new(asked_by(&session)),
        last_slot: Timestamp::now(),
        last_run: None,
    };
    let transaction = session
        .transaction()
        .create(Draft::new(id, StoredSchedule(schedule)).project(project).name(input.name.clone()))
        .claim(name_claim::<StoredSchedule>(project, &input.name), id)
        .add(schedules_counter(project), 1, Bound::AtMost(MOST_SCHEDULES));
    session.commit_creation::<StoredSchedule>(transaction, id, None).await.map_err(|error| match error {
        CommitError::Exceeded { limit, .. } => {
            Error::new(ErrorKind::Quota, "quota_exceeded", "The project has too many schedules")
                .detail(format!("have {limit} of {limit}"))
                .next("delete what is not needed", Some("nephos schedule list".to_owned()))
        }
        other => refusal(other),
    })?;
    workflows.engine.schedules_changed();
    workflows.schedule(id)
}

async fn list(workflows: Arc<Workflows>, session: Session, input: ListSchedules) -> Result<Page<ops::Schedule>> {
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let query = Query::all().project(session.project()?).page::<StoredSchedule>(&request)?;
    let page = workflows.store.list::<StoredSchedule>(&query);
    Ok(Page { items: page.items.iter().map(|record| view(record)).collect::<Result<_>>()?, next: page.next })
}

async fn show(_: Arc<Workflows>, session: Session, input: ShowSchedule) -> Result<ops::Schedule> {
    view(&*session.find::<StoredSchedule>(&input.schedule)?)
}

async fn delete(workflows: Arc<Workflows>, session: Session, input: DeleteSchedule) -> Result<()> {
    session
        .decide(|transaction| {
            let record = session.find::<StoredSchedule>(&input.schedule)?;
            let space = record.meta.project.unwrap_or_else(|| ProjectId::from_bits(0));
            let claim = name_claim::<StoredSchedule>(space, name_of(&record)?);
            let transaction = transaction.delete(&record).release(claim, record.meta.id);
            Ok((transaction.add(schedules_counter(space), -1, Bound::Any), ()))
        })
        .await?;
    workflows.engine.schedules_changed();
    Ok(())
}
