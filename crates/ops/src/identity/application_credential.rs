//! Operations on application credentials.

use nephos_types::{
    ApplicationCredentialId, List, Name, Number, Page, ProjectId, Reference, Secret, Text, Timestamp, UserId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::View,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// A secret with which a program logs in as its owner, on one project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApplicationCredential {
    /// Its id.
    pub id: ApplicationCredentialId,
    /// Its name, unique for its user.
    pub name: Name,
    /// Whose it is.
    pub user: UserId,
    /// The project it logs in to.
    pub project: ProjectId,
    /// Free text.
    pub description: String,
    /// Names of the roles it gives.
    pub roles: Vec<Name>,
    /// May make and delete credentials itself.
    pub unrestricted: bool,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}
impl View for ApplicationCredential {}

/// A new application credential. Its secret is shown here and never again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewApplicationCredential {
    /// The credential.
    #[serde(flatten)]
    pub credential: ApplicationCredential,
    /// Its secret.
    pub secret: Secret,
}
impl View for NewApplicationCredential {}

const COLUMNS: &[&str] = &["name", "project", "roles", "expires_at", "id"];

/// Make an application credential.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateApplicationCredential {
    /// Name, unique among yours.
    pub name: Name,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text<1024>>,
    /// The secret; a generated one, which is better, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// Names or ids of roles out of those you have on the project; all of them when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<List<Reference, 32>>,
    /// When it ends, as RFC 3339; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// May make and delete credentials itself. Dangerous: whoever gets hold of it can stay.
    #[serde(default)]
    pub unrestricted: bool,
}
impl Operation for CreateApplicationCredential {
    type Output = NewApplicationCredential;
    const SPEC: Spec = Spec {
        name: "application-credential.create",
        method: Method::Post,
        path: "/v1/application-credentials",
        permission: Permission::LOGGED_IN,
        effect: Effect::Creates,
        summary: "Make a secret with which a program logs in as you, on this project",
        description: "It gives no more than you have, and is void as soon as you lose one of its roles.",
        positional: &["name"],
        columns: COLUMNS,
        examples: &[Example { title: "That may look", command: "nephos application-credential create backup" }],
        ..Spec::DEFAULT
    };
}

/// List application credentials.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListApplicationCredentials {
    /// Whose, by name or id; yours when absent. Others' need the role admin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Reference>,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ApplicationCredentialId>,
}
impl Operation for ListApplicationCredentials {
    type Output = Page<ApplicationCredential>;
    const SPEC: Spec = Spec {
        name: "application-credential.list",
        method: Method::Get,
        path: "/v1/application-credentials",
        permission: Permission::LOGGED_IN,
        summary: "List your application credentials",
        columns: COLUMNS,
        examples: &[Example { title: "All of yours", command: "nephos application-credential list" }],
        ..Spec::DEFAULT
    };
}

/// Show an application credential.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowApplicationCredential {
    /// Name or id.
    pub credential: Reference,
    /// Whose, by name or id; yours when absent. Others' need the role admin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Reference>,
}
impl Operation for ShowApplicationCredential {
    type Output = ApplicationCredential;
    const SPEC: Spec = Spec {
        name: "application-credential.show",
        method: Method::Get,
        path: "/v1/application-credentials/{credential}",
        permission: Permission::LOGGED_IN,
        summary: "Show one application credential, without its secret",
        positional: &["credential"],
        columns: COLUMNS,
        examples: &[Example { title: "By name", command: "nephos application-credential show backup" }],
        ..Spec::DEFAULT
    };
}

/// Delete an application credential.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteApplicationCredential {
    /// Name or id.
    pub credential: Reference,
    /// Whose, by name or id; yours when absent. Others' need the role admin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Reference>,
}
impl Operation for DeleteApplicationCredential {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "application-credential.delete",
        method: Method::Delete,
        path: "/v1/application-credentials/{credential}",
        permission: Permission::LOGGED_IN,
        effect: Effect::Changes,
        summary: "Delete an application credential; its tokens end with it",
        positional: &["credential"],
        examples: &[Example { title: "By name", command: "nephos application-credential delete backup" }],
        ..Spec::DEFAULT
    };
}
