//! One run of a scenario under given faults, through crashes and retries until it has ended.

use std::{sync::Arc, time::Duration};

use nephos_types::WorkflowId;

use super::{
    End, Scenario,
    inject::{Alarm, Injector, Life, SavedWatch, Spot, Strike},
    surviving::Surviving,
};
use crate::{
    engine::{Config, Engine},
    journal::Journal,
    run::{Run, RunState},
    testing::ManualClock,
};

/// How one faulty run went.
#[derive(Debug)]
pub struct Trial {
    /// How many of the faults struck.
    pub struck: usize,
    /// Whether it was stuck on the way.
    pub stuck: bool,
    /// The run as it ended, the world having been found as it must be; or what is wrong.
    pub verdict: Result<Arc<Run>, String>,
}

/// How often time may be moved on before a run counts as never ending.
const MAX_MOVES: usize = 2_000;
/// For how long, in real time, nothing may happen while a call is under way before time is moved on all the same.
pub(super) const PATIENCE: Duration = Duration::from_millis(3);
/// How often a run may get stuck, or crash, before it counts as never ending.
const MAX_ROUNDS: usize = 64;

/// Runs the scenario under these faults, each of which strikes once, and checks the end.
pub async fn strike<S: Scenario>(scenario: &S, strikes: Vec<(Spot, Strike)>) -> Trial {
    let total = strikes.len();
    let injector = Arc::new(Injector::new(strikes));
    let mut stuck = false;
    let (journal, world) = scenario.fresh().await;
    let ended = carry_through(scenario, &journal, &world, &injector, &mut stuck).await;
    let verdict = ended.and_then(|run| {
        let end = if run.state == RunState::Succeeded { End::Whole } else { End::Nothing };
        match scenario.check(&journal, &world, end) {
            Ok(()) => Ok(run),
            Err(why) => Err(format!("ended as {:?}, but {why}", run.state)),
        }
    });
    Trial { struck: total - injector.left(), stuck, verdict }
}

async fn carry_through<S: Scenario>(
    scenario: &S,
    journal: &S::Journal,
    world: &S::World,
    injector: &Arc<Injector>,
    stuck: &mut bool,
) -> Result<Arc<Run>, String> {
    let clock = ManualClock::default();
    let id = WorkflowId::new();
    for round in 0..MAX_ROUNDS {
        let life = Arc::new(Life::default());
        let saves = Surviving::new(journal.clone());
        let engine = Engine::with_clock(saves.clone(), Config::default(), Arc::new(clock.clone()));
        engine.observe(Arc::new(SavedWatch { injector: Arc::clone(injector), life: Arc::clone(&life), run: id }));
        let mut name = None;
        for definition in scenario.definitions(journal, world) {
            // Faults are for the definition under test; its children have tests of their own.
            let definition = if name.is_none() { injector.decorate(definition, &life) } else { definition };
            name.get_or_insert_with(|| definition.name().to_owned());
            engine.register(definition).map_err(|error| error.chain())?;
        }
        if round == 0 {
            scenario.prepare(journal, world, id).await;
            let run = engine.prepare(&name.unwrap_or_default(), id, &scenario.input());
            let run = run.map_err(|error| format!("cannot be prepared: {}", error.chain()))?;
            let effects = <S::Journal as Journal>::Effects::default();
            engine.start(run, effects).await.map_err(|error| format!("cannot be started: {error:?}"))?;
        } else {
            engine.recover().await.map_err(|error| error.chain())?;
        }
        let life_ended = follow(scenario, journal, world, &engine, &clock, injector, id, stuck).await?;
        engine.crash();
        if let Some(run) = life_ended {
            return Ok(run);
        }
        // Lets the tasks of the dead engine vanish, and what they were saving arrive.
        tokio::task::yield_now().await;
        saves.end().await;
    }
    Err("it crashes or gets stuck again and again".into())
}

/// Until the run has ended (it is returned) or the engine is to crash.
#[allow(clippy::too_many_arguments)]
async fn follow<S: Scenario>(
    scenario: &S,
    journal: &S::Journal,
    world: &S::World,
    engine: &Engine<Surviving<S::Journal>>,
    clock: &ManualClock,
    injector: &Injector,
    id: WorkflowId,
    stuck: &mut bool,
) -> Result<Option<Arc<Run>>, String> {
    let mut moves = 0;
    let mut retries = 0;
    loop {
        while let Some(alarm) = injector.take_alarm() {
            match alarm {
                Alarm::Crash => return Ok(None),
                // Refused past the point of no return, or when it has ended: both are fine. A save that pauses before it
                // is repeated must be let go on meanwhile.
                Alarm::Cancel => {
                    let cancelling = engine.cancel(id);
                    tokio::pin!(cancelling);
                    while tokio::time::timeout(PATIENCE, &mut cancelling).await.is_err() {
                        clock.next_sleeper().into_iter().for_each(|next| clock.advance_to(next));
                    }
                }
            }
        }
        let stored = journal.get(id).await.map_err(|error| error.chain())?;
        let run = stored.ok_or("its record is gone")?.run;
        if run.state.is_closed() && engine.load().0 == 0 {
            return Ok(Some(run));
        }
        if run.state == RunState::Stuck && engine.is_idle() {
            *stuck = true;
            retries += 1;
            if retries > MAX_ROUNDS {
                return Err(format!("stays stuck: {:?}", run.steps.iter().find_map(|step| step.error.as_ref())));
            }
            match engine.retry_stuck(id).await {
                // A journal that is made to fail for a moment is part of the test.
                Err(error) if !error.retryable() => return Err(error.chain()),
                _ => continue,
            }
        }
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        if engine.is_idle() {
            scenario.settle(journal, world).await;
            if !engine.is_idle() {
                continue;
            }
        } else {
            let busy = async {
                while !engine.is_idle() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                biased;
                () = injector.alarmed.notified() => continue,
                done = tokio::time::timeout(scenario.patience(), busy) => if done.is_ok() { continue },
            }
        }
        moves += 1;
        if moves > MAX_MOVES {
            return Err(format!("does not end; it is {:?}", run.state));
        }
        if let Some(next) = clock.next_sleeper() {
            clock.advance_to(next);
            tokio::task::yield_now().await;
        }
    }
}
