//! Operations on servers.

use std::collections::BTreeSet;

use nephos_types::{
    Error, FlavorId, ImageId, Labels, List, Name, NetworkId, NodeId, Number, Page, PortId, ProjectId, Reference,
    ServerGroupId, ServerId, Text, Timestamp, WorkflowId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::{Download, Started, Tunnel, View},
    image::Properties,
    network::Host,
    operation::{Effect, Example, Method, Operation, Permission, Spec},
};

/// What a server is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// It is being created.
    Building,
    /// It runs.
    Active,
    /// It does not run, as wanted.
    Stopped,
    /// It stands still, in memory.
    Paused,
    /// Its memory is saved on the disk of its node; it goes on from there.
    Suspended,
    /// It runs from a rescue image.
    Rescued,
    /// It is put away as an image, and on no node.
    Shelved,
    /// It is deleted, and can be restored for a while.
    Trashed,
    /// It could not be made or started; `fault` says why.
    Error,
    /// It is being deleted.
    Deleting,
    /// Its node is not heard of, so nobody can say.
    Unknown,
}

/// Transport protocol of a forwarded port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A port of the node's loopback that leads to a port of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Forward {
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the server.
    pub port: u16,
    /// Port on 127.0.0.1 of the server's node.
    pub node_port: u16,
}

/// Why a server is in the state `error`, or what last went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fault {
    /// A stable word.
    pub code: String,
    /// A sentence.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

impl Fault {
    /// From the error that caused it.
    #[must_use]
    pub fn of(error: &Error, at: Timestamp) -> Self {
        Self { code: error.code.to_string(), message: error.to_string(), at }
    }
}

/// A resize that is to be confirmed or reverted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PendingResize {
    /// The flavor that the server had before.
    pub old_flavor: FlavorId,
    /// That flavor's name.
    pub old_flavor_name: Name,
    /// The node on which it was before, if it is on another one now; room is kept for it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_node: Option<NodeId>,
    /// When it confirms itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirms_at: Option<Timestamp>,
}

/// A file that a server finds at its first boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Personality {
    /// Absolute path, at most 255 bytes.
    pub path: Text<255>,
    /// Content as text.
    pub content: Text<16384>,
}

/// An address of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServerAddress {
    /// The network that it is of.
    pub network: NetworkId,
    /// That network's name.
    pub network_name: Name,
    /// The port that has it.
    pub port: PortId,
    /// The address.
    pub address: Host,
}

/// A virtual machine or container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Server {
    /// Its id.
    pub id: ServerId,
    /// Its name, unique in the project.
    pub name: Name,
    /// The project that owns it.
    pub project: ProjectId,
    /// What it is.
    pub state: ServerState,
    /// What is being done to it: `create`, `start`, `resize`, `delete`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The workflow that does it, or the last one that did something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowId>,
    /// The flavor it was made from; the flavor may be gone.
    pub flavor: FlavorId,
    /// The name of that flavor at that time.
    pub flavor_name: Name,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Root disk in GiB; 0 means the image's own size.
    pub disk_gib: u64,
    /// The image its root disk was made from; the image may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
    /// Name of the key pair it was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keypair: Option<Name>,
    /// The node it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The name of that node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<Name>,
    /// The availability zone that it asked for; without one it may be in any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// The server group that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<ServerGroupId>,
    /// Ports of the node that lead to the server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<Forward>,
    /// Its addresses, in the order of its ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<ServerAddress>,
    /// How often it was restarted after a crash.
    pub restarts: u64,
    /// What runs it on its node: `qemu`, `container`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// Whether it cannot be deleted.
    #[serde(default)]
    pub protected: bool,
    /// Whether it cannot be changed, except by an administrator.
    #[serde(default)]
    pub locked: bool,
    /// Why it is locked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_reason: Option<String>,
    /// A resize that is to be confirmed or reverted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<PendingResize>,
    /// The image that it is rescued from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescue_image: Option<ImageId>,
    /// Until when it can be restored from the trash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trashed_until: Option<Timestamp>,
    /// Words to find it by.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// What its owner notes about it; also on the server's configuration drive (`meta` in NoCloud's meta-data).
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub metadata: Properties,
    /// What last went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}
impl View for Server {}

pub(super) const SERVER_COLUMNS: &[&str] = &["name", "state", "task", "flavor_name", "node_name", "created_at", "id"];

