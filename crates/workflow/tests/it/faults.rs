//! The fault tests, on a workflow that is right, on ones that are wrong (which must be found out), and at random.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use nephos_types::{Error, ErrorKind};
use nephos_workflow::{
    Definition, Direction, Done, Failure, Retry, RunState, StepContext,
    faults::{self, End, Scenario, Spot, Strike},
    testing::SaveFault,
};
use proptest::prelude::*;
use serde_json::Value;

use crate::world::{Effects, Journal, World, make, remove};

/// Things outside the journal, and how often each was made.
type Outside = Arc<Mutex<BTreeMap<String, u32>>>;

/// What is wrong with a step that changes the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// Makes it without looking whether it is there.
    DoesNotLook,
    /// Has no undo.
    NoUndo,
    /// Believes that nothing happened if it has no output.
    TrustsOutput,
    /// Fails if there is nothing to undo.
    DemandsExistence,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Changes the world by effects.
    Effects,
    /// Changes the outside.
    Outside(Mistake),
    /// Waits for a time first.
    Waits,
}

fn gone(name: &str) -> Failure {
    Failure::fatal(Error::new(ErrorKind::NotFound, "gone", "Nothing there").detail(name.to_owned()))
}

fn add_step(
    wf: &mut nephos_workflow::Builder<(), Effects>,
    name: &str,
    kind: Kind,
    outside: &Outside,
    no_return: bool,
) {
    let (thing, place) = (name.to_owned(), Arc::clone(outside));
    let run = move |ctx: StepContext<()>| {
        let (thing, place) = (thing.clone(), Arc::clone(&place));
        async move {
            match kind {
                Kind::Effects => return Ok(Done::value(thing.clone()).with(make(&thing))),
                Kind::Waits if ctx.now() < ctx.started_at().plus(Duration::from_secs(5)) => {
                    return Ok(Done::wait("nobody signals this", Duration::from_secs(6)));
                }
                Kind::Waits | Kind::Outside(_) => {}
            }
            tokio::task::yield_now().await;
            let mut place = place.lock().unwrap();
            if !place.contains_key(&thing) || matches!(kind, Kind::Outside(Mistake::DoesNotLook)) {
                *place.entry(thing.clone()).or_default() += 1;
            }
            Ok(Done::value(thing))
        }
    };
    let (thing, place) = (name.to_owned(), Arc::clone(outside));
    let undo = move |_: StepContext<()>, output: Option<String>| {
        let (thing, place) = (thing.clone(), Arc::clone(&place));
        async move {
            match kind {
                Kind::Effects => return Ok(Done::value(()).with(remove(&thing))),
                Kind::Outside(Mistake::TrustsOutput) if output.is_none() => return Ok(Done::value(())),
                _ => {}
            }
            let removed = place.lock().unwrap().remove(&thing);
            if removed.is_none() && matches!(kind, Kind::Outside(Mistake::DemandsExistence)) {
                return Err(gone(&thing));
            }
            Ok(Done::value(()))
        }
    };
    let step = wf.step(name, run).retry(Retry::attempts(3));
    let step = if matches!(kind, Kind::Outside(Mistake::NoUndo)) { step } else { step.undo(undo) };
    let step = if no_return { step.no_return() } else { step };
    step.add();
}

/// Stages of steps.
struct Made {
    stages: Vec<Vec<Kind>>,
    no_return: Option<usize>,
    save_faults: Vec<SaveFault>,
}

impl Made {
    fn of(stages: Vec<Vec<Kind>>) -> Self {
        Self { stages, no_return: None, save_faults: vec![] }
    }

    fn names(&self) -> Vec<(String, Kind)> {
        let kinds = self.stages.iter().flatten();
        kinds.enumerate().map(|(number, kind)| (format!("thing {number}"), *kind)).collect()
    }
}

impl Scenario for Made {
    type Journal = Journal;
    type World = Outside;

