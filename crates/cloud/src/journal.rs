//! Workflow runs in the cloud resource database: the engine's journal, with store transactions as effects.
//!
//! A run's record and the effects of the step that it records are one transaction; the record's revision is the fence.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use nephos_store::{Author, CommitError, Committed, Draft, Kind, Query, Record, Store, Transaction};
use nephos_types::{Error, ErrorKind, Result, WorkflowId};
use nephos_workflow::{Journal, Revision, Run, SaveError, Stored};
use serde::{Deserialize, Serialize};

use crate::session::Session;

/// The engine on the store.
pub(crate) type Engine = nephos_workflow::Engine<StoreJournal>;

/// What a step may have committed with its record.
pub(crate) type Effects = Option<Transaction>;

/// A run as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct WorkflowRun(pub Arc<Run>);

/// Index of runs by whether they are closed: `open` or `closed`.
const BY_OPEN: &str = "open";
/// Index of runs by what they work on.
pub(crate) const BY_SUBJECT: &str = "subject";

impl Kind for WorkflowRun {
    type Id = WorkflowId;
    const NAME: &'static str = "workflow";
    const VERSION: u32 = nephos_workflow::RUN_VERSION;
    // Runs change with every step and tell their own history.
    const AUDITED: bool = false;
    const INDEXES: &'static [&'static str] = &[BY_OPEN, BY_SUBJECT];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        let run = &record.body.0;
        match index {
            BY_OPEN => vec![if run.state.is_closed() { "closed" } else { "open" }.to_owned()],
            BY_SUBJECT if !run.subject.is_empty() => vec![run.subject.to_string()],
            _ => vec![],
        }
    }
}

/// Runs that are not closed, of a project or of all.
#[must_use]
pub(crate) fn open_runs() -> Query {
    Query::all().index(BY_OPEN, "open")
}

/// Runs that are closed.
#[must_use]
pub(crate) fn closed_runs() -> Query {
    Query::all().index(BY_OPEN, "closed")
}

fn author_of(definition: &str, run: WorkflowId) -> Author {
    Author::new("workflow").operation(definition).source(run)
}

/// Who changes what a workflow changes.
fn author(run: &Run) -> Author {
    author_of(&run.definition, run.id)
}

/// An empty transaction in a run's name, for a step's effects.
#[must_use]
pub(crate) fn effects(definition: &str, run: WorkflowId) -> Transaction {
    Transaction::new(author_of(definition, run))
}

/// Who asked for a run, as the run keeps it.
#[must_use]
pub(crate) fn asked_by(session: &Session) -> serde_json::Value {
    let author = session.author();
    serde_json::json!({ "actor": author.actor, "source": author.source, "request": author.request })
}

/// Adds a run to the transaction of the change that needs it.
#[must_use]
pub(crate) fn start(transaction: Transaction, run: Run) -> Transaction {
    transaction.create(Draft::new(run.id, WorkflowRun(Arc::new(run.clone()))).project(run.project))
}

/// The journal.
#[derive(Clone)]
pub(crate) struct StoreJournal(Store);

impl StoreJournal {
    /// On this store.
    #[must_use]
    pub(crate) fn new(store: Store) -> Self {
        Self(store)
    }

    fn revision(&self, id: WorkflowId) -> Option<Revision> {
        self.0.get::<WorkflowRun>(id).map(|record| Revision(record.meta.revision.0))
    }
}

/// A run as the engine takes it.
pub(crate) fn stored(record: &Record<WorkflowRun>) -> Stored {
    Stored { run: Arc::clone(&record.body.0), revision: Revision(record.meta.revision.0) }
}

/// The run's own revision: each record that a commit writes gets one of its own.
fn revision_of(committed: &Committed, run: WorkflowId) -> Result<Revision, SaveError> {
    let record = committed.record::<WorkflowRun>(run);
    record
        .map(|record| Revision(record.meta.revision.0))
        .ok_or_else(|| SaveError::Unavailable(Error::bug("a commit does not say which revision it gave to a workflow")))
}

