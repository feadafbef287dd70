//! The messages. Additive changes only within one [`PROTOCOL_VERSION`]; unknown fields are ignored on both sides, so
//! that a newer agent works with an older control plane and the other way round.

use nephos_driver::{
    Capabilities, ConfigFile, DiskFormat, Firmware, MissingDriver, Observation, PortForward, Usage,
    network::{NetworkCapabilities, NetworkPlan},
};
use nephos_types::{Bytes, Error, ImageId, MacAddress, NodeId, PortId, ServerId, StreamId, Timestamp};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{hardware::Hardware, metadata::ServerMetadata};

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
    /// What the node's compute drivers can do; the first one is for servers that name none.
    #[serde(deserialize_with = "one_or_many")]
    pub compute: Vec<Capabilities>,
    /// Drivers that it would have besides.
    #[serde(default)]
    pub missing: Vec<MissingDriver>,
    /// What it is made of.
    #[serde(default)]
    pub hardware: Hardware,
    /// What it can do about networks; `None`: servers have user-mode networking only.
    #[serde(default)]
    pub network: Option<NetworkCapabilities>,
}

/// A node used to have one driver.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Capabilities>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        Many(Vec<Capabilities>),
        One(Box<Capabilities>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::Many(many) => many,
        OneOrMany::One(one) => vec![*one],
    })
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
    /// SHA-256 of the program that the agent is, in hexadecimal, if it can take up another one.
    #[serde(default)]
    pub program: Option<String>,
}

/// A program that an agent should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentProgram {
    /// SHA-256 of its file, in hexadecimal.
    pub sha256: String,
    /// Size of its file.
    pub size: Bytes,
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
    /// Measure what running servers use this often, in milliseconds, and keep it for [`StreamPurpose::Usage`]; zero: not
    /// at all.
    #[serde(default)]
    pub usage_every_ms: u64,
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
    /// Let it stand still in memory. What is off is left off.
    Paused,
    /// Save its memory to the disk and end its process. What is off is left off.
    Suspended,
    /// Remove everything of it.
    Absent,
}

/// One network interface of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WantedInterface {
    /// User-mode networking, see [`nephos_driver::Interface::User`].
    User {
        /// MAC address.
        mac: String,
        /// Ports of the node that lead to the server.
        forwards: Vec<PortForward>,
    },
    /// A port of a network; [`Desired::networks`] says what it is.
    Port {
        /// The port.
        port: PortId,
        /// MAC address.
        mac: MacAddress,
        /// Largest packet in bytes.
        mtu: u32,
    },
}

/// Where a server boots from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum BootSource {
    /// Its root disk.
    #[default]
    Disk,
    /// A Linux kernel that is loaded directly.
    Kernel {
        /// The kernel.
        kernel: ImageSource,
        /// Its first root file system.
        initrd: Option<ImageSource>,
        /// Its command line.
        command_line: String,
    },
}

/// A copy of a server's root disk that is to be made and sent to the control plane as an image's content. Made once,
/// however often it is asked for; no part of what a generation counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTask {
    /// The image that it becomes.
    pub image: ImageId,
    /// Ask the guest to hold its file systems still meanwhile, if it can be asked.
    pub freeze: bool,
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
    pub interfaces: Vec<WantedInterface>,
    /// Configuration drive.
    pub config_drive: Vec<ConfigFile>,
    /// Whether it should run.
    pub power: WantedPower,
    /// How often it has been asked to reboot since it was made; the agent reboots when this exceeds what it has done.
    pub reboots: u64,
    /// Grace of the last reboot in milliseconds; zero resets at once.
    pub reboot_grace_ms: u64,
    /// Name of the driver that runs it; empty for the node's first one.
    #[serde(default)]
    pub driver: String,
    /// Another number means another disk, made anew from `image`. Changes only while the server is off.
    #[serde(default)]
    pub incarnation: u64,
    /// Boot from a throw-away copy of this image instead, with the root disk as the second disk.
    #[serde(default)]
    pub rescue: Option<ImageSource>,
    /// Firmware.
    #[serde(default)]
    pub firmware: Firmware,
    /// Boot source.
    #[serde(default)]
    pub boot: BootSource,
    /// Copies of its disk that are wanted.
    #[serde(default)]
    pub snapshots: Vec<SnapshotTask>,
    /// What it is told about itself by those of its networks' nodes; `None` if it is on no network.
    #[serde(default)]
    pub metadata: Option<Box<ServerMetadata>>,
}

