//! Driving one run: calling its steps, and saving what comes of each call.
//!
//! A run is driven by at most one task at a time, and only while it has something to do. Calls of one stage run at once
//! within that task.

use std::{
    collections::BTreeSet,
    panic::AssertUnwindSafe,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use nephos_types::{Error, Timestamp};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{
    Inner,
    cell::{Cell, Held, Repeats},
    link::RunLink,
    save::Saved,
};
use crate::{
    context::{Call, Link},
    definition::{AnyCall, Direction, Step},
    journal::Journal,
    observe::Point,
    outcome::{Done, Failure, Outcome},
    run::{Run, RunState, StepState, Wait, settled_key},
    transition,
};

/// How many stages a run may take before others that wait for room get their turn.
const TURN: u32 = 16;
/// How often in a row effects may meet a conflict before that counts as a failed attempt.
const MAX_REPEATS: u32 = 50;

/// A call that has ended.
struct Ended<E> {
    step: usize,
    direction: Direction,
    /// The number of the latest signal when the call began.
    since: u64,
    end: End<E>,
}

enum End<E> {
    Answer(Result<Done<Value, E>, Failure>),
    /// It took longer than one call may.
    CallLimit,
    /// The step as a whole (waits and retries included), or the run, took longer than it may.
    Limit,
    /// Given up because of a request to cancel.
    Cancelled,
    /// Given up because the engine stops: as if it had crashed.
    Stopped,
}

impl<J: Journal> Inner<J> {
    /// Drives a run until it waits, closes, is lost, or the engine stops.
    pub(super) async fn drive(self: &Arc<Self>, cell: &Arc<Cell<J::Effects>>) {
        let link: Arc<dyn Link> = Arc::new(RunLink { inner: Arc::clone(self), cell: Arc::clone(cell) });
        let mut calls = FuturesUnordered::new();
        let mut busy = BTreeSet::new();
        let mut repeats = Repeats::new();
        let mut due = BTreeSet::new();
        let mut turn = 0;
        loop {
            due.append(&mut self.registry().take_due(cell.id));
            let mut held = cell.held.lock().await;
            if !self.stop.is_cancelled() && !held.lost {
                self.turn_back_if_due(cell, &mut held, busy.is_empty()).await;
                for (step, direction) in to_call(&held.run, &busy, &due) {
                    busy.insert(step);
                    held.calls += 1;
                    let pause = repeats.get(&step).map_or(Duration::ZERO, |times| conflict_pause(*times));
                    calls.push(self.call(cell, &held.run, step, direction, Arc::clone(&link), pause));
                }
                due.clear();
            }
            if calls.is_empty() {
                if held.lost || held.run.state.is_settled() {
                    self.let_go(cell, &held);
                    return;
                }
                if self.stop.is_cancelled() {
                    return;
                }
                let run = Arc::clone(&held.run);
                drop(held);
                if self.registry().park(cell.id) {
                    self.observe(&run, None, Point::Parked);
                    return;
                }
                continue;
            }
            drop(held);
            tokio::select! {
                biased;
                Some(ended) = calls.next() => {
                    let mut held = cell.held.lock().await;
                    busy.remove(&ended.step);
                    held.calls = held.calls.saturating_sub(1);
                    self.settle(cell, &mut held, ended, &mut repeats).await;
                    turn += 1;
                    if turn >= TURN && calls.is_empty() && !held.run.state.is_settled() && !held.lost {
                        turn = 0;
                        drop(held);
                        if self.registry().yield_to_others(cell.id) {
                            return;
                        }
                    }
                }
                () = cell.notify.notified() => {
                    if cell.take_unsaved_progress() {
                        let mut held = cell.held.lock().await;
                        self.save(cell, &mut held, |_| {}, None).await;
                    }
                }
                () = self.renewal() => {
                    let mut held = cell.held.lock().await;
                    self.save(cell, &mut held, |_| {}, None).await;
                }
            }
        }
    }

    /// When the lease of a run that executes must be renewed; never if nobody else works on this journal.
    async fn renewal(&self) {
        if self.config.exclusive {
            std::future::pending::<()>().await;
        } else {
            self.clock.sleep_until(self.clock.now().plus(self.config.lease / 3)).await;
        }
    }

    /// Turns the run back if its time is over, or if that was decided while calls were under way.
    async fn turn_back_if_due(&self, cell: &Cell<J::Effects>, held: &mut Held, alone: bool) {
        let (run, shape) = (&held.run, &cell.definition.shape);
        if !matches!(run.state, RunState::Running | RunState::Waiting) {
            return;
        }
        let now = self.clock.now();
        let expired = run.deadline.is_some_and(|deadline| deadline <= now)
            && run.ending.is_none()
            && !shape.irrevocable(shape.current(run));
        let turning = run.ending.is_some() || run.cancel_requested && !shape.irrevocable(shape.current(run));
        if expired {
            self.save(cell, held, |run| transition::expire(run, shape, now, alone), None).await;
        } else if turning && alone {
            self.save(cell, held, |run| transition::advance(run, shape, now, true), None).await;
        }
    }

    /// The run has closed, is stuck, or is somebody else's.
    fn let_go(self: &Arc<Self>, cell: &Cell<J::Effects>, held: &Held) {
        self.registry().remove(cell.id);
        self.observe(&held.run, None, if held.lost { Point::Lost } else { Point::Settled });
        if !held.lost {
            self.signal(&settled_key(cell.id));
        }
    }

    /// One call of a step or its undo, within its limits.
    fn call(
        self: &Arc<Self>,
        cell: &Arc<Cell<J::Effects>>,
        run: &Arc<Run>,
        step: usize,
        direction: Direction,
        link: Arc<dyn Link>,
        pause: Duration,
    ) -> BoxFuture<'static, Ended<J::Effects>> {
        let (inner, cell, run) = (Arc::clone(self), Arc::clone(cell), Arc::clone(run));
        Box::pin(async move {
            if !pause.is_zero() {
                inner.pause(pause).await;
            }
            let since = inner.registry().signal_count();
            let ended = |end| Ended { step, direction, since, end };
            if inner.stop.is_cancelled() {
                return ended(End::Stopped);
            }
            let Some(definition) = cell.definition.steps.get(step) else {
                return ended(End::Answer(Err(Failure::fatal(Error::bug("The workflow has no such step")))));
            };
            let function = match direction {
                Direction::Forward => Some(&definition.run),
                Direction::Undo => definition.undo.as_ref(),
            };
            let Some(function) = function else {
                return ended(End::Answer(Ok(Done::value(Value::Null))));
            };
            inner.observe(&run, Some(step), Point::Before(direction));
            // An undo is not to hurry because of the request to cancel that caused it.
            let asked =
                if direction == Direction::Forward { cell.cancel.child_token() } else { CancellationToken::new() };
            let call = AnyCall(Call {
                run: Arc::clone(&run),
                step,
                input: Arc::clone(&cell.input),
                cancelled: asked.clone(),
                link,
            });
            let answer = AssertUnwindSafe(async { function(call).await }).catch_unwind();
            let now = inner.clock.now();
            let whole = limit(&run, &cell, definition, step, direction).unwrap_or(Timestamp::from_micros(i64::MAX));
            let one = now.plus(definition.call_limit);
            let stopped = async {
                tokio::select! {
                    () = cell.cancel.cancelled(), if direction == Direction::Forward && !irrevocable(&run, &cell) => {
                        inner.clock.sleep_until(inner.clock.now().plus(inner.config.cancel_grace)).await;
                        End::Cancelled
                    }
                    () = inner.stop.cancelled() => {
                        asked.cancel();
                        inner.clock.sleep_until(inner.clock.now().plus(inner.config.stop_grace)).await;
                        End::Stopped
                    }
                }
            };
            let end = tokio::select! {
                biased;
                answer = answer => End::Answer(answer.unwrap_or_else(|panic| Err(panicked(&*panic)))),
                () = inner.clock.sleep_until(whole.min(one)) => if whole <= one { End::Limit } else { End::CallLimit },
                end = stopped => end,
            };
            inner.observe(&run, Some(step), Point::After(direction));
            ended(end)
        })
    }

    /// Saves what came of a call.
    async fn settle(
        self: &Arc<Self>,
        cell: &Cell<J::Effects>,
        held: &mut Held,
        ended: Ended<J::Effects>,
        repeats: &mut Repeats,
    ) {
        let Ended { step, direction, since, end } = ended;
        if held.lost {
            return;
        }
        let (shape, alone, now) = (&cell.definition.shape, held.calls == 0, self.clock.now());
        let Some(definition) = cell.definition.steps.get(step) else { return };
        let mut failure = match end {
            End::Stopped => return,
            End::Cancelled => {
                let error = Error::conflict("workflow_cancelled", "The workflow was cancelled");
                Failure::fatal(error.detail(format!("step `{}` did not end in time and was cut off", definition.name)))
            }
            End::CallLimit => Failure::retry(transition::timed_out(&format!("one call of step `{}`", definition.name))),
            End::Limit => Failure::fatal(transition::timed_out(&format!("step `{}`", definition.name))),
            End::Answer(Err(failure)) => failure,
            End::Answer(Ok(Done { outcome: Outcome::Value(value), effects })) => {
                cell.clear_progress(step);
                let value = Arc::new(value);
                let saved = self
                    .save(
                        cell,
                        held,
                        |run| match direction {
                            Direction::Forward => {
                                transition::succeed(run, shape, step, Arc::clone(&value), now, alone);
                            }
                            Direction::Undo => transition::undone(run, shape, step, now),
                        },
                        effects,
                    )
                    .await;
                match self.saved(held, step, direction, saved, repeats) {
                    Some(failure) => failure,
                    None => return,
                }
            }
            End::Answer(Ok(Done { outcome: Outcome::Wait { keys, recheck_after }, effects })) => {
                let end = limit(&held.run, cell, definition, step, direction);
                if end.is_some_and(|end| end <= now) {
                    Failure::fatal(transition::timed_out(&format!("step `{}`", definition.name)))
                } else {
                    let until = end.map_or(now.plus(recheck_after), |end| end.min(now.plus(recheck_after)));
                    let wait = Wait { keys: keys.0, until };
                    match self.wait(cell, held, step, direction, wait, since, effects, repeats).await {
                        Some(failure) => failure,
                        None => return,
                    }
                }
            }
        };
        if held.lost {
            return;
        }
        cell.clear_progress(step);
        let record = held.run.steps.get(step);
        let attempt = record.map_or(1, |record| record.attempts.max(1));
        let retry = match direction {
            Direction::Forward => &definition.retry,
            Direction::Undo => &definition.undo_retry,
        };
        let forever = direction == Direction::Forward && shape.irrevocable(shape.current(&held.run));
        let turning = direction == Direction::Forward && (held.run.ending.is_some() || held.run.cancel_requested);
        let again = failure.retry && (forever || !turning && retry.allows_after(attempt));
        let error = std::mem::replace(&mut failure.error, Error::bug("moved"));
        if again {
            let delay = retry.delay(attempt, (cell.id, step));
            let end = limit(&held.run, cell, definition, step, direction);
            let until = end.map_or(now.plus(delay), |end| end.min(now.plus(delay)));
            tracing::info!(workflow = %cell.id, step = %definition.name, attempt, error = %error.chain(), "a step will be tried again");
            let wait = Wait { keys: vec![], until };
            let saved = self
                .save(
                    cell,
                    held,
                    |run| transition::postpone(run, shape, step, wait.clone(), Some(error.clone()), now),
                    None,
                )
                .await;
            if matches!(saved, Saved::Yes) {
                self.observe(&held.run, Some(step), Point::Saved(direction));
                self.register(cell.id, step, &wait, since);
            }
        } else {
            tracing::warn!(workflow = %cell.id, step = %definition.name, ?direction, attempt, error = %error.chain(), "a step has failed");
            let saved = self
                .save(
                    cell,
                    held,
                    |run| match direction {
                        Direction::Forward => transition::fail(run, shape, step, error.clone(), now, alone),
                        Direction::Undo => transition::undo_failed(run, shape, step, error.clone(), now),
                    },
                    None,
                )
                .await;
            if matches!(saved, Saved::Yes) {
                self.observe(&held.run, Some(step), Point::Saved(direction));
            }
        }
    }

    /// A step decided to wait. A failure if its effects are refused.
    #[allow(clippy::too_many_arguments)]
    async fn wait(
        self: &Arc<Self>,
        cell: &Cell<J::Effects>,
        held: &mut Held,
        step: usize,
        direction: Direction,
        wait: Wait,
        since: u64,
        effects: Option<J::Effects>,
        repeats: &mut Repeats,
    ) -> Option<Failure> {
        let recorded = held.run.steps.get(step).and_then(|record| record.wait.as_ref());
        // Looking again and waiting on for the same is not worth a save, unless the save also renews the lease.
        let same = !wait.keys.is_empty() && recorded.is_some_and(|recorded| recorded.keys == wait.keys);
        if !(same && effects.is_none() && self.config.exclusive) {
            let (shape, now) = (&cell.definition.shape, self.clock.now());
            let change = |run: &mut Run| transition::postpone(run, shape, step, wait.clone(), None, now);
            let saved = self.save(cell, held, change, effects).await;
            let yes = matches!(saved, Saved::Yes);
            let failure = self.saved(held, step, direction, saved, repeats);
            if !yes {
                return failure;
            }
        }
        self.register(cell.id, step, &wait, since);
        None
    }

    /// What follows from a save of a call's answer: nothing, a repeat, or a failure.
    fn saved(
        self: &Arc<Self>,
        held: &Held,
        step: usize,
        direction: Direction,
        saved: Saved,
        repeats: &mut Repeats,
    ) -> Option<Failure> {
        match saved {
            Saved::Yes => {
                repeats.remove(&step);
                self.observe(&held.run, Some(step), Point::Saved(direction));
                None
            }
            Saved::Lost => None,
            Saved::Refused(error) => Some(error.into()),
            Saved::Again => {
                let times = repeats.entry(step).or_default();
                *times += 1;
                if *times <= MAX_REPEATS {
                    // The step is still to be called as far as its record goes, so it will be.
                    self.wake(held.run.id, Some(step));
                    return None;
                }
                repeats.remove(&step);
                let error = Error::new(
                    nephos_types::ErrorKind::Unavailable,
                    "workflow_conflict",
                    "What the step changes keeps being changed by others",
                );
                Some(Failure::retry(error))
            }
        }
    }

    fn register(&self, id: nephos_types::WorkflowId, step: usize, wait: &Wait, since: u64) {
        let earlier = self.registry().register(id, step, &wait.keys, wait.until, since);
        if earlier {
            self.timers_changed.notify_one();
        }
    }

    pub(super) fn observe(&self, run: &Run, step: Option<usize>, point: Point) {
        let observers = self.observers.read().unwrap_or_else(PoisonError::into_inner);
        for observer in observers.iter() {
            observer.observe(&crate::observe::Event { run, step, point });
        }
    }
}

