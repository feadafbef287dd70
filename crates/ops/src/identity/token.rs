//! Operations on tokens: logging in and out.

use nephos_types::{Reference, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::{Identity, View},
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// A token, shown once, and what it is good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewToken {
    /// Send it as `Authorization: Bearer TOKEN`.
    pub token: Secret,
    /// Who it stands for, and what it is good for.
    pub identity: Identity,
}
impl View for NewToken {}

impl View for Identity {}

/// Log in.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Name or id of the user, with `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Reference>,
    /// Name or id of the domain in which to look for the user's name; `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_domain: Option<Reference>,
    /// The user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Id of an application credential (or its name, together with `user`), with `secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_credential: Option<Reference>,
    /// The application credential's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// An existing token, to get one for another scope; ends when that one would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// Scope: name or id of a project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Reference>,
    /// Name or id of the domain in which to look for the project's name; the user's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_domain: Option<Reference>,
    /// Scope: name or id of a domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Reference>,
    /// Scope: the cloud as a whole.
    #[serde(default)]
    pub system: bool,
    /// No scope: good only for asking for another token.
    #[serde(default)]
    pub unscoped: bool,
}
impl Operation for CreateToken {
    type Output = NewToken;
    const SPEC: Spec = Spec {
        name: "token.create",
        method: Method::Post,
        path: "/v1/tokens",
        permission: Permission::ANYONE,
        summary: "Log in: get a token",
        description: "By user and password, by application credential, or by another token. Without a scope the token is for the user's default project, or for the only one there is, or for none.",
        examples: &[Example {
            title: "To a project",
            command: "nephos token create --user admin --password $OS_PASSWORD --project demo",
        }],
        ..Spec::DEFAULT
    };
}

/// Look at a token.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowToken {
    /// The token; the one this request is made with when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}
impl Operation for ShowToken {
    type Output = Identity;
    const SPEC: Spec = Spec {
        name: "token.show",
        method: Method::Post,
        path: "/v1/tokens/show",
        permission: Permission::LOGGED_IN,
        summary: "Show whose a token is, and what it is good for",
        description: "Other people's tokens need the role admin or service, or reader on the system.",
        examples: &[Example { title: "The one in use", command: "nephos token show" }],
        ..Spec::DEFAULT
    };
}

/// End a token.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeToken {
    /// The token; the one this request is made with when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}
impl Operation for RevokeToken {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "token.revoke",
        method: Method::Post,
        path: "/v1/tokens/revoke",
        permission: Permission::LOGGED_IN,
        effect: Effect::Changes,
        summary: "End a token before its time",
        description: "Other people's tokens need the role admin.",
        examples: &[Example { title: "Log out", command: "nephos token revoke" }],
        ..Spec::DEFAULT
    };
}
