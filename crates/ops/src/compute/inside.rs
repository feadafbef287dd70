//! Operations on the inside of servers, through the agent in a virtual machine or directly in a container, and a look at
//! their screens.

use std::collections::BTreeMap;

use nephos_types::{Bytes, List, Number, Reference, Secret, Text};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::{Download, View},
    image::Properties,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// The longest argument, in characters.
pub const MAX_ARGUMENT: usize = 131_072;
/// The most that a program reads, in characters; what is longer is pushed as a file.
pub const MAX_INPUT: usize = 131_072;
/// The longest path.
pub const MAX_PATH: usize = 4096;

/// What most of these operations have in common. Nobody but a project's members: what is inside is theirs.
const INSIDE: Spec = Spec {
    method: Method::Post,
    permission: Permission::PROJECT_MEMBER,
    effect: Effect::Changes,
    positional: &["server"],
    ..Spec::DEFAULT
};

/// How bytes are written as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// As UTF-8; what is not valid is replaced.
    #[default]
    Text,
    /// In base64.
    Base64,
}

/// Run a program in a server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecuteCommand {
    /// Name or id.
    pub server: Reference,
    /// The program and its arguments; no shell is in between.
    pub command: List<Text<MAX_ARGUMENT>, 1024>,
    /// Environment variables; those of the server's own are kept where none is given.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub environment: Properties,
    /// What it reads from its standard input, encoded as `encoding` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Text<MAX_INPUT>>,
    /// How `input`, `stdout` and `stderr` are encoded.
    #[serde(default)]
    pub encoding: Encoding,
    /// Seconds after which it is ended, at most 3600; 60 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_seconds: Option<Number<1, 3600>>,
    /// At most this many bytes of each output, up to 16 MiB; 1 MiB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_bytes: Option<Number<0, 16_777_216>>,
}

/// How a program in a server ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommandResult {
    /// Its exit code; absent if a signal or the time limit ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it did not end in time. Its output is lost then.
    pub timed_out: bool,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
    /// How they are encoded.
    pub encoding: Encoding,
    /// Whether it wrote more than is shown.
    pub truncated: bool,
}
impl View for CommandResult {}

impl Operation for ExecuteCommand {
    type Output = CommandResult;
    const SPEC: Spec = Spec {
        name: "server.exec",
        path: "/v1/servers/{server}/exec",
        effect: Effect::Acts,
        summary: "Run a program in a running server, as root",
        description: "Needs qemu-guest-agent in a virtual machine, nothing in a container. The command line's exit code \
            is the program's; 124 if it did not end in time.",
        positional: &["server", "command"],
        columns: &["exit_code", "signal", "timed_out", "truncated", "stdout", "stderr"],
        examples: &[
            Example { title: "A program with arguments", command: "nephos server exec web-1 -- uname -a" },
            Example { title: "A line for the shell", command: "nephos server exec web-1 -- sh -c 'df -h | tail -n 1'" },
            Example { title: "With input", command: "nephos server exec web-1 --input Welcome -- tee /etc/motd" },
        ],
        ..INSIDE
    };
}

/// Write a file in a server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PushFile {
    /// Name or id.
    pub server: Reference,
    /// Where it goes: an absolute path in a folder that exists.
    pub path: Text<MAX_PATH>,
    /// Its permissions in octal, e.g. `0600`; as the server sees fit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Text<5>>,
}

/// A file that was written in a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PushedFile {
    /// Where it is.
    pub path: String,
    /// Its size in bytes.
    pub size: Bytes,
    /// SHA-256 of what was written, in hexadecimal.
    pub sha256: String,
}
impl View for PushedFile {}

impl Operation for PushFile {
    type Output = PushedFile;
    const SPEC: Spec = Spec {
        name: "server.push",
        method: Method::Put,
        path: "/v1/servers/{server}/file",
        summary: "Write a file in a running server",
        description: "The request's body is the file's content. It is written as it comes, however large, in the place of \
            what was there; if it breaks off, the file in the server is not whole.",
        positional: &["server", "path"],
        columns: &["path", "size", "sha256"],
        examples: &[
            Example { title: "A file", command: "nephos server push web-1 /etc/motd --file motd" },
            Example {
                title: "From a pipe, readable by root only",
                command: "nephos server push web-1 /root/key --mode 0600 --file -",
            },
        ],
        upload: true,
        ..INSIDE
    };
}

