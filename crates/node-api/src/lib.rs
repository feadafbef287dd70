//! What control plane and agent say to each other: plain data, the trait that the control plane implements, and HTTP
//! on both sides.
//!
//! Level-triggered: the control plane states what should be ([`Desired`]), the agent what is ([`Report`]). A lost or
//! repeated message costs a delay, never a wrong state. The agent always dials; nothing connects to a node.
//!
//! Must not know: the store, operations, how a driver works.

mod message;

pub use message::{
    Desired, DesiredServer, Enrolment, EnrolmentAnswer, Hello, HelloAnswer, ImageSource, Inventory, PROTOCOL_VERSION,
    PortRange, Report, ServerReport, ServerState, StreamPurpose, StreamRequest, WantedPower,
};