fn yes() -> bool {
    true
}

/// Create a server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateServer {
    /// Name, unique in the project; also the host name.
    pub name: Name,
    /// Name or id of the image for the root disk.
    pub image: Reference,
    /// Name or id of the flavor.
    pub flavor: Reference,
    /// Name or id of one of your key pairs, for logging in by SSH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keypair: Option<Reference>,
    /// The availability zone to be in; any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// Name or id of the server group to belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Reference>,
    /// Networks to be on, by name or id; the project's own one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<List<Reference, 8>>,
    /// Ports to be connected by, by name or id.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub port: List<Reference, 8>,
    /// Security groups of its new ports; `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_group: Option<List<Reference, 16>>,
    /// TCP ports of it that its node's loopback leads to, at most 16.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub forward: List<Number<1, 65535>, 16>,
    /// User data for its first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<Text<65535>>,
    /// Files that its first-boot software writes, at most 10.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub files: List<Personality, 10>,
    /// What its owner notes about it; also on its configuration drive.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub metadata: Properties,
    /// Words to find it by, at most 50.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub tags: List<Text<60>, 50>,
    /// Whether it cannot be deleted.
    #[serde(default)]
    pub protected: bool,
    /// Whether a crashed server is started again.
    #[serde(default = "yes")]
    pub restart: bool,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
}
impl Operation for CreateServer {
    type Output = Started<Server>;
    const SPEC: Spec = Spec {
        name: "server.create",
        method: Method::Post,
        path: "/v1/servers",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Creates,
        summary: "Create a server and start it",
        description: "Finds a node with room, brings the image there, and boots.",
        positional: &["name"],
        seldom: &["files", "metadata", "protected", "restart"],
        columns: SERVER_COLUMNS,
        examples: &[
            Example { title: "A small server", command: "nephos server create web-1 --image micro --flavor small" },
            Example {
                title: "One that is reached by SSH",
                command: "nephos server create web-2 --image micro --flavor small --keypair laptop --forward 22",
            },
            Example {
                title: "In a zone, and apart from the others of a group",
                command: "nephos server create db-1 --image micro --flavor small --zone rack1 --group databases",
            },
            Example {
                title: "Without waiting for it",
                command: "nephos server create web-3 --image micro --flavor small --label team=blue --no-wait",
            },
        ],
        ..Spec::DEFAULT
    };
}

/// List servers.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListServers {
    /// Only those on this node (name or id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// Only those with this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Only those with all these labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Of all projects; needs the role admin, or reader on the system.
    #[serde(default)]
    pub all_projects: bool,
    /// At most this many, 1 to 1000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ServerId>,
}
impl Operation for ListServers {
    type Output = Page<Server>;
    const SPEC: Spec = Spec {
        name: "server.list",
        method: Method::Get,
        path: "/v1/servers",
        permission: Permission::PROJECT_READER,
        summary: "List servers, oldest first",
        columns: SERVER_COLUMNS,
        examples: &[
            Example { title: "Those of the project", command: "nephos server list" },
            Example { title: "Those with a label, as JSON", command: "nephos server list --labels team=blue -o json" },
        ],
        ..Spec::DEFAULT
    };
}

macro_rules! server_operation {
    ($(#[$doc:meta])* $type:ident => $output:ty, { $($spec:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $type {
            /// Name or id.
            pub server: Reference,
        }
        impl Operation for $type {
            type Output = $output;
            const SPEC: Spec = Spec { positional: &["server"], columns: SERVER_COLUMNS, $($spec)* ..Spec::DEFAULT };
        }
    };
}

server_operation! {
    /// Show a server.
    ShowServer => Server, {
        name: "server.show",
        method: Method::Get,
        path: "/v1/servers/{server}",
        permission: Permission::PROJECT_READER,
        summary: "Show one server",
        examples: &[Example { title: "By name", command: "nephos server show web-1" }],
    }
}

