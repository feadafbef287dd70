//! The messages. Additive changes only within one [`PROTOCOL_VERSION`]; unknown fields are ignored on both sides, so
//! that a newer agent works with an older control plane and the other way round.

use nephos_driver::{Capabilities, ConfigFile, DiskFormat, Interface, Observation};
use nephos_types::{Bytes, Error, ImageId, NodeId, ServerId, StreamId, Timestamp};
use serde::{Deserialize, Serialize};

/// The version spoken; the control plane also accepts the one before.
pub const PROTOCOL_VERSION: u32 = 1;

/// A machine asks to become a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enrolment {
    /// The one-time token.
    pub token: String,
    /// What the machine calls itself.
    pub name: String,
    /// PEM of a certificate signing request; the private key stays on the machine.
    pub signing_request: String,
}

/// It is one now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrolmentAnswer {
    /// The node's id.
    pub node: NodeId,
    /// PEM of the node's certificate.
    pub certificate: String,
    /// PEM of the cloud's own certificate authority.
    pub authority: String,
}

/// A node asks for a new certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Renewal {
    /// PEM of a certificate signing request; the private key stays on the machine.
    pub signing_request: String,
}

/// Ports of the node's loopback that may be used for forwards, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// What the machine has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Host name.
    pub hostname: String,
    /// Kernel release.
    pub kernel: String,
    /// CPU architecture, e.g. `x86_64`.
    pub architecture: String,
    /// CPU model.
    pub cpu_model: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Room for guests' disks.
    pub disk: Bytes,
    /// Ports for forwards.
    pub forward_ports: PortRange,
    /// What the node's compute driver can do.
    pub compute: Capabilities,
}

/// First call after each start of the agent, and again when the inventory changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Version the agent speaks.
    pub protocol: u32,
    /// The agent's version.
    pub agent_version: String,
    /// What the machine has.
    pub inventory: Inventory,
}

/// What the agent needs to know to go on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HelloAnswer {
    /// Version spoken from now on.
    pub protocol: u32,
    /// The node's id.
    pub node: NodeId,
    /// Report at least this often, in milliseconds.
    pub report_every_ms: u64,
}

/// What [`ServerState::Working`] says while a server's image is on its way.
pub const FETCHING_IMAGE: &str = "fetching image";

/// Where a server's root disk comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSource {
    /// The image; its bytes are fetched from the control plane and cached by checksum.
    pub id: ImageId,
    /// Layout.
    pub format: DiskFormat,
    /// Size of the file.
    pub size: Bytes,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// Whether a server should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "power", rename_all = "snake_case")]
pub enum WantedPower {
    /// Run it. Restart it when it crashes, if `restart`.
    On {
        /// Whether a crashed guest is started again.
        restart: bool,
    },
    /// Do not run it; ask it first and cut the power after this many milliseconds (zero: at once).
    Off {
        /// Grace.
        grace_ms: u64,
    },
    /// Remove everything of it.
    Absent,
}

/// What one server on the node should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredServer {
    /// The server.
    pub id: ServerId,
    /// Grows with each change of what is wanted; comes back in [`ServerReport::generation`] once it is so.
    pub generation: u64,
    /// Host name.
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Root disk size; zero means the image's own.
    pub disk: Bytes,
    /// Root disk content; `None` for an empty disk.
    pub image: Option<ImageSource>,
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// Configuration drive.
    pub config_drive: Vec<ConfigFile>,
    /// Whether it should run.
    pub power: WantedPower,
    /// How often it has been asked to reboot since it was made; the agent reboots when this exceeds what it has done.
    pub reboots: u64,
    /// Grace of the last reboot in milliseconds; zero resets at once.
    pub reboot_grace_ms: u64,
}

/// All that should be on the node, as of a revision. Revisions are compared for equality only: they start anew with
/// each start of the control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Ask for what comes after this.
    pub revision: u64,
    /// Every server that the node has or should have, those to be removed included. What is not listed is unknown to
    /// the control plane: it is left alone and reported as such.
    pub servers: Vec<DesiredServer>,
    /// Streams that somebody waits for.
    pub streams: Vec<StreamRequest>,
}

/// What a stream is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamPurpose {
    /// A server's serial console, both ways.
    Console {
        /// The server.
        server: ServerId,
    },
    /// The end of a server's console log, one way.
    ConsoleLog {
        /// The server.
        server: ServerId,
        /// At most this many bytes.
        max: u64,
    },
}

/// Somebody waits for a stream; the agent dials one for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRequest {
    /// Names the stream when dialling.
    pub id: StreamId,
    /// What for.
    pub purpose: StreamPurpose,
}

/// What a server is, as its node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ServerState {
    /// Work on it goes on.
    Working {
        /// What, in a few words: `fetching image`, `starting`.
        doing: String,
        /// Progress in percent, where known.
        percent: Option<u8>,
    },
    /// It exists.
    Present(Observation),
    /// Nothing of it is there.
    Gone,
    /// The node could not find out.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// Report on one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerReport {
    /// The server.
    pub id: ServerId,
    /// The generation that has been reached: the last one for which everything asked for is so.
    pub generation: u64,
    /// What is so.
    pub state: ServerState,
    /// Why the wanted generation could not be reached, if it could not. The agent keeps trying.
    pub error: Option<Error>,
    /// Restarts after crashes, since the server was made.
    pub restarts: u64,
}

/// What is so on the node. Sent on change and at least every `report_every_ms`; it also keeps the node's lease.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// When it was made; strictly increasing within one run of the agent, so that a delayed report is recognised.
    pub at: Timestamp,
    /// Whether `servers` lists all servers of the node, or only those that changed since the last report.
    pub full: bool,
    /// The servers.
    pub servers: Vec<ServerReport>,
}
