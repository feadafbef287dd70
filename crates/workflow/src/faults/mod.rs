//! Fault tests that any workflow gets for a few lines: implement [`Scenario`], then
//! `faults::check(&scenario).await.assert()`.
//!
//! The workflow is run once per fault: a crash before and after each step, and between what it did and the record of
//! it; each step called twice; each step failing, retryably and for good, before and after it did its work; each undo
//! likewise; a request to cancel at each step. However it goes, the end must be the whole effect once, or nothing, or
//! visibly stuck; and what is stuck must be completed by a retry once the fault is gone.

mod inject;
mod surviving;
mod trial;

use std::{collections::BTreeSet, fmt, time::Duration};

use futures_util::future::BoxFuture;
use nephos_types::WorkflowId;
use serde_json::Value;

pub use self::{
    inject::{Spot, Strike},
    trial::strike,
};
use crate::{
    definition::{Definition, Direction},
    journal::Journal,
    run::{Run, RunState},
};

/// A workflow under test and its world.
pub trait Scenario: Sync {
    /// Where runs are stored. Clones share what is stored, and outlive a crashed engine.
    type Journal: Journal + Clone;
    /// Everything that steps change outside the journal's effects.
    type World: Send + Sync;

    /// A world in which the workflow has not run.
    fn fresh(&self) -> BoxFuture<'_, (Self::Journal, Self::World)>;
    /// The definition under test, and then those that it starts as children. Called again after each crash.
    fn definitions(
        &self,
        journal: &Self::Journal,
        world: &Self::World,
    ) -> Vec<Definition<<Self::Journal as Journal>::Effects>>;
    /// What the run is started with.
    fn input(&self) -> Value;
    /// Whether the world is as it must be at this end; if not, what is wrong.
    ///
    /// # Errors
    /// In words for the developer.
    fn check(&self, journal: &Self::Journal, world: &Self::World, end: End) -> Result<(), String>;
    /// Does what whoever starts the run does before, knowing its id.
    fn prepare<'a>(
        &'a self,
        _journal: &'a Self::Journal,
        _world: &'a Self::World,
        _run: WorkflowId,
    ) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
    /// How long steps may be at work, by the clock on the wall, before it is taken that they wait for time to be moved on.
    /// To be raised for steps that really read and write files.
    fn patience(&self) -> Duration {
        trial::PATIENCE
    }
    /// Lets whatever the workflow waits for happen (a simulated agent at its work). Called whenever all runs wait, before
    /// time is moved on.
    fn settle<'a>(&'a self, _journal: &'a Self::Journal, _world: &'a Self::World) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// How a run has ended, and so what the world must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The whole effect, once.
    Whole,
    /// As if it had never run.
    Nothing,
}

/// What the checks found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many faulty runs there were.
    pub runs: usize,
    /// In how many of them the fault really struck.
    pub struck: usize,
    /// What went wrong.
    pub failures: Vec<String>,
}

impl Report {
    /// For the end of a test.
    ///
    /// # Panics
    /// If something went wrong.
    pub fn assert(&self) {
        assert!(self.failures.is_empty(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} runs, {} with a fault that struck, {} wrong", self.runs, self.struck, self.failures.len())?;
        self.failures.iter().try_for_each(|failure| writeln!(f, "- {failure}"))
    }
}

/// What the run is allowed to end as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allowed {
    /// The fault is one that must not matter.
    Success,
    /// Whatever is consistent, but not stuck.
    Consistent,
    /// An undo (or what has no return) failed for good: stuck, and consistent after a retry.
    Stuck,
}

