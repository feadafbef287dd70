//! Several engines on one journal that tell each other what they notice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nephos_workflow::{Config, Definition, Done, Engine, Holders, Journal as _, RunState, StepContext};

use crate::world::{Bench, Effects, Journal, engine, make, remove, things};

/// Everybody but the one who is named.
struct AllBut(AtomicBool, &'static str);

impl Holders for AllBut {
    fn may_live(&self, holder: &str) -> bool {
        !(self.0.load(Ordering::SeqCst) && holder == self.1)
    }
}

fn waits() -> Definition<Effects> {
    let mut wf = Definition::builder::<String>("waits");
    wf.step("make", |ctx: StepContext<String>| async move { Ok(Done::value(()).with(make(ctx.input()))) })
        .undo(|ctx, _| async move { Ok(Done::value(()).with(remove(ctx.input()))) })
        .add();
    wf.step("wait", |_: StepContext<String>| async {
        Ok(Done::<(), Effects>::wait("door", Duration::from_secs(3600)))
    })
    .add();
    wf.build()
}

fn named(name: &'static str, holders: &Arc<AllBut>) -> Config {
    Config { name: name.into(), exclusive: false, holders: Some(holders.clone()), ..Config::default() }
}

async fn notice(journal: &Journal, engine: &Engine<Journal>, id: nephos_types::WorkflowId) {
    engine.noticed(journal.get(id).await.unwrap().unwrap()).await;
}

#[tokio::test]
async fn a_run_that_is_held_elsewhere_is_watched_and_cancelled() {
    let holders = Arc::new(AllBut(AtomicBool::new(false), "one"));
    let mut bench = Bench::new([]);
    bench.engine = engine(&bench.journal, &bench.clock, named("one", &holders), [waits()]);
    let other = engine(&bench.journal, &bench.clock, named("other", &holders), [waits()]);
    let id = bench.start("waits", &"x").await;
    bench.until(id, |run| run.state == RunState::Waiting).await;

    let watching = tokio::spawn({
        let other = other.clone();
        async move { other.wait(id).await }
    });
    let watch = other.watch(id).await.unwrap();
    assert_eq!(watch.borrow().state, RunState::Waiting);
    other.cancel(id).await.unwrap();
    assert_eq!(other.load().0, 0, "it stays where it is");
    notice(&bench.journal, &bench.engine, id).await;
    bench.until(id, |run| run.state == RunState::Cancelled).await;
    notice(&bench.journal, &other, id).await;
    assert_eq!(watching.await.unwrap().unwrap().state, RunState::Cancelled);
    assert_eq!(watch.borrow().state, RunState::Cancelled);
    assert_eq!(things(&bench.journal), Vec::<String>::new());
}

#[tokio::test]
async fn a_dead_holders_runs_are_taken_over_before_their_leases_end() {
    let holders = Arc::new(AllBut(AtomicBool::new(false), "one"));
    let mut bench = Bench::new([]);
    bench.engine = engine(&bench.journal, &bench.clock, named("one", &holders), [waits()]);
    let other = engine(&bench.journal, &bench.clock, named("other", &holders), [waits()]);
    let id = bench.start("waits", &"x").await;
    bench.until(id, |run| run.state == RunState::Waiting).await;
    let found = other.recover().await.unwrap();
    assert_eq!((found.taken, found.held), (0, 1));

    holders.0.store(true, Ordering::SeqCst);
    assert_eq!(other.recover().await.unwrap().taken, 1);
    // The one who was thought dead lives, and finds that it has lost the run.
    bench.until(id, |run| run.lease.as_ref().is_some_and(|lease| lease.fence == 2)).await;
    notice(&bench.journal, &bench.engine, id).await;
    bench.engine.signal("door");
    while bench.engine.load().0 > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    other.cancel(id).await.unwrap();
    assert_eq!(other.wait(id).await.unwrap().state, RunState::Cancelled);
    bench.journal.world(|world| assert!(world.things.is_empty()));
}