/// What a refused commit means to the engine. Claims and capacities that somebody else took meanwhile are conflicts: the
/// step decides again, and chooses something else.
fn refused(error: CommitError, run: WorkflowId) -> SaveError {
    match error {
        CommitError::Conflict { kind, ref id, .. } if kind == WorkflowRun::NAME && *id == run.to_string() => {
            SaveError::Fenced
        }
        CommitError::Conflict { .. } | CommitError::Taken { .. } => SaveError::Conflict,
        CommitError::Exceeded { ref counter, .. }
            if counter.starts_with("capacity/") || counter.starts_with("group/") =>
        {
            SaveError::Conflict
        }
        CommitError::Failed(error) if error.kind == ErrorKind::Unavailable => SaveError::Unavailable(error),
        other => SaveError::Effects(other.into()),
    }
}

impl Journal for StoreJournal {
    type Effects = Effects;

    fn load_open(&self) -> BoxFuture<'_, Result<Vec<Stored>>> {
        Box::pin(async move {
            Ok(self.0.list::<WorkflowRun>(&open_runs()).items.iter().map(|record| stored(record)).collect())
        })
    }

    fn get(&self, id: WorkflowId) -> BoxFuture<'_, Result<Option<Stored>>> {
        Box::pin(async move { Ok(self.0.get::<WorkflowRun>(id).map(|record| stored(&record))) })
    }

    fn create(&self, run: Arc<Run>, effects: Effects) -> BoxFuture<'_, Result<Revision, SaveError>> {
        Box::pin(async move {
            let id = run.id;
            let mut transaction = start(Transaction::new(author(&run)), Run::clone(&run));
            if let Some(effects) = effects {
                transaction = transaction.then(effects);
            }
            match self.0.commit(transaction).await {
                Ok(committed) => revision_of(&committed, id),
                Err(CommitError::Exists { .. }) if self.revision(id).is_some() => Err(SaveError::Exists),
                Err(error) => Err(refused(error, id)),
            }
        })
    }

    fn save(&self, run: Arc<Run>, expected: Revision, effects: Effects) -> BoxFuture<'_, Result<Revision, SaveError>> {
        Box::pin(async move {
            let id = run.id;
            let Some(record) = self.0.get::<WorkflowRun>(id) else { return Err(SaveError::Fenced) };
            if record.meta.revision.0 != expected.0 {
                return Err(SaveError::Fenced);
            }
            let mut transaction = Transaction::new(author(&run)).update(&record, WorkflowRun(run));
            if let Some(effects) = effects {
                transaction = transaction.then(effects);
            }
            match self.0.commit(transaction).await {
                Ok(committed) => revision_of(&committed, id),
                Err(error) => Err(refused(error, id)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use nephos_store::{Kinds, Sqlite};
    use nephos_types::FlavorId;
    use nephos_workflow::{Config, Definition, Done, StepContext};

    use super::*;
    use crate::compute::flavor::Flavor;

    /// A save says the run's own revision even if its effects write further records; otherwise the next save would be
    /// taken for somebody else's.
    #[tokio::test]
    async fn a_save_with_effects_can_be_followed_by_another() {
        let folder = tempfile::tempdir().unwrap();
        let backend = Sqlite::open(folder.path().join("db")).await.unwrap();
        let store = Store::open(backend, Kinds::new().with::<WorkflowRun>().with::<Flavor>()).await.unwrap();
        let journal = StoreJournal::new(store);
        let engine = Engine::new(StoreJournal::new(journal.0.clone()), Config::default());
        let mut definition = Definition::<Effects>::builder::<()>("test");
        definition.step("only", |_: StepContext<()>| async { Ok(Done::value(())) }).add();
        engine.register(definition.build()).unwrap();
        let run = Arc::new(engine.prepare("test", WorkflowId::new(), &()).unwrap());
        let flavor = || {
            let body = Flavor::of_size(1, 1, 0);
            Some(effects("test", run.id).create(Draft::new(FlavorId::new(), body)))
        };
        let mut revision = journal.create(run.clone(), flavor()).await.unwrap();
        for _ in 0..3 {
            revision = journal.save(run.clone(), revision, flavor()).await.unwrap();
        }
        assert!(matches!(journal.save(run.clone(), Revision(revision.0 + 1), None).await, Err(SaveError::Fenced)));
    }
}
