//! What a step function is given: its input, what earlier steps gave, progress, cancellation.

use std::{any::Any, collections::BTreeMap, fmt, sync::Arc};

use futures_util::future::BoxFuture;
use nephos_types::{Error, ProjectId, Result, Timestamp, WorkflowId};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    definition::Slot,
    run::{Parent, Progress, Run, StepRecord, truncated},
};

/// One call of a step, or of its undo.
///
/// Cheap to clone. It shows the run as it was when the call began.
pub struct StepContext<I> {
    pub(crate) call: Call,
    pub(crate) input: Arc<I>,
}

impl<I> Clone for StepContext<I> {
    fn clone(&self) -> Self {
        Self { call: self.call.clone(), input: Arc::clone(&self.input) }
    }
}

impl<I> StepContext<I> {
    /// What the run was asked to do.
    #[must_use]
    pub fn input(&self) -> &I {
        &self.input
    }

    /// The run's id.
    #[must_use]
    pub fn run_id(&self) -> WorkflowId {
        self.call.run.id
    }

    /// What the run works on.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.call.run.subject
    }

    /// Whose the run is.
    #[must_use]
    pub fn project(&self) -> Option<ProjectId> {
        self.call.run.project
    }

    /// Who asked for it.
    #[must_use]
    pub fn author(&self) -> &Value {
        &self.call.run.author
    }

    /// The run and step that started this run as a child.
    #[must_use]
    pub fn parent(&self) -> Option<&Parent> {
        self.call.run.parent.as_ref()
    }

    /// Why the run is being undone; for undo functions.
    #[must_use]
    pub fn failure(&self) -> Option<&Error> {
        self.call.run.error.as_deref()
    }

    /// `<run>/<step>`: the same in every call of this step of this run, so that the other side can recognise repeats.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.call.run.id, self.call.record().map_or("", |step| &step.name))
    }

    /// Which attempt this is, from 1. Being called again after a wait or a crash is not another attempt.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.call.record().map_or(1, |step| step.attempts.max(1))
    }

    /// When this step (or its undo) was called first.
    #[must_use]
    pub fn started_at(&self) -> Timestamp {
        self.call.record().and_then(|step| step.started_at).unwrap_or(self.call.run.created_at)
    }

    /// What an earlier step gave.
    ///
    /// # Errors
    /// If that step has not succeeded, or gave what this type cannot be read from: a defect in the definition.
    pub fn get<T: DeserializeOwned>(&self, slot: Slot<T>) -> Result<T> {
        let step = self.call.run.steps.get(slot.step());
        let name = step.map_or("?", |step| &step.name);
        let Some(output) = step.and_then(|step| step.output.as_ref()) else {
            return Err(Error::bug(format!("Step `{name}` has no output yet")));
        };
        T::deserialize(&**output).map_err(|error| Error::internal(format!("Output of step `{name}` unreadable"), error))
    }

    /// What an earlier step gave, if it has succeeded; for undo functions.
    #[must_use]
    pub fn find<T: DeserializeOwned>(&self, slot: Slot<T>) -> Option<T> {
        self.get(slot).ok()
    }

    /// Tells whoever watches how far this step is. Cheap enough to be called often; saved at most once a second.
    pub fn progress(&self, percent: Option<u8>, text: impl Into<String>) {
        let progress = Progress { percent: percent.map(|value| value.min(100)), text: truncated(text.into(), 256) };
        self.call.link.progress(self.call.step, progress);
    }

    /// Whether the run was asked to cancel, or the engine to stop: a long step should return soon. What it returns
    /// still counts.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.call.cancelled.is_cancelled()
    }

    /// Returns once [`is_cancelled`](Self::is_cancelled).
    pub async fn cancelled(&self) {
        self.call.cancelled.cancelled().await;
    }

    /// The engine's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.call.link.now()
    }
}

impl<I: fmt::Debug> fmt::Debug for StepContext<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepContext").field("key", &self.key()).field("input", &self.input).finish_non_exhaustive()
    }
}

/// A call with the input's type erased.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) run: Arc<Run>,
    pub(crate) step: usize,
    pub(crate) input: Arc<dyn Any + Send + Sync>,
    pub(crate) cancelled: CancellationToken,
    pub(crate) link: Arc<dyn Link>,
}

impl Call {
    pub(crate) fn record(&self) -> Option<&StepRecord> {
        self.run.steps.get(self.step)
    }

    /// The output of this step as recorded.
    pub(crate) fn recorded_output(&self) -> Option<&Arc<Value>> {
        self.record()?.output.as_ref()
    }

    pub(crate) fn typed<I: Send + Sync + 'static>(&self) -> Result<StepContext<I>> {
        let input = Arc::clone(&self.input)
            .downcast::<I>()
            .map_err(|_| Error::bug("A step was called with another definition's input"))?;
        Ok(StepContext { call: self.clone(), input })
    }
}

/// What a call can ask of the engine that makes it.
pub(crate) trait Link: Send + Sync {
    fn now(&self) -> Timestamp;
    fn progress(&self, step: usize, progress: Progress);
    /// Makes sure that this step's child run exists, and shows it.
    fn start_child(&self, call: Call, definition: Arc<str>, start: ChildStart) -> BoxFuture<'_, Result<Arc<Run>>>;
    /// Shows this step's child run, if it exists; asks it to cancel if it is open.
    fn cancel_child(&self, call: Call) -> BoxFuture<'_, Result<Option<Arc<Run>>>>;
}

/// What a child run is started with.
#[derive(Clone, Debug, Default)]
pub struct ChildStart {
    pub(crate) input: Value,
    pub(crate) subject: String,
}

impl ChildStart {
    /// With this input.
    ///
    /// # Errors
    /// If the input cannot be written as JSON.
    pub fn new(input: &impl serde::Serialize) -> Result<Self> {
        let input = serde_json::to_value(input).map_err(|error| Error::internal("Child input unwritable", error))?;
        Ok(Self { input, subject: String::new() })
    }

    /// With what it works on; else the parent's subject.
    #[must_use]
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = subject.into();
        self
    }
}

/// Progress of steps that execute, by step.
pub(crate) type Board = BTreeMap<usize, Progress>;
