//! Groups, children, limits, the point of no return, being stuck, several engines, stopping, schedules, the stored form.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use nephos_types::{Error, ErrorKind, Result, ScheduleId, WorkflowId};
use nephos_workflow::{
    ChildStart, Clock, Config, Definition, Done, Failure, Missed, Retry, Revision, Run, RunState, SaveError, Schedule,
    ScheduleStore, StepContext, StepState, Timing,
    testing::{MemoryEffects, SaveFault},
};

use crate::world::{Bench, Effects, Journal, engine, make, remove, things};

type Context = StepContext<String>;

fn fatal() -> Failure {
    Failure::fatal(Error::invalid("broken", "It does not work"))
}

fn one_step<R>(name: &str, step: impl Fn(Context) -> R + Send + Sync + 'static) -> Definition<Effects>
where
    R: Future<Output = Result<Done<(), Effects>, Failure>> + Send + 'static,
{
    let mut wf = Definition::builder::<String>(name);
    wf.step("only", step).undo(|_, _| async { Ok(Done::value(()).with(remove("thing"))) }).add();
    wf.build()
}

#[tokio::test]
async fn steps_of_a_group_run_at_once() {
    let barrier = Arc::new(tokio::sync::Barrier::new(3));
    let mut wf = Definition::builder::<String>("group");
    let slots = wf.parallel(|wf| {
        [0u32, 1, 2].map(|number| {
            let barrier = Arc::clone(&barrier);
            let run = move |_| {
                let barrier = Arc::clone(&barrier);
                async move {
                    barrier.wait().await;
                    Ok(Done::value(number))
                }
            };
            wf.step(&format!("step {number}"), run).add()
        })
    });
    wf.step("sum", move |ctx: Context| async move {
        let mut sum = 0;
        for slot in slots {
            sum += ctx.get(slot)?;
        }
        Ok(Done::value(sum))
    })
    .add();
    let bench = Bench::new([wf.build()]);
    let id = bench.start("group", &"x").await;
    let run = bench.settled(id).await;
    assert_eq!((run.state, run.output().unwrap().as_u64()), (RunState::Succeeded, Some(3)));
}

fn parent() -> Definition<Effects> {
    let mut wf = Definition::builder::<String>("parent");
    wf.step("before", |_: Context| async { Ok(Done::value(()).with(make("before"))) })
        .undo(|_, _| async { Ok(Done::value(()).with(remove("before"))) })
        .add();
    wf.child::<(), _, _>("child", "child", |ctx: Context| async move { Ok(ChildStart::new(ctx.input())?) }).add();
    wf.build()
}

#[tokio::test]
async fn a_childs_end_is_the_steps_end() {
    let child = one_step("child", |ctx| async move {
        if ctx.input() == "bad" { Err(fatal()) } else { Ok(Done::value(()).with(make("thing"))) }
    });
    let bench = Bench::new([parent(), child]);
    let good = bench.start("parent", &"good").await;
    assert_eq!(bench.settled(good).await.state, RunState::Succeeded);
    assert_eq!(things(&bench.journal), ["before", "thing"]);
    let bad = bench.start("parent", &"bad").await;
    let run = bench.settled(bad).await;
    assert_eq!((run.state, run.error.as_ref().unwrap().code.as_ref()), (RunState::Failed, "broken"));
    assert_eq!(bench.journal.runs().len(), 4);
}

#[tokio::test]
async fn cancelling_a_parent_cancels_its_child_even_after_a_crash() {
    let children =
        || one_step("child", |_| async { Ok(Done::wait("never", Duration::from_secs(600)).with(make("thing"))) });
    let mut bench = Bench::new([parent(), children()]);
    let id = bench.start("parent", &"x").await;
    bench.until(id, |run| run.state == RunState::Waiting).await;
    bench.idle().await;
    bench.restart([parent(), children()]).await;
    bench.engine.cancel(id).await.unwrap();
    assert_eq!(bench.settled(id).await.state, RunState::Cancelled);
    assert_eq!(things(&bench.journal), Vec::<String>::new());
    assert!(bench.journal.runs().iter().all(|run| run.state == RunState::Cancelled));
}

#[tokio::test]
async fn what_takes_too_long_is_turned_back() {
    let mut wf = Definition::builder::<String>("slow");
    wf.step("waits", |_: Context| async { Ok(Done::<(), Effects>::wait("never", Duration::from_secs(7))) })
        .limit(Duration::from_secs(60))
        .add();
    let mut hangs = Definition::builder::<String>("hangs");
    hangs
        .step("hangs", |_: Context| std::future::pending::<Result<Done<(), Effects>, Failure>>())
        .call_limit(Duration::from_secs(60))
        .retry(Retry::attempts(2))
        .add();
    let mut late = Definition::builder::<String>("late");
    late.limit(Duration::from_secs(100));
    late.step("waits", |_: Context| async { Ok(Done::<(), Effects>::after(Duration::from_secs(7))) }).add();
    let bench = Bench::new([wf.build(), hangs.build(), late.build()]);
    for (name, at_least) in [("slow", 60), ("hangs", 120), ("late", 100)] {
        let id = bench.start(name, &"x").await;
        let run = bench.settled(id).await;
        assert_eq!((run.state, run.error.as_ref().unwrap().kind), (RunState::Failed, ErrorKind::Timeout), "{name}");
        assert!(run.age(bench.clock.now()) >= Duration::from_secs(at_least), "{name}");
    }
}

#[tokio::test]
async fn past_the_point_of_no_return_there_is_only_forward() {
    let works = Arc::new(AtomicBool::new(false));
    let look = Arc::clone(&works);
    let mut wf = Definition::builder::<String>("final");
    wf.step("commit", move |_: Context| {
        let works = look.load(Ordering::SeqCst);
        async move {
            if works {
                Ok(Done::value(()))
            } else {
                Err(Failure::retry(Error::new(ErrorKind::Unavailable, "later", "Not now")))
            }
        }
    })
    .retry(Retry::attempts(2))
    .no_return()
    .add();
    let bench = Bench::new([wf.build()]);
    let id = bench.start("final", &"x").await;
    for _ in 0..5 {
        let attempts = bench.until(id, |run| run.state == RunState::Waiting).await.steps[0].attempts;
        bench.idle().await;
        bench.clock.advance(Duration::from_secs(40));
        bench.until(id, |run| run.steps[0].attempts > attempts).await;
    }
    assert_eq!(bench.engine.cancel(id).await.unwrap_err().code, "workflow_no_return");
    works.store(true, Ordering::SeqCst);
    assert_eq!(bench.settled(id).await.state, RunState::Succeeded);
}

#[tokio::test]
async fn a_failed_undo_is_visible_and_can_be_retried() {
    let broken = Arc::new(AtomicBool::new(true));
    let definition = || {
        let look = Arc::clone(&broken);
        let mut wf = Definition::builder::<String>("stuck");
        wf.step("make", |_: Context| async { Ok(Done::value(()).with(make("thing"))) })
            .undo(move |_, _| {
                let broken = look.load(Ordering::SeqCst);
                async move { if broken { Err(fatal()) } else { Ok(Done::value(()).with(remove("thing"))) } }
            })
            .add();
        wf.step("fail", |_: Context| async { Err::<Done<(), Effects>, _>(fatal()) }).add();
        wf.build()
    };
    let mut bench = Bench::new([definition()]);
    let id = bench.start("stuck", &"x").await;
    let run = bench.settled(id).await;
    assert_eq!((run.state, run.steps[0].state), (RunState::Stuck, StepState::Stuck));
    assert_eq!(things(&bench.journal), ["thing"]);
    bench.restart([definition()]).await;
    assert_eq!(bench.engine.cancel(id).await.unwrap_err().code, "workflow_stuck");
    broken.store(false, Ordering::SeqCst);
    bench.engine.retry_stuck(id).await.unwrap();
    assert_eq!(bench.settled(id).await.state, RunState::Failed);
    assert_eq!(things(&bench.journal), Vec::<String>::new());
    assert_eq!(bench.engine.retry_stuck(id).await.unwrap_err().code, "workflow_not_stuck");
}

#[tokio::test]
async fn conflicting_effects_call_the_step_again_and_refused_ones_fail_it() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let conflicting = one_step("conflicting", move |_| {
        let call = counted.fetch_add(1, Ordering::SeqCst);
        let effects = MemoryEffects::checked(move |_| if call < 3 { Err(SaveError::Conflict) } else { Ok(()) });
        async move { Ok(Done::value(()).with(effects.then(make("thing")))) }
    });
    let refused = one_step("refused", |_| async {
        let error = Error::new(ErrorKind::Quota, "quota", "No room");
        Ok(Done::value(()).with(make("other").then(MemoryEffects::checked(|_| Err(SaveError::Effects(error))))))
    });
    let bench = Bench::new([conflicting, refused]);
    let id = bench.start("conflicting", &"x").await;
    assert_eq!(bench.settled(id).await.state, RunState::Succeeded);
    assert_eq!((calls.load(Ordering::SeqCst), things(&bench.journal)), (4, vec!["thing".to_owned()]));
    let id = bench.start("refused", &"x").await;
    let run = bench.settled(id).await;
    assert_eq!((run.state, run.error.as_ref().unwrap().code.as_ref()), (RunState::Failed, "quota"));
}

