//! The state machine of a run: pure functions from a run and what happened to the run as it is to be saved.
//!
//! Invariants: a stage begins only when all before it succeeded; once `ending` is set no step begins; a step is undone
//! only after all later stages are; a run closes as failed or cancelled only when each step that began, and has an undo,
//! is undone.

use nephos_types::{Error, Timestamp};
use serde_json::Value;
use std::sync::Arc;

use crate::{
    definition::Shape,
    run::{Ending, Run, RunState, StepRecord, StepState, Wait, bounded},
};

impl Shape {
    /// The first stage that is not done.
    pub(crate) fn current(&self, run: &Run) -> Option<usize> {
        self.stages
            .iter()
            .position(|stage| run.steps.get(stage.clone()).is_some_and(|steps| !steps.iter().all(succeeded)))
    }

    /// Whether there is only forward, the run being in this stage (none: after the last).
    pub(crate) fn irrevocable(&self, stage: Option<usize>) -> bool {
        self.no_return.is_some_and(|border| stage.is_none_or(|stage| stage >= border))
    }
}

fn succeeded(step: &StepRecord) -> bool {
    step.state == StepState::Succeeded
}

fn begin(step: &mut StepRecord, state: StepState, now: Timestamp) {
    step.state = state;
    step.attempts = 1;
    step.started_at = Some(now);
    step.finished_at = None;
    step.progress = None;
    step.wait = None;
}

fn finish(step: &mut StepRecord, state: StepState, now: Timestamp) {
    step.state = state;
    step.finished_at = Some(now);
    step.progress = None;
    step.wait = None;
}

/// Begins a new run's first stage.
pub(crate) fn start(run: &mut Run, shape: &Shape, now: Timestamp) {
    advance(run, shape, now, true);
}

/// Step `step` is done. `alone`: no other step of the run executes at this moment.
pub(crate) fn succeed(run: &mut Run, shape: &Shape, step: usize, output: Arc<Value>, now: Timestamp, alone: bool) {
    if let Some(record) = run.steps.get_mut(step) {
        finish(record, StepState::Succeeded, now);
        record.output = Some(output);
        record.error = None;
    }
    advance(run, shape, now, alone);
}

/// Step `step` has failed for good.
pub(crate) fn fail(run: &mut Run, shape: &Shape, step: usize, error: Error, now: Timestamp, alone: bool) {
    let irrevocable = shape.irrevocable(shape.current(run));
    let error = bounded(error);
    if let Some(record) = run.steps.get_mut(step) {
        finish(record, if irrevocable { StepState::Stuck } else { StepState::Failed }, now);
        record.error = Some(Arc::clone(&error));
    }
    if !irrevocable && run.ending.is_none() {
        run.ending = Some(Ending::Failed);
        run.error = Some(error);
    }
    advance(run, shape, now, alone);
}

/// Step `step`, or its undo, waits; with an error, for its next attempt.
pub(crate) fn postpone(run: &mut Run, shape: &Shape, step: usize, wait: Wait, error: Option<Error>, now: Timestamp) {
    if let Some(record) = run.steps.get_mut(step) {
        record.wait = Some(wait);
        if let Some(error) = error {
            record.attempts = record.attempts.saturating_add(1);
            record.error = Some(bounded(error));
        }
    }
    advance(run, shape, now, false);
}

/// The undo of step `step` is done.
pub(crate) fn undone(run: &mut Run, shape: &Shape, step: usize, now: Timestamp) {
    if let Some(record) = run.steps.get_mut(step) {
        finish(record, StepState::Undone, now);
    }
    advance(run, shape, now, true);
}

/// The undo of step `step` has failed for good.
pub(crate) fn undo_failed(run: &mut Run, shape: &Shape, step: usize, error: Error, now: Timestamp) {
    if let Some(record) = run.steps.get_mut(step) {
        finish(record, StepState::Stuck, now);
        record.error = Some(bounded(error));
    }
    advance(run, shape, now, true);
}

/// Somebody asks to cancel.
///
/// # Errors
/// If the run is closed, or there is only forward.
pub(crate) fn request_cancel(run: &mut Run, shape: &Shape, now: Timestamp, alone: bool) -> Result<(), Error> {
    if run.state.is_closed() {
        return Err(Error::conflict("workflow_closed", "The workflow has ended already").detail(format!(
            "{} has {}",
            run.id,
            state_word(run.state)
        )));
    }
    if run.ending.is_some() || run.cancel_requested {
        return Ok(());
    }
    if shape.irrevocable(shape.current(run)) {
        return Err(Error::conflict("workflow_no_return", "The workflow can no longer be cancelled")
            .detail(format!("{} is past its point of no return: it will be completed", run.id)));
    }
    run.cancel_requested = true;
    advance(run, shape, now, alone);
    Ok(())
}

