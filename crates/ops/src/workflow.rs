//! Operations on workflows and schedules.

use nephos_types::{Error, Name, Number, Page, ProjectId, Reference, ScheduleId, Text, Timestamp, WorkflowId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    call::{EventStream, View},
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// How a workflow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkflowState {
    /// A step runs, or is about to.
    Running,
    /// It waits for something outside or for a time.
    Waiting,
    /// A step failed for good; what was done before is being undone.
    Undoing,
    /// All of it is done.
    Succeeded,
    /// It failed, and everything it had done is undone.
    Failed,
    /// It was cancelled, and everything it had done is undone.
    Cancelled,
    /// Undoing failed: somebody must look. `workflow.retry` tries again.
    Stuck,
}

impl WorkflowState {
    /// Whether nothing more will happen by itself.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Stuck)
    }
}

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Begun.
    Running,
    /// It waits for something outside or for a time.
    Waiting,
    /// Done.
    Succeeded,
    /// Failed for good.
    Failed,
    /// Its undo runs.
    Undoing,
    /// Undone.
    Undone,
    /// Its undo failed.
    UndoFailed,
}

/// One step of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// Its name, as people say it.
    pub name: String,
    /// How it stands.
    pub state: StepState,
    /// How often it was tried.
    pub attempts: u32,
    /// What it does right now, or came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Progress in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// The last thing that went wrong in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// Something that takes time, step by step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Workflow {
    /// Its id.
    pub id: WorkflowId,
    /// What it does, e.g. `server.create`.
    pub name: String,
    /// The project it works for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectId>,
    /// Id of the resource it works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// How it stands.
    pub state: WorkflowState,
    /// Its steps, in order.
    pub steps: Vec<Step>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Value>")]
    pub error: Option<Error>,
    /// When it began.
    pub created_at: Timestamp,
    /// When it last moved.
    pub updated_at: Timestamp,
}
impl View for Workflow {}

const COLUMNS: &[&str] = &["id", "name", "state", "subject", "created_at", "updated_at"];

/// List workflows.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListWorkflows {
    /// Only those that are not final.
    #[serde(default)]
    pub open: bool,
    /// Only those that work on this resource (its id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Text<64>>,
    /// Of all projects; needs the role admin, or reader on the system.
    #[serde(default)]
    pub all_projects: bool,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<WorkflowId>,
}
impl Operation for ListWorkflows {
    type Output = Page<Workflow>;
    const SPEC: Spec = Spec {
        name: "workflow.list",
        method: Method::Get,
        path: "/v1/workflows",
        permission: Permission::PROJECT_READER,
        summary: "List what is being done and was done",
        columns: COLUMNS,
        examples: &[Example { title: "What goes on now", command: "nephos workflow list --open" }],
        ..Spec::DEFAULT
    };
}

macro_rules! workflow_operation {
    ($(#[$doc:meta])* $type:ident => $output:ty, { $($spec:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $type {
            /// Id.
            pub workflow: WorkflowId,
        }
        impl Operation for $type {
            type Output = $output;
            const SPEC: Spec = Spec { positional: &["workflow"], columns: COLUMNS, $($spec)* ..Spec::DEFAULT };
        }
    };
}

workflow_operation! {
    /// Show a workflow.
    ShowWorkflow => Workflow, {
        name: "workflow.show",
        method: Method::Get,
        path: "/v1/workflows/{workflow}",
        permission: Permission::PROJECT_READER,
        summary: "Show a workflow with its steps",
        examples: &[Example { title: "By id", command: "nephos workflow show wf-0123456789abc" }],
    }
}

workflow_operation! {
    /// Follow a workflow: its state now and after each change, until it is final.
    WatchWorkflow => EventStream, {
        name: "workflow.watch",
        method: Method::Get,
        path: "/v1/workflows/{workflow}/watch",
        permission: Permission::PROJECT_READER,
        summary: "Follow a workflow until it ends",
        description: "Server-sent events named `workflow`; each carries the whole workflow.",
        examples: &[Example { title: "By id", command: "nephos workflow watch wf-0123456789abc" }],
    }
}

workflow_operation! {
    /// Cancel a workflow.
    CancelWorkflow => Workflow, {
        name: "workflow.cancel",
        method: Method::Post,
        path: "/v1/workflows/{workflow}/cancel",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Stop a workflow and undo what it did",
        examples: &[Example { title: "By id", command: "nephos workflow cancel wf-0123456789abc" }],
    }
}