#[tokio::test]
async fn a_save_whose_answer_is_lost_is_not_repeated() {
    let bench = Bench::new([one_step("once", |_| async { Ok(Done::value(()).with(make("thing"))) })]);
    bench.journal.inject([SaveFault::None, SaveFault::AnswerLost]);
    let id = bench.start("once", &"x").await;
    assert_eq!(bench.settled(id).await.state, RunState::Succeeded);
    bench.journal.world(|world| assert_eq!(world.things.get("thing"), Some(&1)));
    assert_eq!(bench.journal.saves(), 2);
}

#[tokio::test]
async fn an_abandoned_run_is_taken_over_and_its_former_holder_is_fenced() {
    let (gate, entered) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let slow = {
        let (gate, entered) = (Arc::clone(&gate), Arc::clone(&entered));
        one_step("job", move |_| {
            let (gate, entered) = (Arc::clone(&gate), Arc::clone(&entered));
            async move {
                entered.notify_one();
                gate.notified().await;
                Ok(Done::value(()).with(make("thing")))
            }
        })
    };
    let fast = one_step("job", |_| async { Ok(Done::value(()).with(make("thing"))) });
    // The first believes itself alone, and so renews nothing: like a process that hangs.
    let bench = Bench::new([slow]);
    let id = bench.start("job", &"x").await;
    entered.notified().await;
    let config = Config { exclusive: false, ..Config::default() };
    let other = engine(&bench.journal, &bench.clock, config, [fast]);
    assert_eq!(other.recover().await.unwrap().held, 1);
    bench.clock.advance(Duration::from_secs(31));
    other.recover().await.unwrap();
    assert_eq!(other.wait(id).await.unwrap().state, RunState::Succeeded);
    gate.notify_one();
    bench.idle().await;
    bench.journal.world(|world| assert_eq!(world.things.get("thing"), Some(&1), "the late result does not count"));
    assert_eq!(bench.engine.load().0, 0);
}