/// The run's time is over. Nothing happens past the point of no return, or when it turns back already.
pub(crate) fn expire(run: &mut Run, shape: &Shape, now: Timestamp, alone: bool) {
    if run.ending.is_none() && !shape.irrevocable(shape.current(run)) {
        run.ending = Some(Ending::Failed);
        run.error = Some(bounded(timed_out(&format!("workflow `{}`", run.definition))));
        advance(run, shape, now, alone);
    }
}

/// The error of whatever ran out of time.
pub(crate) fn timed_out(what: &str) -> Error {
    Error::new(nephos_types::ErrorKind::Timeout, "workflow_timeout", "It took longer than it may")
        .detail(format!("time limit of {what} reached"))
}

/// An operator wants what is stuck to be tried again. Whether there was anything.
pub(crate) fn retry_stuck(run: &mut Run, now: Timestamp) -> bool {
    if run.state != RunState::Stuck {
        return false;
    }
    let (step_state, run_state) = match run.ending {
        Some(_) => (StepState::Undoing, RunState::Undoing),
        None => (StepState::Running, RunState::Running),
    };
    for step in run.steps.iter_mut().filter(|step| step.state == StepState::Stuck) {
        begin(step, step_state, now);
    }
    run.state = run_state;
    true
}

/// Brings the run to what follows from its steps.
pub(crate) fn advance(run: &mut Run, shape: &Shape, now: Timestamp, alone: bool) {
    if matches!(run.state, RunState::Running | RunState::Waiting) {
        let stage = shape.current(run);
        if run.cancel_requested && run.ending.is_none() && !shape.irrevocable(stage) {
            run.ending = Some(Ending::Cancelled);
        }
        if run.ending.is_some() {
            if alone {
                turn_back(run, now);
            }
        } else {
            forward(run, shape, stage, now);
        }
    }
    if run.state == RunState::Undoing {
        undo(run, shape, now);
    }
}

fn forward(run: &mut Run, shape: &Shape, stage: Option<usize>, now: Timestamp) {
    let Some(stage) = stage.and_then(|stage| shape.stages.get(stage)) else {
        run.state = RunState::Succeeded;
        run.finished_at = Some(now);
        return;
    };
    let Some(steps) = run.steps.get_mut(stage.clone()) else { return };
    for step in steps.iter_mut().filter(|step| step.state == StepState::Pending) {
        begin(step, StepState::Running, now);
    }
    let mut open = steps.iter().filter(|step| step.state == StepState::Running).peekable();
    run.state = if open.peek().is_none() {
        RunState::Stuck
    } else if open.all(|step| step.wait.is_some()) {
        RunState::Waiting
    } else {
        RunState::Running
    };
}

/// No step goes forward any more: those that were open count as failed.
fn turn_back(run: &mut Run, now: Timestamp) {
    run.state = RunState::Undoing;
    for step in run.steps.iter_mut().filter(|step| step.state == StepState::Running) {
        finish(step, StepState::Failed, now);
    }
}

fn undo(run: &mut Run, shape: &Shape, now: Timestamp) {
    if run.steps.iter().any(|step| step.state == StepState::Undoing) {
        return;
    }
    if run.steps.iter().any(|step| step.state == StepState::Stuck) {
        run.state = RunState::Stuck;
        return;
    }
    for stage in shape.stages.iter().rev() {
        let mut begun = false;
        for number in stage.clone() {
            let undo = shape.undo.get(number).copied().unwrap_or(false);
            if let Some(step) = run.steps.get_mut(number)
                && undo
                && matches!(step.state, StepState::Succeeded | StepState::Failed)
            {
                begin(step, StepState::Undoing, now);
                begun = true;
            }
        }
        if begun {
            return;
        }
    }
    run.state = if run.ending == Some(Ending::Cancelled) { RunState::Cancelled } else { RunState::Failed };
    run.finished_at = Some(now);
}

fn state_word(state: RunState) -> &'static str {
    match state {
        RunState::Succeeded => "succeeded",
        RunState::Failed => "failed",
        RunState::Cancelled => "been cancelled",
        RunState::Running | RunState::Waiting | RunState::Undoing | RunState::Stuck => "not ended",
    }
}
