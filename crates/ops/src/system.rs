//! Operations on the cloud itself: backup, audit, events, the keys that sign tokens.

use nephos_types::{Number, ProjectId, Text, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    call::{Download, EventStream, View},
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// One change of one resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AuditEntry {
    /// Position in the total order of changes.
    pub revision: u64,
    /// When.
    pub at: Timestamp,
    /// Id of the user, or the part of the cloud, that did it.
    pub actor: String,
    /// Where the request came from.
    pub source: String,
    /// The operation or workflow.
    pub operation: String,
    /// Id of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// `create`, `update` or `delete`.
    pub change: String,
    /// Kind of the resource.
    pub kind: String,
    /// Id of the resource.
    pub id: String,
    /// Project of the resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectId>,
    /// The resource before, as stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// The resource after, as stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}
impl View for AuditEntry {}

/// A part of the audit trail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AuditTrail {
    /// The entries, oldest first.
    pub items: Vec<AuditEntry>,
    /// Pass as `after` to get what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}
impl View for AuditTrail {}

/// List who changed what.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListAudit {
    /// Only changes of this resource (its id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Text<64>>,
    /// Only changes of this kind of resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Text<64>>,
    /// Only changes after this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Number<0, 9_223_372_036_854_775_807>>,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
}
impl Operation for ListAudit {
    type Output = AuditTrail;
    const SPEC: Spec = Spec {
        name: "audit.list",
        method: Method::Get,
        path: "/v1/audit",
        permission: Permission::SYSTEM_READER,
        summary: "List who changed what, from where, with before and after",
        columns: &["revision", "at", "actor", "operation", "change", "kind", "id"],
        examples: &[Example { title: "The changes of servers", command: "nephos audit list --kind server" }],
        ..Spec::DEFAULT
    };
}

/// Follow all changes of a project's resources.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WatchEvents {
    /// Begin after this revision; with what comes from now on when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Number<0, 9_223_372_036_854_775_807>>,
    /// Only this kind of resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Text<64>>,
    /// Of all projects; needs the role admin, or reader on the system.
    #[serde(default)]
    pub all_projects: bool,
}
impl Operation for WatchEvents {
    type Output = EventStream;
    const SPEC: Spec = Spec {
        name: "event.watch",
        method: Method::Get,
        path: "/v1/events",
        permission: Permission::PROJECT_READER,
        summary: "Follow changes as they happen",
        description: "Server-sent events named `create`, `update` and `delete`, with kind, id, name and revision; resumes after `Last-Event-ID`.",
        examples: &[Example { title: "Everything in the project", command: "nephos event watch" }],
        ..Spec::DEFAULT
    };
}

/// Copy the whole cloud's state.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackUp {
    /// Leave out the images' bytes; they then have to be uploaded again after a restore.
    #[serde(default)]
    pub without_images: bool,
}
impl Operation for BackUp {
    type Output = Download;
    const SPEC: Spec = Spec {
        name: "system.backup",
        method: Method::Get,
        path: "/v1/system/backup",
        permission: Permission::SYSTEM_ADMIN,
        summary: "Copy the state of the whole cloud while it runs",
        description: "A tar archive with database, keys and images, as of one moment; it holds secrets. `nephos restore` makes a data folder of it.",
        examples: &[Example { title: "Into a file", command: "nephos system backup --file nephos-backup.tar" }],
        ..Spec::DEFAULT
    };
}

/// A key that signs tokens, or did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenKey {
    /// Its number; newer keys have greater ones.
    pub number: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// Whether new tokens are signed with it.
    pub signs: bool,
    /// Until when tokens that it signed are accepted, if another one has replaced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_until: Option<Timestamp>,
}

/// The keys whose tokens are accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenKeys {
    /// The oldest first; the last one signs.
    pub items: Vec<TokenKey>,
}
impl View for TokenKeys {}

const KEY_COLUMNS: &[&str] = &["number", "created_at", "signs", "accepted_until"];

/// Show the ages of the keys that sign tokens.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowKeys {}
impl Operation for ShowKeys {
    type Output = TokenKeys;
    const SPEC: Spec = Spec {
        name: "system.keys",
        method: Method::Get,
        path: "/v1/system/keys",
        permission: Permission::SYSTEM_READER,
        summary: "Show how old the keys are that sign tokens",
        columns: KEY_COLUMNS,
        examples: &[Example { title: "All that are accepted", command: "nephos system keys" }],
        ..Spec::DEFAULT
    };
}

/// Replace the key that signs tokens.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateKeys {
    /// End all tokens at once, this call's own included: when a key may have become known to others.
    #[serde(default)]
    pub end_sessions: bool,
}
impl Operation for RotateKeys {
    type Output = TokenKeys;
    const SPEC: Spec = Spec {
        name: "system.rotate-keys",
        method: Method::Post,
        path: "/v1/system/keys/rotate",
        permission: Permission::SYSTEM_ADMIN,
        effect: Effect::Acts,
        summary: "Replace the key that signs tokens",
        description: "Happens by itself every 30 days, or as often as the setting `rotate_keys_days` says. Tokens from before stay good until they end.",
        columns: KEY_COLUMNS,
        examples: &[
            Example { title: "Nobody is logged out", command: "nephos system rotate-keys" },
            Example { title: "Everybody is", command: "nephos system rotate-keys --end-sessions" },
        ],
        ..Spec::DEFAULT
    };
}