/// Steps to call now: those that are open, do not execute, and do not wait (any longer).
fn to_call(run: &Run, busy: &BTreeSet<usize>, due: &BTreeSet<usize>) -> Vec<(usize, Direction)> {
    let (open, direction) = match run.state {
        RunState::Running | RunState::Waiting if run.ending.is_none() => (StepState::Running, Direction::Forward),
        RunState::Undoing => (StepState::Undoing, Direction::Undo),
        _ => return vec![],
    };
    let steps = run.steps.iter().enumerate();
    steps
        .filter(|(number, step)| {
            step.state == open && !busy.contains(number) && (step.wait.is_none() || due.contains(number))
        })
        .map(|(number, _)| (number, direction))
        .collect()
}

fn irrevocable<E>(run: &Run, cell: &Cell<E>) -> bool {
    cell.definition.shape.irrevocable(cell.definition.shape.current(run))
}

/// When the step as a whole, or the run, must be done. Undoing and what has no return take the time they need.
fn limit<E>(run: &Run, cell: &Cell<E>, definition: &Step<E>, step: usize, direction: Direction) -> Option<Timestamp> {
    if direction == Direction::Undo || irrevocable(run, cell) {
        return None;
    }
    let started = run.steps.get(step).and_then(|record| record.started_at).unwrap_or(run.created_at);
    let own = definition.limit.map(|limit| started.plus(limit));
    [own, run.deadline].into_iter().flatten().min()
}

/// A short pause before a step whose effects met a conflict is called again.
fn conflict_pause(times: u32) -> Duration {
    Duration::from_millis(1 << times.min(8))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("(no text)"), "a workflow step panicked");
    Failure::fatal(Error::bug("A workflow step panicked"))
}