impl DesiredServer {
    /// All images that the node needs for it.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        let (kernel, initrd) = match &self.boot {
            BootSource::Disk => (None, None),
            BootSource::Kernel { kernel, initrd, .. } => (Some(kernel), initrd.as_ref()),
        };
        [self.image.as_ref(), self.rescue.as_ref(), kernel, initrd].into_iter().flatten()
    }
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
    /// What the node's networks should be.
    #[serde(default)]
    pub networks: NetworkPlan,
    /// The program that the agent should be; `None`: the one that it is.
    #[serde(default)]
    pub program: Option<AgentProgram>,
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
    /// A server's screen: the remote framebuffer protocol (RFC 6143), both ways.
    Display {
        /// The server.
        server: ServerId,
    },
    /// A picture of a server's screen as PNG, one way.
    Screenshot {
        /// The server.
        server: ServerId,
    },
    /// An image for the node's cache: the node sends [`FetchReport`]s until it has it or cannot, each as one
    /// [`frame`](crate::frame).
    FetchImage {
        /// The image.
        image: ImageSource,
    },
    /// Questions to the inside of a server, one after the other until the control plane hangs up: the control plane
    /// sends a [`Question`](nephos_driver::Question), the node a `Result<`[`Answer`](nephos_driver::Answer)`, Error>`,
    /// each as one [`frame`](crate::frame).
    Ask {
        /// The server.
        server: ServerId,
    },
    /// What a server has used: one [`frame`](crate::frame) with a list of [`UsageSample`], oldest first.
    Usage {
        /// The server.
        server: ServerId,
        /// Which samples.
        query: UsageQuery,
    },
    /// Something that a newer control plane asks for.
    #[serde(other)]
    Unknown,
}

/// How far the fetching of an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum FetchReport {
    /// It goes on.
    Underway {
        /// Progress in percent.
        percent: u8,
    },
    /// It is in the cache, or could not be fetched.
    Ended {
        /// Why not.
        error: Option<Error>,
    },
}

/// Somebody waits for a stream; the agent dials one for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRequest {
    /// Names the stream when dialling.
    pub id: StreamId,
    /// What for.
    pub purpose: StreamPurpose,
    /// Where somebody waits for it, `HOST:PORT`, if not where the node calls anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
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

/// How far a copy of a server's root disk is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SnapshotState {
    /// The disk is being copied.
    Copying,
    /// The copy is on its way to the control plane.
    Uploading {
        /// Progress in percent.
        percent: u8,
    },
    /// The control plane has it.
    Done,
    /// It did not succeed so far. Tried again, unless `error` says that it is of no use.
    Failed {
        /// Why.
        error: Error,
    },
}

/// Report on one copy of a server's root disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// The image that it becomes.
    pub image: ImageId,
    /// How far it is.
    #[serde(flatten)]
    pub state: SnapshotState,
}

/// What comes with the bytes of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHeader {
    /// Layout of the file.
    pub format: DiskFormat,
    /// Whether the guest held its file systems still.
    pub frozen: bool,
}

/// What a server has used, as measured at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageSample {
    /// When, by the node's clock.
    pub at: Timestamp,
    /// Since the guest's start.
    pub usage: Usage,
}

/// How close together samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// As they were measured ([`HelloAnswer::usage_every_ms`]), of the last hour; of less if the node has very many
    /// servers, or its agent was started since.
    Second,
    /// One a minute, of the last week.
    Minute,
}

/// Which samples are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageQuery {
    /// How close together.
    pub resolution: Resolution,
    /// None before this, by the node's clock.
    pub from: Option<Timestamp>,
    /// None after this.
    pub until: Option<Timestamp>,
    /// The newest so many.
    pub most: u32,
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
    /// Copies of its disk that are asked for.
    #[serde(default)]
    pub snapshots: Vec<SnapshotReport>,
    /// Its ports that are made, and those that could not be.
    #[serde(default)]
    pub ports: Vec<PortReport>,
}

/// What has become of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReport {
    /// The port.
    pub port: PortId,
    /// Why it could not be made as planned; `None`: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Error>,
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
    /// What somebody should look at; all of it, in every report.
    #[serde(default)]
    pub health: Vec<Condition>,
}

/// Code of the condition that the program that was asked for could not be taken up.
pub const UPGRADE_FAILED: &str = "upgrade_failed";

/// Something about a node that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// A word for it.
    pub code: String,
    /// What is so and what to do, without figures that change.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_control_plane_asks_for_does_not_hide_the_rest() {
        let stream = StreamId::new();
        let purpose = serde_json::json!({ "type": "teleport", "server": "srv-1", "how": ["far"] });
        let newer = serde_json::json!({
            "revision": 7,
            "servers": [],
            "streams": [{ "id": stream, "purpose": purpose, "soon": true }],
            "weather": "fine",
        });
        let desired: Desired = serde_json::from_value(newer).unwrap();
        assert_eq!(desired.streams, [StreamRequest { id: stream, purpose: StreamPurpose::Unknown, at: None }]);
    }
}