#[tokio::test]
async fn stopping_lets_calls_end_and_the_next_engine_goes_on() {
    let (gate, entered) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let step = {
        let (gate, entered) = (Arc::clone(&gate), Arc::clone(&entered));
        move |_: Context| {
            let (gate, entered) = (Arc::clone(&gate), Arc::clone(&entered));
            async move {
                entered.notify_one();
                gate.notified().await;
                Ok(Done::value(()).with(make("first")))
            }
        }
    };
    let definition = |step| {
        let mut wf = Definition::builder::<String>("two");
        wf.step("first", step).add();
        wf.step("second", |_: Context| async { Ok(Done::value(()).with(make("second"))) }).add();
        wf.build()
    };
    let mut bench = Bench::new([definition(step.clone())]);
    let id = bench.start("two", &"x").await;
    entered.notified().await;
    let stopping = bench.engine.clone();
    let stopped = tokio::spawn(async move { stopping.stop().await });
    tokio::task::yield_now().await;
    gate.notify_one();
    stopped.await.unwrap();
    assert_eq!(things(&bench.journal), ["first"], "the call under way was saved, and no further one begun");
    bench.restart([definition(step)]).await;
    assert_eq!(bench.settled(id).await.state, RunState::Succeeded);
    bench.journal.world(|world| assert!(world.things.values().all(|made| *made == 1)));
}

#[tokio::test]
async fn progress_is_shown_and_saved() {
    let gate = Arc::new(tokio::sync::Notify::new());
    let pass = Arc::clone(&gate);
    let definition = one_step("progress", move |ctx| {
        let pass = Arc::clone(&pass);
        async move {
            ctx.progress(Some(40), "halfway, nearly");
            pass.notified().await;
            Ok(Done::value(()))
        }
    });
    let bench = Bench::new([definition]);
    let id = bench.start("progress", &"x").await;
    let mut watch = bench.engine.watch(id).await.unwrap();
    watch.wait_for(|run| run.steps[0].progress.as_ref().is_some_and(|shown| shown.percent == Some(40))).await.unwrap();
    bench.until(id, |run| run.steps[0].progress.is_some()).await;
    gate.notify_one();
    assert_eq!(bench.settled(id).await.steps[0].progress, None);
}

