//! Steps, outputs, undo, retries, waiting, cancelling, resuming.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use nephos_types::{Error, ErrorKind};
use nephos_workflow::{Definition, Done, Failure, Retry, RunState, Slot, StepContext, StepState};

use crate::world::{Bench, Effects, make, remove, things};

type Context = StepContext<String>;

fn broken() -> Error {
    Error::new(ErrorKind::Unavailable, "broken", "It does not work")
}

/// Makes `name-a`, then `name-b`, then calls `last`.
fn chain<R>(last: impl Fn(Context) -> R + Send + Sync + 'static) -> Definition<Effects>
where
    R: Future<Output = Result<Done<u32, Effects>, Failure>> + Send + 'static,
{
    let mut wf = Definition::builder::<String>("chain");
    let first: Slot<String> = wf
        .step("make a", |ctx: Context| async move {
            let name = format!("{}-a", ctx.input());
            Ok(Done::value(name.clone()).with(make(&name)))
        })
        .undo(|ctx, made| async move {
            assert_eq!(made, Some(format!("{}-a", ctx.input())));
            Ok(Done::value(()).with(remove(&format!("{}-a", ctx.input()))))
        })
        .add();
    wf.step("make b", move |ctx: Context| async move {
        let name = ctx.get(first)?.replace("-a", "-b");
        Ok(Done::value(()).with(make(&name)))
    })
    .undo(|ctx, _| async move { Ok(Done::value(()).with(remove(&format!("{}-b", ctx.input())))) })
    .add();
    wf.step("last", last).retry(Retry::attempts(3)).add();
    wf.build()
}

#[tokio::test]
async fn steps_run_in_order_pass_outputs_and_cost_one_save_each() {
    let bench = Bench::new([chain(|_| async { Ok(Done::value(7)) })]);
    let id = bench.start("chain", &"x").await;
    let run = bench.settled(id).await;
    assert_eq!(run.state, RunState::Succeeded);
    assert_eq!(run.output().unwrap().as_u64(), Some(7));
    assert_eq!(things(&bench.journal), ["x-a", "x-b"]);
    assert_eq!(bench.journal.saves(), 1 + 3, "one to create, one per step");
    assert_eq!(bench.engine.load().0, 0, "nothing is kept of a closed run");
}

#[tokio::test]
async fn a_fatal_failure_undoes_in_reverse() {
    let bench = Bench::new([chain(|_| async { Err(Failure::fatal(broken())) })]);
    let id = bench.start("chain", &"x").await;
    let run = bench.settled(id).await;
    assert_eq!(run.state, RunState::Failed);
    assert_eq!(run.error.as_ref().unwrap().code, "broken");
    assert_eq!(things(&bench.journal), Vec::<String>::new());
    let (a, b) = (run.steps[0].finished_at, run.steps[1].finished_at);
    assert!(a >= b);
    assert_eq!(
        run.steps.iter().map(|step| step.state).collect::<Vec<_>>(),
        [StepState::Undone, StepState::Undone, StepState::Failed]
    );
}

#[tokio::test]
async fn retryable_failures_are_retried_after_growing_delays() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let bench = Bench::new([chain(move |ctx| {
        let call = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            assert_eq!(ctx.attempt(), call + 1);
            if call < 2 { Err(broken().into()) } else { Ok(Done::value(call)) }
        }
    })]);
    let id = bench.start("chain", &"x").await;
    let waiting = bench.until(id, |run| run.state == RunState::Waiting).await;
    let step = &waiting.steps[2];
    assert!(step.wait.as_ref().unwrap().keys.is_empty() && step.error.is_some());
    assert_eq!(bench.settled(id).await.state, RunState::Succeeded);
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_signal_wakes_a_waiting_step_and_waiting_costs_no_task() {
    let open = Arc::new(AtomicBool::new(false));
    let look = Arc::clone(&open);
    let bench = Bench::new([chain(move |_| {
        let open = look.load(Ordering::SeqCst);
        async move { Ok(if open { Done::value(1) } else { Done::wait(["door", "bell"], Duration::from_secs(30)) }) }
    })]);
    let id = bench.start("chain", &"x").await;
    bench.until(id, |run| run.state == RunState::Waiting).await;
    bench.idle().await;
    assert_eq!(bench.engine.load(), (1, 0));
    bench.engine.signal("other");
    open.store(true, Ordering::SeqCst);
    assert_eq!(bench.journal.run(id).unwrap().state, RunState::Waiting);
    bench.engine.signal("door");
    assert_eq!(bench.engine.wait(id).await.unwrap().state, RunState::Succeeded);
}

#[tokio::test]
async fn a_run_resumes_where_its_record_stands() {
    let wait = |_| async { Ok(Done::wait("never", Duration::from_secs(30))) };
    let mut bench = Bench::new([chain(wait)]);
    let id = bench.start("chain", &"x").await;
    bench.until(id, |run| run.state == RunState::Waiting).await;
    bench.restart([chain(|_| async { Ok(Done::value(1)) })]).await;
    assert_eq!(bench.settled(id).await.state, RunState::Succeeded);
    bench.journal.world(|world| assert!(world.things.values().all(|made| *made == 1)));
}

#[tokio::test]
async fn cancelling_a_waiting_run_undoes_it() {
    let bench = Bench::new([chain(|_| async { Ok(Done::wait("never", Duration::from_secs(3600))) })]);
    let id = bench.start("chain", &"x").await;
    bench.until(id, |run| run.state == RunState::Waiting).await;
    bench.engine.cancel(id).await.unwrap();
    assert_eq!(bench.engine.wait(id).await.unwrap().state, RunState::Cancelled);
    assert_eq!(things(&bench.journal), Vec::<String>::new());
    assert_eq!(bench.engine.cancel(id).await.unwrap_err().kind, ErrorKind::Conflict);
}