/// Read a file of a server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PullFile {
    /// Name or id.
    pub server: Reference,
    /// Which: an absolute path.
    pub path: Text<MAX_PATH>,
}
impl Operation for PullFile {
    type Output = Download;
    const SPEC: Spec = Spec {
        name: "server.pull",
        method: Method::Get,
        path: "/v1/servers/{server}/file",
        effect: Effect::Reads,
        summary: "Read a file of a running server",
        description: "The file's content comes as it is read, however large.",
        positional: &["server", "path"],
        examples: &[
            Example { title: "To a file", command: "nephos server pull web-1 /var/log/syslog --file syslog" },
            Example { title: "To the terminal", command: "nephos server pull web-1 /etc/os-release --file -" },
        ],
        ..INSIDE
    };
}

/// Give a user of a server a new password.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetServerPassword {
    /// Name or id.
    pub server: Reference,
    /// The user in the server; `root` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text<32>>,
    /// The new password; a generated one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
}

/// A password that was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServerPassword {
    /// The user in the server.
    pub user: String,
    /// The password, if it was generated. It is shown here and nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
}
impl View for ServerPassword {}

impl Operation for ResetServerPassword {
    type Output = ServerPassword;
    const SPEC: Spec = Spec {
        name: "server.reset-password",
        path: "/v1/servers/{server}/reset-password",
        effect: Effect::Acts,
        summary: "Give a user of a running server a new password",
        description: "A generated password is shown once. The cloud keeps none.",
        columns: &["user", "password"],
        examples: &[
            Example { title: "A generated one for root", command: "nephos server reset-password web-1" },
            Example {
                title: "A generated one for another user",
                command: "nephos server reset-password web-1 --user debian",
            },
        ],
        ..INSIDE
    };
}

/// Replace the SSH keys of a user of a server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetServerKeys {
    /// Name or id.
    pub server: Reference,
    /// The key pairs that are let in from now on, and no others: at least one name or id.
    pub keypairs: List<Reference, 64>,
    /// The user in the server; `root` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text<32>>,
}
impl Operation for ResetServerKeys {
    type Output = ();
    const SPEC: Spec = Spec {
        name: "server.reset-keys",
        path: "/v1/servers/{server}/reset-keys",
        summary: "Replace the SSH keys of a user of a running server",
        examples: &[Example {
            title: "Let two keys in as root",
            command: "nephos server reset-keys web-1 --keypair laptop --keypair desktop",
        }],
        ..INSIDE
    };
}

/// Ask a server who and what it is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowGuest {
    /// Name or id.
    pub server: Reference,
}

/// What a server says of itself. It may say anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Guest {
    /// Its host name.
    pub host_name: Option<String>,
    /// Its operating system.
    pub system: Option<String>,
    /// Its kernel's release.
    pub kernel: Option<String>,
    /// Version of the agent inside; absent in a container.
    pub agent: Option<String>,
    /// Its network interfaces' IP addresses, by the interface's name.
    pub addresses: BTreeMap<String, Vec<String>>,
    /// Its network interfaces.
    pub interfaces: Vec<GuestInterface>,
    /// Its mounted file systems.
    pub file_systems: Vec<GuestFileSystem>,
}
impl View for Guest {}

/// A network interface as the server sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestInterface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: Option<String>,
    /// Its IP addresses.
    pub addresses: Vec<String>,
}

/// A mounted file system as the server sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestFileSystem {
    /// Where it is mounted.
    pub mount: String,
    /// Its type, e.g. `ext4`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Its size in bytes.
    pub size: Option<Bytes>,
    /// How much of it is used, in bytes.
    pub used: Option<Bytes>,
}

impl Operation for ShowGuest {
    type Output = Guest;
    const SPEC: Spec = Spec {
        name: "server.guest",
        method: Method::Get,
        path: "/v1/servers/{server}/guest",
        effect: Effect::Reads,
        summary: "Ask a running server for its system, addresses and file systems",
        columns: &["host_name", "system", "kernel", "agent", "addresses", "file_systems"],
        examples: &[Example { title: "By name", command: "nephos server guest web-1" }],
        ..INSIDE
    };
}

/// A picture of a server's screen.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TakeScreenshot {
    /// Name or id.
    pub server: Reference,
}
impl Operation for TakeScreenshot {
    type Output = Download;
    const SPEC: Spec = Spec {
        name: "server.screenshot",
        method: Method::Get,
        path: "/v1/servers/{server}/screenshot",
        effect: Effect::Reads,
        summary: "A picture of a running server's screen, as PNG",
        examples: &[Example { title: "Into a file", command: "nephos server screenshot web-1 --file web-1.png" }],
        ..INSIDE
    };
}