/// Delete a server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteServer {
    /// Name or id.
    pub server: Reference,
    /// For good, even if the cloud or `keep_hours` says that deleted servers are kept in the trash.
    #[serde(default)]
    pub now: bool,
    /// Keep it in the trash for so many hours, at most 8760, instead of what the cloud says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_hours: Option<Number<1, 8760>>,
}
impl Operation for DeleteServer {
    type Output = Started<Server>;
    const SPEC: Spec = Spec {
        name: "server.delete",
        method: Method::Delete,
        path: "/v1/servers/{server}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Delete a server and its root disk",
        description: "Also ends a creation that still goes on. A server in the trash is stopped, keeps its name, quota and \
            place, and can be restored.",
        positional: &["server"],
        columns: SERVER_COLUMNS,
        examples: &[
            Example { title: "By name", command: "nephos server delete web-1" },
            Example { title: "Restorable for a day", command: "nephos server delete web-1 --keep-hours 24" },
        ],
        ..Spec::DEFAULT
    };
}

server_operation! {
    /// Start a server.
    StartServer => Started<Server>, {
        name: "server.start",
        method: Method::Post,
        path: "/v1/servers/{server}/start",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Start a stopped server",
        examples: &[Example { title: "By name", command: "nephos server start web-1" }],
    }
}

server_operation! {
    /// Open a server's serial console.
    OpenConsole => Tunnel, {
        name: "server.console",
        method: Method::Get,
        path: "/v1/servers/{server}/console",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Reads,
        summary: "Open the serial console of a server",
        description: "Ctrl-] leaves.",
        examples: &[Example { title: "By name", command: "nephos server console web-1" }],
    }
}

/// Change what a server is called and noted as.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateServer {
    /// Name or id.
    pub server: Reference,
    /// A new name, unique in the project. The host name inside stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// New labels, instead of all old ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// Whether it cannot be deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
    /// New notes, instead of all old ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Properties>,
    /// New tags, instead of all old ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<List<Text<60>, 50>>,
}
impl Operation for UpdateServer {
    type Output = Server;
    const SPEC: Spec = Spec {
        name: "server.update",
        method: Method::Patch,
        path: "/v1/servers/{server}",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Change a server's name, labels, notes, tags or protection",
        positional: &["server"],
        columns: SERVER_COLUMNS,
        examples: &[Example { title: "Another name", command: "nephos server update web-1 --name web-old" }],
        ..Spec::DEFAULT
    };
}

/// Stop a server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StopServer {
    /// Name or id.
    pub server: Reference,
    /// Cut the power at once instead of asking the server first.
    #[serde(default)]
    pub hard: bool,
    /// Seconds that the server gets to shut down before its power is cut, at most 3600; 60 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<Number<0, 3600>>,
}
impl Operation for StopServer {
    type Output = Started<Server>;
    const SPEC: Spec = Spec {
        name: "server.stop",
        method: Method::Post,
        path: "/v1/servers/{server}/stop",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Stop a running server",
        description: "Asks it to shut down, and cuts the power if it does not in time.",
        positional: &["server"],
        columns: SERVER_COLUMNS,
        examples: &[
            Example { title: "Ask first", command: "nephos server stop web-1" },
            Example { title: "At once", command: "nephos server stop web-1 --hard" },
        ],
        ..Spec::DEFAULT
    };
}

/// Restart a server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RebootServer {
    /// Name or id.
    pub server: Reference,
    /// Reset at once instead of asking the server first.
    #[serde(default)]
    pub hard: bool,
}
impl Operation for RebootServer {
    type Output = Started<Server>;
    const SPEC: Spec = Spec {
        name: "server.reboot",
        method: Method::Post,
        path: "/v1/servers/{server}/reboot",
        permission: Permission::PROJECT_MEMBER,
        effect: Effect::Changes,
        summary: "Restart a running server",
        positional: &["server"],
        columns: SERVER_COLUMNS,
        examples: &[
            Example { title: "Ask first", command: "nephos server reboot web-1" },
            Example { title: "Reset", command: "nephos server reboot web-1 --hard" },
        ],
        ..Spec::DEFAULT
    };
}

/// Read what a server wrote to its serial console.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadConsoleLog {
    /// Name or id.
    pub server: Reference,
    /// At most this many bytes from the end, up to 1048576; 65536 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Number<1, 1_048_576>>,
}
impl Operation for ReadConsoleLog {
    type Output = Download;
    const SPEC: Spec = Spec {
        name: "server.console-log",
        method: Method::Get,
        path: "/v1/servers/{server}/console-log",
        permission: Permission::PROJECT_READER,
        summary: "Read what a server wrote to its serial console",
        positional: &["server"],
        examples: &[Example { title: "The last lines", command: "nephos server console-log web-1" }],
        ..Spec::DEFAULT
    };
}