/// Runs the scenario under each fault.
pub async fn check<S: Scenario>(scenario: &S) -> Report {
    let mut report = Report::default();
    let (journal, world) = scenario.fresh().await;
    let definitions = scenario.definitions(&journal, &world);
    let Some(definition) = definitions.first() else {
        report.failures.push("the scenario has no definition".into());
        return report;
    };
    for (strikes, allowed) in plans(definition) {
        report.runs += 1;
        let trial = strike(scenario, strikes.clone()).await;
        report.struck += usize::from(trial.struck == strikes.len());
        let verdict =
            trial.verdict.and_then(|run| permitted(&run, trial.stuck, allowed, trial.struck == strikes.len()));
        if let Err(why) = verdict {
            report.failures.push(format!("{}: {why}", name(definition, &strikes)));
        }
    }
    report
}

fn permitted(run: &Run, was_stuck: bool, allowed: Allowed, struck: bool) -> Result<(), String> {
    let why = || run.error.as_ref().map_or(String::new(), |error| format!(" ({})", error.chain()));
    match allowed {
        Allowed::Success if run.state != RunState::Succeeded => Err(format!("ended as {:?}{}", run.state, why())),
        Allowed::Success | Allowed::Consistent if was_stuck => Err(format!("got stuck{}", why())),
        Allowed::Stuck if struck && !was_stuck => Err(format!("ended as {:?} instead of stuck", run.state)),
        _ => Ok(()),
    }
}

fn name<E: Send + 'static>(definition: &Definition<E>, strikes: &[(Spot, Strike)]) -> String {
    let names: Vec<&str> = definition.steps().collect();
    let one = |(spot, strike): &(Spot, Strike)| {
        let undo = if spot.direction == Direction::Undo { "undo of " } else { "" };
        format!("{strike:?} at {undo}`{}`", names.get(spot.step).unwrap_or(&"?"))
    };
    if strikes.is_empty() { "no fault".into() } else { strikes.iter().map(one).collect::<Vec<_>>().join(", then ") }
}

/// Every fault worth trying on this definition.
fn plans<E: Send + 'static>(definition: &Definition<E>) -> Vec<(Vec<(Spot, Strike)>, Allowed)> {
    let shape = &definition.shape;
    let steps = definition.steps.len();
    let stage_of = |step: usize| shape.stages.iter().position(|stage| stage.contains(&step)).unwrap_or(0);
    let final_from = |step: usize| shape.no_return.is_some_and(|border| stage_of(step) >= border);
    let forward = |step| Spot { step, direction: Direction::Forward };
    let undo = |step| Spot { step, direction: Direction::Undo };
    let mut plans = vec![(vec![], Allowed::Success)];
    for step in 0..steps {
        for strike in [Strike::CrashBefore, Strike::CrashAfter, Strike::CrashSaved, Strike::Twice] {
            plans.push((vec![(forward(step), strike)], Allowed::Success));
        }
        for strike in [Strike::Retry, Strike::RetryAfter, Strike::Cancel, Strike::CancelAfter] {
            plans.push((vec![(forward(step), strike)], Allowed::Consistent));
        }
        for strike in [Strike::Fatal, Strike::FatalAfter] {
            let allowed = if final_from(step) { Allowed::Stuck } else { Allowed::Consistent };
            plans.push((vec![(forward(step), strike)], allowed));
        }
    }
    // Undo is reached by failing at the step itself (its output unknown) and at the last step that can turn back.
    let last = (0..steps).rev().find(|step| !final_from(*step));
    for step in (0..steps).filter(|step| definition.has_undo(*step) && !final_from(*step)) {
        for turn in BTreeSet::from([step, last.unwrap_or(step)]) {
            let turning = (forward(turn), Strike::FatalAfter);
            for strike in [Strike::CrashBefore, Strike::CrashAfter, Strike::CrashSaved, Strike::Twice] {
                plans.push((vec![turning, (undo(step), strike)], Allowed::Consistent));
            }
            for strike in [Strike::Retry, Strike::RetryAfter] {
                plans.push((vec![turning, (undo(step), strike)], Allowed::Consistent));
            }
            for strike in [Strike::Fatal, Strike::FatalAfter] {
                plans.push((vec![turning, (undo(step), strike)], Allowed::Stuck));
            }
        }
    }
    plans
}
