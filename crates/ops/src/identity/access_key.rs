//! Operations on access keys: EC2-style key pairs that sign requests.

use nephos_types::{AccessKeyId, Number, Page, ProjectId, Reference, Secret, Text, Timestamp, UserId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// A key pair with which EC2 and S3 clients sign requests as its owner, on one project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccessKey {
    /// Its id: the access key itself.
    pub id: AccessKeyId,
    /// Whose it is.
    pub user: UserId,
    /// The project it works in.
    pub project: ProjectId,
    /// Free text.
    pub description: String,
    /// When it was made.
    pub created_at: Timestamp,
}
impl View for AccessKey {}

/// A new access key. Its secret is shown here and never again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewAccessKey {
    /// The key.
    #[serde(flatten)]
    pub key: AccessKey,
    /// Its secret half.
    pub secret: Secret,
}
impl View for NewAccessKey {}

const COLUMNS: &[&str] = &["id", "project", "description", "created_at"];

/// Make an access key.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAccessKey {
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<1024>>,
}
impl Operation for CreateAccessKey {
    type Output = NewAccessKey;
    const SPEC: Spec = Spec {
        name: "access-key.create",
        method: Method::Post,
        path: "/v1/access-keys",
        permission: Permission::LOGGED_IN,
        effect: Effect::Creates,
        summary: "Make a key pair for EC2 and S3 clients, for this project",
        columns: COLUMNS,
        examples: &[Example { title: "With a note", command: "nephos access-key create --description laptop" }],
        ..Spec::DEFAULT
    };
}

/// List access keys.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListAccessKeys {
    /// Whose, by name or id; yours when absent. Others' need the role admin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Reference>,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<AccessKeyId>,
}
impl Operation for ListAccessKeys {
    type Output = Page<AccessKey>;
    const SPEC: Spec = Spec {
        name: "access-key.list",
        method: Method::Get,
        path: "/v1/access-keys",
        permission: Permission::LOGGED_IN,
        summary: "List your access keys",
        columns: COLUMNS,
        examples: &[Example { title: "All of yours", command: "nephos access-key list" }],
        ..Spec::DEFAULT
    };
}

/// Show an access key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowAccessKey {
    /// The access key.
    pub key: AccessKeyId,
}
impl Operation for ShowAccessKey {
    type Output = AccessKey;
    const SPEC: Spec = Spec {
        name: "access-key.show",
        method: Method::Get,
        path: "/v1/access-keys/{key}",
        permission: Permission::LOGGED_IN,
        summary: "Show one access key, without its secret",
        positional: &["key"],
        columns: COLUMNS,
        examples: &[Example { title: "By id", command: "nephos access-key show key-01hzx3k7q9m2c" }],
        ..Spec::DEFAULT
    };
}

/// Delete an access key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteAccessKey {
    /// The access key.
    pub key: AccessKeyId,
}
impl Operation for DeleteAccessKey {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "access-key.delete",
        method: Method::Delete,
        path: "/v1/access-keys/{key}",
        permission: Permission::LOGGED_IN,
        effect: Effect::Changes,
        summary: "Delete an access key",
        positional: &["key"],
        examples: &[Example { title: "By id", command: "nephos access-key delete key-01hzx3k7q9m2c" }],
        ..Spec::DEFAULT
    };
}
