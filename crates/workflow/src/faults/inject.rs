//! Faults, put around the functions of a definition.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use nephos_types::{Error, ErrorKind};
use tokio::sync::Notify;

use crate::{
    definition::{Definition, Direction, StepFunction},
    observe::{Event, Observer, Point},
    outcome::Failure,
};

/// Where a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spot {
    /// The step, by number.
    pub step: usize,
    /// The step, or its undo.
    pub direction: Direction,
}

/// A fault; each strikes once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strike {
    /// The process dies before the call.
    CrashBefore,
    /// The process dies after the call, before anything is recorded.
    CrashAfter,
    /// The process dies once the answer is recorded.
    CrashSaved,
    /// The call is made twice; only the second answer counts.
    Twice,
    /// Fails retryably without doing anything.
    Retry,
    /// Does its work, then fails retryably.
    RetryAfter,
    /// Fails for good without doing anything.
    Fatal,
    /// Does its work, then fails for good.
    FatalAfter,
    /// Somebody asks to cancel as the call begins.
    Cancel,
    /// Somebody asks to cancel when the call has done its work.
    CancelAfter,
}

/// What happened that the trial must act upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    Crash,
    Cancel,
}

/// The faults of one trial; shared by the engines that run it one after the other.
pub(super) struct Injector {
    strikes: Mutex<Vec<(Spot, Strike)>>,
    alarms: Mutex<Vec<Alarm>>,
    pub(super) alarmed: Notify,
}

/// One engine's life: after its crash nothing of it may go on.
#[derive(Default)]
pub(super) struct Life(AtomicBool);

impl Life {
    fn is_over(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Injector {
    pub(super) fn new(strikes: Vec<(Spot, Strike)>) -> Self {
        Self { strikes: Mutex::new(strikes), alarms: Mutex::default(), alarmed: Notify::new() }
    }

    fn strikes(&self) -> MutexGuard<'_, Vec<(Spot, Strike)>> {
        self.strikes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Faults that have not struck.
    pub(super) fn left(&self) -> usize {
        self.strikes().len()
    }

    pub(super) fn take_alarm(&self) -> Option<Alarm> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn raise(&self, alarm: Alarm) {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).push(alarm);
        self.alarmed.notify_one();
    }

    /// The first fault for this spot that `wanted` takes.
    fn take(&self, spot: Spot, wanted: impl Fn(Strike) -> bool) -> Option<Strike> {
        let mut strikes = self.strikes();
        let place = strikes.iter().position(|(at, strike)| *at == spot && wanted(*strike))?;
        Some(strikes.remove(place).1)
    }

    fn crash(&self, life: &Life) {
        life.0.store(true, Ordering::SeqCst);
        self.raise(Alarm::Crash);
    }

    /// The definition with the faults around its functions.
    pub(super) fn decorate<E: Send + 'static>(
        self: &Arc<Self>,
        definition: Definition<E>,
        life: &Arc<Life>,
    ) -> Definition<E> {
        definition.decorate(|step, direction, inner| {
            let (injector, life, spot) = (Arc::clone(self), Arc::clone(life), Spot { step, direction });
            injector.around(life, spot, inner)
        })
    }

    fn around<E: Send + 'static>(
        self: Arc<Self>,
        life: Arc<Life>,
        spot: Spot,
        inner: StepFunction<E>,
    ) -> StepFunction<E> {
        Arc::new(move |call| {
            let (injector, life, inner) = (Arc::clone(&self), Arc::clone(&life), Arc::clone(&inner));
            Box::pin(async move {
                if life.is_over() {
                    return std::future::pending().await;
                }
                let strike = injector.take(spot, |strike| strike != Strike::CrashSaved);
                match strike {
                    Some(Strike::CrashBefore) => {
                        injector.crash(&life);
                        return std::future::pending().await;
                    }
                    Some(Strike::Retry) => return Err(Failure::retry(injected())),
                    Some(Strike::Fatal) => return Err(Failure::fatal(injected())),
                    Some(Strike::Cancel) => {
                        injector.raise(Alarm::Cancel);
                        // Lets the request be taken in while the call is under way.
                        for _ in 0..YIELDS {
                            tokio::task::yield_now().await;
                        }
                    }
                    Some(Strike::Twice) => drop(inner(call.clone()).await),
                    _ => {}
                }
                let answer = inner(call).await;
                if life.is_over() {
                    return std::future::pending().await;
                }
                match strike {
                    Some(Strike::CrashAfter) => {
                        injector.crash(&life);
                        std::future::pending().await
                    }
                    Some(Strike::RetryAfter) => Err(Failure::retry(injected())),
                    Some(Strike::FatalAfter) => Err(Failure::fatal(injected())),
                    Some(Strike::CancelAfter) => {
                        injector.raise(Alarm::Cancel);
                        for _ in 0..YIELDS {
                            tokio::task::yield_now().await;
                        }
                        answer
                    }
                    _ => answer,
                }
            })
        })
    }
}

/// Strikes when an answer is recorded. Only for the definition under test.
pub(super) struct SavedWatch {
    pub(super) injector: Arc<Injector>,
    pub(super) life: Arc<Life>,
    pub(super) run: nephos_types::WorkflowId,
}

impl Observer for SavedWatch {
    fn observe(&self, event: &Event<'_>) {
        if let (Point::Saved(direction), Some(step)) = (event.point, event.step)
            && event.run.id == self.run
            && self.injector.take(Spot { step, direction }, |strike| strike == Strike::CrashSaved).is_some()
        {
            self.injector.crash(&self.life);
        }
    }
}

const YIELDS: usize = 20;

fn injected() -> Error {
    Error::new(ErrorKind::Unavailable, "injected", "A fault was injected")
}