    fn fresh(&self) -> BoxFuture<'_, (Journal, Outside)> {
        let journal = Journal::new(World::default());
        // The first save creates the run; that one's fate is the caller's to find out.
        journal.inject(std::iter::once(SaveFault::None).chain(self.save_faults.iter().copied()));
        Box::pin(std::future::ready((journal, Outside::default())))
    }

    fn definitions(&self, _: &Journal, outside: &Outside) -> Vec<Definition<Effects>> {
        let mut wf = Definition::builder::<()>("made");
        let mut names = self.names().into_iter();
        for (number, stage) in self.stages.iter().enumerate() {
            wf.parallel(|wf| {
                for (name, kind) in names.by_ref().take(stage.len()) {
                    add_step(wf, &name, kind, outside, self.no_return == Some(number));
                }
            });
        }
        vec![wf.build()]
    }

    fn input(&self) -> Value {
        Value::Null
    }

    fn check(&self, journal: &Journal, outside: &Outside, end: End) -> Result<(), String> {
        let mut found = outside.lock().unwrap().clone();
        found.extend(journal.world(|world| world.things.clone()));
        let expected: BTreeMap<String, u32> = match end {
            End::Whole => self.names().into_iter().map(|(name, _)| (name, 1)).collect(),
            End::Nothing => BTreeMap::new(),
        };
        if found == expected { Ok(()) } else { Err(format!("there is {found:?} instead of {expected:?}")) }
    }
}

const GOOD: Kind = Kind::Outside(Mistake::None);

#[tokio::test]
async fn a_right_workflow_passes() {
    let mut scenario = Made::of(vec![vec![Kind::Effects], vec![GOOD, Kind::Waits, Kind::Effects], vec![GOOD]]);
    let report = faults::check(&scenario).await;
    report.assert();
    assert!(report.runs > 80, "{report}");
    assert_eq!(report.struck, report.runs, "{report}");
    scenario.no_return = Some(2);
    faults::check(&scenario).await.assert();
}

#[tokio::test]
async fn wrong_workflows_are_found_out() {
    for mistake in [Mistake::DoesNotLook, Mistake::NoUndo, Mistake::TrustsOutput, Mistake::DemandsExistence] {
        let scenario = Made::of(vec![vec![Kind::Effects], vec![Kind::Outside(mistake)], vec![GOOD]]);
        let report = faults::check(&scenario).await;
        assert!(!report.failures.is_empty(), "{mistake:?} was not noticed");
        assert!(report.failures.iter().all(|failure| failure.contains("thing")), "{report}");
    }
}

fn stages() -> impl Strategy<Value = Vec<Vec<Kind>>> {
    let kind = prop_oneof![Just(Kind::Effects), Just(GOOD), Just(Kind::Waits)];
    prop::collection::vec(prop::collection::vec(kind, 1..4), 1..5)
}

fn strikes() -> impl Strategy<Value = Vec<(Spot, Strike)>> {
    let strike = prop::sample::select(vec![
        Strike::CrashBefore,
        Strike::CrashAfter,
        Strike::CrashSaved,
        Strike::Twice,
        Strike::Retry,
        Strike::RetryAfter,
        Strike::Fatal,
        Strike::FatalAfter,
        Strike::Cancel,
        Strike::CancelAfter,
    ]);
    let spot = (0usize..12, any::<bool>()).prop_map(|(step, forward)| Spot {
        step,
        direction: if forward { Direction::Forward } else { Direction::Undo },
    });
    prop::collection::vec((spot, strike), 0..8)
}

fn save_faults() -> impl Strategy<Value = Vec<SaveFault>> {
    let fault = prop_oneof![
        4 => Just(SaveFault::None),
        1 => Just(SaveFault::Refused),
        1 => Just(SaveFault::AnswerLost),
        1 => Just(SaveFault::Conflict),
    ];
    prop::collection::vec(fault, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_happens_all_is_there_once_or_nothing_is(
        stages in stages(), strikes in strikes(), save_faults in save_faults(), no_return in prop::option::of(0usize..5)
    ) {
        let scenario = Made { stages, no_return, save_faults };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let trial = runtime.block_on(faults::strike(&scenario, strikes));
        match trial.verdict {
            Ok(run) => prop_assert!(run.state.is_closed() && run.state != RunState::Stuck),
            Err(why) => prop_assert!(false, "{}", why),
        }
    }
}
