//! One workflow run as stored and shown: what it is, where it stands, what each step did.
//!
//! The form is frozen: fields are only added, with a default. Everything in it is bounded, because a run is rewritten
//! with every step. Names, inputs and outputs are shared pointers, so that a copy per save costs little.

use std::{sync::Arc, time::Duration};

use nephos_types::{Error, ProjectId, Timestamp, WorkflowId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of the stored form of [`Run`].
pub const RUN_VERSION: u32 = 1;
/// The most steps that a definition may have.
pub const MAX_STEPS: usize = 256;
/// The most bytes of JSON that a step's output may have.
pub const MAX_OUTPUT: usize = 16 << 10;
/// The most bytes of JSON that a run's input may have.
pub const MAX_INPUT: usize = 64 << 10;
/// The most keys that a step may wait for at once.
pub const MAX_KEYS: usize = 64;
/// The most bytes that one key, or a name, may have.
pub const MAX_NAME: usize = 256;

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Some step executes, or is about to.
    Running,
    /// Every open step waits: for an event, a time, or its next attempt.
    Waiting,
    /// Steps are being undone, in reverse.
    Undoing,
    /// Every step is done.
    Succeeded,
    /// A step failed; everything is undone.
    Failed,
    /// It was cancelled; everything is undone.
    Cancelled,
    /// An undo failed (or a step past the point of no return): somebody has to look, then retry.
    Stuck,
}

impl RunState {
    /// Nothing more will ever happen.
    #[must_use]
    pub const fn is_closed(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Nothing more happens without somebody's doing: closed, or stuck.
    #[must_use]
    pub const fn is_settled(self) -> bool {
        self.is_closed() || matches!(self, Self::Stuck)
    }
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Begun: it executes, waits (see [`StepRecord::wait`]), or did when the process ended.
    Running,
    /// Done, with its output.
    Succeeded,
    /// Given up. It may have happened in part.
    Failed,
    /// Its undo is begun.
    Undoing,
    /// Undone.
    Undone,
    /// Its undo (or, past the point of no return, the step itself) cannot be completed without help.
    Stuck,
}

/// Why a run is being undone, and so what it ends as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// A step failed or time ran out.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// What a step waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Signals, any of which wakes it; none for a mere delay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Arc<str>>,
    /// When it is called again anyway.
    pub until: Timestamp,
}

/// How far a step is, for whoever watches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 100, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// What it does just now.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

/// One step of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The name people see.
    pub name: Arc<str>,
    /// Where it stands.
    pub state: StepState,
    /// Which attempt this is; attempts end by failing, not by waiting. Counted anew for the undo.
    #[serde(default)]
    pub attempts: u32,
    /// What it gave, once it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Arc<Value>>,
    /// Why the last attempt, of the step or of its undo, failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Arc<Error>>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it succeeded, failed or was undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What it waits for. Without keys and with an error: for its next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
}

impl StepRecord {
    pub(crate) fn pending(name: Arc<str>) -> Self {
        Self {
            name,
            state: StepState::Pending,
            attempts: 0,
            output: None,
            error: None,
            started_at: None,
            finished_at: None,
            progress: None,
            wait: None,
        }
    }
}

/// Who works on a run, and until when nobody else may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The engine, by its name.
    pub holder: Arc<str>,
    /// After this, others may take it over.
    pub until: Timestamp,
    /// Grows with each taking over.
    pub fence: u64,
}

/// The run and step that a child run was started by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The parent run.
    pub run: WorkflowId,
    /// Its step, by number.
    pub step: u16,
}

/// One run of a workflow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: WorkflowId,
    /// The definition it runs.
    pub definition: Arc<str>,
    /// That definition's version.
    pub definition_version: u32,
    /// What the run was asked to do.
    pub input: Arc<Value>,
    /// What it works on, e.g. a server's id.
    #[serde(default)]
    pub subject: Arc<str>,
    /// Whose it is; none for the cloud's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectId>,
    /// Who asked for it; the engine only passes it on.
    #[serde(default)]
    pub author: Arc<Value>,
    /// Where it stands.
    pub state: RunState,
    /// Set once the run has turned back, or is about to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// Somebody asked to cancel it.
    #[serde(default)]
    pub cancel_requested: bool,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Arc<Error>>,
    /// Its steps, in order.
    pub steps: Vec<StepRecord>,
    /// Who works on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The run that started this one as its child.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// When it turns back if it is not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// How often its holders have saved it. Tells a holder whether a save whose answer was lost took place.
    #[serde(default)]
    pub sequence: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was saved last.
    pub updated_at: Timestamp,
    /// When it closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

impl Run {
    /// With what it works on; cut to 256 bytes.
    #[must_use]
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = truncated(subject.into(), MAX_NAME).into();
        self
    }

    /// With the project that owns it.
    #[must_use]
    pub fn project(mut self, project: Option<ProjectId>) -> Self {
        self.project = project;
        self
    }

    /// With who asked for it.
    #[must_use]
    pub fn author(mut self, author: Value) -> Self {
        self.author = Arc::new(author);
        self
    }

    /// With a time after which it turns back; an earlier one of the definition stands.
    #[must_use]
    pub fn deadline(mut self, deadline: Timestamp) -> Self {
        self.deadline = Some(self.deadline.map_or(deadline, |own| own.min(deadline)));
        self
    }

    /// Steps that count as done, of all: for a progress bar.
    #[must_use]
    pub fn steps_done(&self) -> (usize, usize) {
        (self.steps.iter().filter(|step| step.state == StepState::Succeeded).count(), self.steps.len())
    }

    /// What the last step gave: what a parent gets from its child.
    #[must_use]
    pub fn output(&self) -> Option<&Arc<Value>> {
        self.steps.last()?.output.as_ref()
    }

    /// How long it has taken so far.
    #[must_use]
    pub fn age(&self, now: Timestamp) -> Duration {
        self.finished_at.unwrap_or(now).since(self.created_at)
    }

    pub(crate) fn fence(&self) -> u64 {
        self.lease.as_ref().map_or(0, |lease| lease.fence)
    }
}

/// The signal that is given when a run settles: closes or gets stuck.
#[must_use]
pub fn settled_key(id: WorkflowId) -> String {
    format!("workflow/{id}")
}

/// Cuts at a character border at or below `limit` bytes.
pub(crate) fn truncated(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit.saturating_sub('…'.len_utf8())));
        text.push('…');
    }
    text
}

/// An error small enough to be stored with every later save of the run.
pub(crate) fn bounded(mut error: Error) -> Arc<Error> {
    error.code = truncated(error.code.into_owned(), 64).into();
    error.title = truncated(error.title.into_owned(), 256).into();
    error.detail = truncated(error.detail, 1024);
    error.reasons.truncate(16);
    for reason in &mut error.reasons {
        for text in [&mut reason.subject, &mut reason.constraint, &mut reason.detail] {
            *text = truncated(std::mem::take(text), 128);
        }
    }
    error.next.truncate(4);
    for step in &mut error.next {
        step.action = truncated(std::mem::take(&mut step.action), 256);
        step.cmd = step.cmd.take().map(|cmd| truncated(cmd, 256));
    }
    Arc::new(error)
}