#[tokio::test]
async fn bad_definitions_and_inputs_are_refused() {
    let bench = Bench::new([one_step("known", |_| async { Ok(Done::value(())) })]);
    let prepare = |name: &str, input: &serde_json::Value| bench.engine.prepare(name, WorkflowId::new(), input);
    assert_eq!(prepare("unknown", &"x".into()).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(prepare("known", &7.into()).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(prepare("known", &"x".repeat(70_000).into()).unwrap_err().kind, ErrorKind::TooLarge);
    let engine = &bench.engine;
    assert!(engine.register(one_step("known", |_| async { Ok(Done::value(())) })).is_err(), "registered twice");
    assert!(engine.register(Definition::builder::<()>("empty").build()).is_err());
    assert_eq!(engine.cancel(WorkflowId::new()).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_panic_and_an_oversized_output_fail_the_step() {
    let mut panics = Definition::builder::<String>("panics");
    panics.step::<(), _, _>("panics", |_: Context| async { panic!("as the test wants") }).add();
    let mut large = Definition::builder::<String>("large");
    large.step("large", |_: Context| async { Ok(Done::value("x".repeat(20_000))) }).add();
    let bench = Bench::new([panics.build(), large.build()]);
    for name in ["panics", "large"] {
        let id = bench.start(name, &"x").await;
        let run = bench.settled(id).await;
        assert_eq!((run.state, run.error.as_ref().unwrap().kind), (RunState::Failed, ErrorKind::Internal));
    }
}

/// Schedules beside the journal in memory.
struct Schedules(Journal, Mutex<(Schedule, u64)>);

impl ScheduleStore for Schedules {
    fn load(&self) -> BoxFuture<'_, Result<Vec<(Schedule, Revision)>>> {
        let stored = self.1.lock().unwrap();
        Box::pin(std::future::ready(Ok(vec![(stored.0.clone(), Revision(stored.1))])))
    }

    fn fire(&self, schedule: Schedule, expected: Revision, runs: Vec<Run>) -> BoxFuture<'_, Result<(), SaveError>> {
        Box::pin(async move {
            for run in runs {
                nephos_workflow::Journal::create(&self.0, Arc::new(run), Effects::default()).await?;
            }
            let mut stored = self.1.lock().unwrap();
            assert_eq!(expected, Revision(stored.1));
            *stored = (schedule, expected.0 + 1);
            Ok(())
        })
    }
}

#[tokio::test]
async fn schedules_start_runs() {
    let bench = Bench::new([one_step("job", |_| async { Ok(Done::value(())) })]);
    let schedule = Schedule {
        id: ScheduleId::new(),
        timing: Timing::Interval { seconds: 900 },
        missed: Missed::Once,
        overlap: false,
        paused: false,
        definition: "job".into(),
        input: Arc::new("x".into()),
        subject: "srv-1".into(),
        project: None,
        author: Arc::default(),
        last_slot: bench.clock.now(),
        last_run: None,
    };
    bench.engine.keep_schedules(Arc::new(Schedules(bench.journal.clone(), Mutex::new((schedule, 0)))));
    for expected in 1..=3 {
        while bench.journal.runs().iter().filter(|run| run.state == RunState::Succeeded).count() < expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if let Some(next) = bench.clock.next_sleeper() {
                bench.clock.advance_to(next);
            }
        }
    }
    assert!(bench.journal.runs().iter().all(|run| &*run.subject == "srv-1"));
}

#[test]
fn the_stored_form_is_frozen() {
    let stored = r#"{"id":"wf-01hzx3k7q9m2c","definition":"server.create","definition_version":1,"input":{"a":1},
        "subject":"srv-1","author":{"user":"u"},"state":"undoing","ending":"cancelled","cancel_requested":true,
        "error":{"kind":"timeout","code":"c","title":"t"},"steps":[{"name":"one","state":"undoing","attempts":2,
        "output":[1],"started_at":"2026-01-01T00:00:00Z","progress":{"percent":4,"text":"x"},
        "wait":{"keys":["k"],"until":"2026-01-01T00:01:00Z"}}],"lease":{"holder":"e","until":"2026-01-01T00:02:00Z",
        "fence":3},"parent":{"run":"wf-01hzx3k7q9m2d","step":4},"deadline":"2026-01-02T00:00:00Z","sequence":9,
        "created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"}"#;
    let run: Run = serde_json::from_str(stored).unwrap();
    assert_eq!((run.state, run.steps[0].attempts, run.lease.as_ref().unwrap().fence), (RunState::Undoing, 2, 3));
    let again: Run = serde_json::from_value(serde_json::to_value(&run).unwrap()).unwrap();
    assert_eq!(again, run);
}
