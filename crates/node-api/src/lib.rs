//! What control plane and agent say to each other: plain data, the trait that the control plane implements, and HTTP
//! on both sides.
//!
//! Level-triggered: the control plane states what should be ([`Desired`]), the agent what is ([`Report`]). A lost or
//! repeated message costs a delay, never a wrong state. The agent always dials; nothing connects to a node.
//!
//! Must not know: the store, operations, how a driver works.

pub mod client;
mod control;
pub mod frame;
mod hardware;
mod message;
pub mod metadata;
pub mod server;
pub mod tls;

pub use client::{Client, Connector};
pub use control::{Boxed, ByteStream, Content, ControlPlane, Duplex, HELLO_FIRST, NODE_REMOVED};
pub use hardware::{DiskDevice, Hardware, NetworkDevice, NumaNode, PciDevice};
pub use message::{
    AgentProgram, BootSource, Condition, Desired, DesiredServer, Enrolment, EnrolmentAnswer, FETCHING_IMAGE,
    FetchReport, Hello, HelloAnswer, ImageSource, Inventory, PROTOCOL_VERSION, PortRange, PortReport, Renewal, Report,
    Resolution, ServerReport, ServerState, SnapshotHeader, SnapshotReport, SnapshotState, SnapshotTask, StreamPurpose,
    StreamRequest, UPGRADE_FAILED, UsageQuery, UsageSample, WantedInterface, WantedPower,
};
