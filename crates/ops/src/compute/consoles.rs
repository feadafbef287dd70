//! Screens and consoles: directly with a login, or by a URL that needs none.

use nephos_types::{Number, Reference, Secret, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::{Tunnel, View},
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// Open a server's screen.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenDisplay {
    /// Name or id.
    pub server: Reference,
}
impl Operation for OpenDisplay {
    type Output = Tunnel;
    const SPEC: Spec = Spec {
        name: "server.display",
        method: Method::Get,
        path: "/v1/servers/{server}/display",
        permission: Permission::PROJECT_MEMBER,
        summary: "Open the screen of a server: VNC (RFC 6143) as it is, in binary frames",
        positional: &["server"],
        examples: &[Example { title: "By name, for programs", command: "nephos server display web-1" }],
        ..Spec::DEFAULT
    };
}

/// What of a server a URL leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleKind {
    /// Its serial console: what it writes and reads, as it is.
    #[default]
    Serial,
    /// Its screen: VNC (RFC 6143) as it is, as noVNC speaks it.
    Vnc,
}

/// Make a URL that leads to a server's console.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MakeConsoleUrl {
    /// Name or id.
    pub server: Reference,
    /// Which console.
    #[serde(default)]
    pub kind: ConsoleKind,
    /// Seconds within which a connection must begin, at most 3600; 300 when absent. One that has begun goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_seconds: Option<Number<1, 3600>>,
}

/// A URL that leads to a server's console. Whoever has it can use the console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConsoleUrl {
    /// For a WebSocket client: binary frames, and the subprotocol `binary` if it asks for one.
    pub url: String,
    /// The same without the cloud's address, for whoever reaches it by another one.
    pub path: String,
    /// What it leads to.
    pub kind: ConsoleKind,
    /// When connections can no longer begin.
    pub expires_at: Timestamp,
}
impl View for ConsoleUrl {}

impl Operation for MakeConsoleUrl {
    type Output = ConsoleUrl;
    const SPEC: Spec = Spec {
        name: "server.console-url",
        method: Method::Post,
        path: "/v1/servers/{server}/console-url",
        permission: Permission::PROJECT_MEMBER,
        summary: "Make a short-lived URL for a server's serial console or screen",
        description: "Whoever has the URL can use that console of that server, without logging in, by any WebSocket \
            client such as noVNC. It ends when it expires, when the server is deleted, when its URLs are revoked \
            (`server.revoke-consoles`), and when the login or the rights of whoever made it end.",
        positional: &["server"],
        columns: &["kind", "expires_at", "url"],
        examples: &[
            Example { title: "The serial console", command: "nephos server console-url web-1" },
            Example {
                title: "The screen, for a minute",
                command: "nephos server console-url web-1 --kind vnc --valid-seconds 60",
            },
        ],
        ..Spec::DEFAULT
    };
}

/// End all console URLs of a server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeConsoles {
    /// Name or id.
    pub server: Reference,
}
impl Operation for RevokeConsoles {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "server.revoke-consoles",
        method: Method::Post,
        path: "/v1/servers/{server}/revoke-consoles",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "End all console URLs of a server, and the connections made with them",
        positional: &["server"],
        examples: &[Example { title: "By name", command: "nephos server revoke-consoles web-1" }],
        ..Spec::DEFAULT
    };
}

/// Open the console that a URL leads to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenConsoleUrl {
    /// The last part of the URL.
    pub token: Secret,
}
impl Operation for OpenConsoleUrl {
    type Output = Tunnel;
    const SPEC: Spec = Spec {
        name: "console.open",
        method: Method::Get,
        path: "/v1/consoles/{token}",
        permission: Permission::ANYONE,
        summary: "Open the console that a URL of `server.console-url` leads to",
        description: "Ctrl-] leaves.",
        positional: &["token"],
        examples: &[Example { title: "A serial console", command: "nephos console open $TOKEN" }],
        ..Spec::DEFAULT
    };
}
