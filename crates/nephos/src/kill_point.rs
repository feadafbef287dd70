//! Ends the process as SIGKILL does at one point of a workflow, so that tests can restart it from there.
//!
//! `NEPHOS_KILL_AT=<workflow>/<step>/<before|after|saved>`; only who starts the process can set it.

use nephos_workflow::{Direction, Event, Observer, Point};
use nix::{
    sys::signal::{Signal, kill},
    unistd::getpid,
};

/// The environment variable that names the point.
const VARIABLE: &str = "NEPHOS_KILL_AT";

/// Watches for the point.
pub(crate) struct KillPoint {
    workflow: String,
    step: String,
    point: Point,
}

impl KillPoint {
    /// The point that the environment names, if it names one.
    pub(crate) fn from_environment() -> Option<Self> {
        let text = std::env::var(VARIABLE).ok()?;
        let mut parts = text.splitn(3, '/');
        let (workflow, step, when) = (parts.next()?, parts.next()?, parts.next()?);
        let point = match when {
            "before" => Point::Before(Direction::Forward),
            "after" => Point::After(Direction::Forward),
            "saved" => Point::Saved(Direction::Forward),
            _ => return None,
        };
        Some(Self { workflow: workflow.to_owned(), step: step.to_owned(), point })
    }
}

impl Observer for KillPoint {
    fn observe(&self, event: &Event<'_>) {
        let step = event.step.and_then(|step| event.run.steps.get(step));
        if event.point == self.point
            && *event.run.definition == *self.workflow
            && step.is_some_and(|step| *step.name == *self.step)
        {
            let _ = kill(getpid(), Signal::SIGKILL);
        }
    }
}
