//! Which closed runs are kept, and for how long.
//!
//! Open and stuck runs always are, and so is a child whose parent goes on: its outcome is not forgotten before the parent
//! has seen it, and it is not started again.

use std::time::Duration;

use nephos_store::{Author, Query, Record, Store, Transaction};
use nephos_types::{Result, Timestamp};

use crate::journal::{WorkflowRun, closed_runs};

/// How many runs one transaction drops at most.
const BATCH: usize = 500;

/// Which closed runs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long after they closed.
    pub age: Duration,
    /// How many at most; the newest of them.
    pub runs: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age: Duration::from_secs(30 * 86400), runs: 20_000 }
    }
}

/// Drops closed runs that are too old or too many; to be called now and then. Returns how many went.
pub(crate) async fn sweep(store: &Store, keep: Retention, now: Timestamp) -> Result<usize> {
    let mut excess = store.count::<WorkflowRun>(&closed_runs()).saturating_sub(keep.runs);
    let mut after = None;
    let mut gone = 0;
    loop {
        let mut query: Query = closed_runs().limit(BATCH);
        if let Some(after) = after {
            query = query.after(after);
        }
        let page = store.list::<WorkflowRun>(&query);
        let mut transaction = Transaction::new(Author::new("cloud").operation("workflow.sweep"));
        let mut dropped = 0;
        for record in &page.items {
            let too_old = now.since(record.body.0.updated_at) > keep.age;
            if (too_old || excess > 0) && !parent_goes_on(store, record) {
                transaction = transaction.delete(record);
                dropped += 1;
                excess = excess.saturating_sub(1);
            }
        }
        if dropped > 0 {
            store.commit(transaction).await?;
            gone += dropped;
        }
        match page.items.last() {
            Some(last) if page.next.is_some() => after = Some(last.meta.id),
            _ => return Ok(gone),
        }
    }
}

fn parent_goes_on(store: &Store, record: &Record<WorkflowRun>) -> bool {
    let parent = record.body.0.parent.as_ref().and_then(|parent| store.get::<WorkflowRun>(parent.run));
    parent.is_some_and(|parent| !parent.body.0.state.is_closed())
}

#[cfg(test)]
mod tests {
    use nephos_store::{Draft, Kinds, Sqlite};
    use nephos_types::WorkflowId;
    use nephos_workflow::{Config, Definition, Done, Parent, Run, RunState, StepContext};

    use super::*;
    use crate::journal::{Effects, Engine, StoreJournal};

    const DAY: Duration = Duration::from_secs(86400);

    struct World {
        store: Store,
        engine: Engine,
        now: Timestamp,
        _folder: tempfile::TempDir,
    }

    impl World {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let backend = Sqlite::open(folder.path().join("db")).await.unwrap();
            let store = Store::open(backend, Kinds::new().with::<WorkflowRun>()).await.unwrap();
            let engine = Engine::new(StoreJournal::new(store.clone()), Config::default());
            let mut definition = Definition::<Effects>::builder::<()>("test");
            definition.step("only", |_: StepContext<()>| async { Ok(Done::value(())) }).add();
            engine.register(definition.build()).unwrap();
            Self { store, engine, now: Timestamp::now(), _folder: folder }
        }

        /// A run in this state that was last heard of this many days ago.
        async fn run(&self, state: RunState, days: i64, parent: Option<WorkflowId>) -> WorkflowId {
            let mut run: Run = self.engine.prepare("test", WorkflowId::new(), &()).unwrap();
            run.state = state;
            run.updated_at = Timestamp::from_micros(self.now.as_micros() - days * 86_400_000_000);
            run.parent = parent.map(|run| Parent { run, step: 0 });
            let id = run.id;
            let draft = Draft::new(id, WorkflowRun(run.into()));
            self.store.commit(Transaction::new(Author::new("test")).create(draft)).await.unwrap();
            id
        }

        fn kept(&self) -> Vec<WorkflowId> {
            self.store.list::<WorkflowRun>(&Query::all()).items.iter().map(|record| record.meta.id).collect()
        }
    }

    #[tokio::test]
    async fn closed_runs_go_after_their_time_and_nothing_else_does() {
        let world = World::new().await;
        let open = world.run(RunState::Waiting, 90, None).await;
        let stuck = world.run(RunState::Stuck, 90, None).await;
        let old = world.run(RunState::Succeeded, 31, None).await;
        let old_failure = world.run(RunState::Failed, 31, None).await;
        let young = world.run(RunState::Cancelled, 29, None).await;
        let awaited_child = world.run(RunState::Succeeded, 31, Some(open)).await;
        let orphan = world.run(RunState::Succeeded, 31, Some(old)).await;
        assert_eq!(sweep(&world.store, Retention::default(), world.now).await.unwrap(), 3);
        assert_eq!(world.kept(), [open, stuck, young, awaited_child]);
        assert!([old, old_failure, orphan].iter().all(|gone| world.store.get::<WorkflowRun>(*gone).is_none()));
        assert_eq!(sweep(&world.store, Retention::default(), world.now).await.unwrap(), 0);
        assert!(world.store.verify().await.unwrap().problems.is_empty());
    }

    #[tokio::test]
    async fn of_too_many_closed_runs_the_newest_stay() {
        let world = World::new().await;
        let open = world.run(RunState::Running, 0, None).await;
        let mut closed = vec![];
        for _ in 0..BATCH + 20 {
            closed.push(world.run(RunState::Succeeded, 0, None).await);
        }
        let keep = Retention { age: 30 * DAY, runs: 7 };
        assert_eq!(sweep(&world.store, keep, world.now).await.unwrap(), closed.len() - 7);
        let mut kept = vec![open];
        kept.extend(&closed[closed.len() - 7..]);
        assert_eq!(world.kept(), kept);
    }
}