workflow_operation! {
    /// Try a stuck workflow again.
    RetryWorkflow => Workflow, {
        name: "workflow.retry",
        method: Method::Post,
        path: "/v1/workflows/{workflow}/retry",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Changes,
        summary: "Try again to undo a stuck workflow",
        examples: &[Example { title: "By id", command: "nephos workflow retry wf-0123456789abc" }],
    }
}

/// What happens with starts that were missed while the cloud was down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MissedRuns {
    /// Nothing; wait for the next one.
    Skip,
    /// One start makes up for all of them.
    #[default]
    Once,
    /// Every one is made up for, at most 100.
    All,
}

/// A time at which an operation is called, again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Schedule {
    /// Its id.
    pub id: ScheduleId,
    /// Its name, unique in the project.
    pub name: Name,
    /// The project it works for.
    pub project: ProjectId,
    /// Seconds between starts; absent for cron.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
    /// Cron expression, in UTC; absent for an interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// The operation.
    pub operation: String,
    /// Its input.
    pub input: Value,
    /// What happens with missed starts.
    pub missed: MissedRuns,
    /// The last planned time that was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Timestamp>,
    /// The next planned time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}
impl View for Schedule {}

const SCHEDULE_COLUMNS: &[&str] = &["name", "operation", "every_seconds", "cron", "next_at", "id"];

/// Call an operation again and again.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSchedule {
    /// Name, unique in the project.
    pub name: Name,
    /// Seconds between starts, 1 to 31622400; either this or `cron`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<Number<1, 31_622_400>>,
    /// Cron expression of five fields, in UTC; either this or `every_seconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<Text<255>>,
    /// Name of the operation, e.g. `server.reboot`.
    pub operation: Text<64>,
    /// Its input, as an object.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, Value>")]
    pub input: serde_json::Map<String, Value>,
    /// What happens with starts that were missed while the cloud was down.
    #[serde(default)]
    pub missed: MissedRuns,
}
impl Operation for CreateSchedule {
    type Output = Schedule;
    const SPEC: Spec = Spec {
        name: "schedule.create",
        method: Method::Post,
        path: "/v1/schedules",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Creates,
        summary: "Call an operation again and again",
        description: "It is called in the name of whoever made the schedule, with the roles that user then has.",
        positional: &["name"],
        columns: SCHEDULE_COLUMNS,
        examples: &[Example {
            title: "Stop a server every evening",
            command: "nephos schedule create evening --cron \"0 20 * * *\" --operation server.stop --input '{\"server\":\"web-1\"}'",
        }],
        ..Spec::DEFAULT
    };
}

/// List schedules.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListSchedules {
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ScheduleId>,
}
impl Operation for ListSchedules {
    type Output = Page<Schedule>;
    const SPEC: Spec = Spec {
        name: "schedule.list",
        method: Method::Get,
        path: "/v1/schedules",
        permission: Permission::PROJECT_READER,
        summary: "List schedules",
        columns: SCHEDULE_COLUMNS,
        examples: &[Example { title: "Those of the project", command: "nephos schedule list" }],
        ..Spec::DEFAULT
    };
}

/// Show a schedule.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowSchedule {
    /// Name or id.
    pub schedule: Reference,
}
impl Operation for ShowSchedule {
    type Output = Schedule;
    const SPEC: Spec = Spec {
        name: "schedule.show",
        method: Method::Get,
        path: "/v1/schedules/{schedule}",
        permission: Permission::PROJECT_READER,
        summary: "Show one schedule",
        positional: &["schedule"],
        columns: SCHEDULE_COLUMNS,
        examples: &[Example { title: "By name", command: "nephos schedule show evening" }],
        ..Spec::DEFAULT
    };
}

/// Delete a schedule.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteSchedule {
    /// Name or id.
    pub schedule: Reference,
}
impl Operation for DeleteSchedule {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "schedule.delete",
        method: Method::Delete,
        path: "/v1/schedules/{schedule}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Delete a schedule",
        positional: &["schedule"],
        examples: &[Example { title: "By name", command: "nephos schedule delete evening" }],
        ..Spec::DEFAULT
    };
}
