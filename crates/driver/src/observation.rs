//! What a guest is, and what happens to it.

use std::time::Duration;

use nephos_types::{Bytes, ServerId, Timestamp};
use serde::{Deserialize, Serialize};

/// Whether a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// It runs.
    On,
    /// It does not, and starts anew when it is started.
    Off,
    /// It stands still, in memory.
    Paused,
    /// Its memory is on the disk; it goes on from there when it is started.
    Suspended,
}

/// What is known about a guest on this node. "Unknown" is a state of its own: acting on it as if the guest were gone
/// could run it twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "presence", rename_all = "snake_case")]
pub enum Presence {
    /// Nothing of it exists here: no process, no file, no port.
    Gone,
    /// It exists.
    Present(Observation),
    /// The driver could not find out.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// What a guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Whether it runs.
    pub power: Power,
    /// Since when.
    pub since: Timestamp,
    /// How it last ended, if it ended by itself: `shutdown`, `crashed: …`.
    pub ended: Option<String>,
    /// Process id of the guest, where there is one.
    pub pid: Option<u32>,
}

/// Something happened to a guest by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest shut itself down.
    ShutDown(ServerId),
    /// The guest's process ended without being asked.
    Crashed(ServerId, String),
    /// The guest restarted itself.
    Restarted(ServerId),
}

/// What a guest has used since it was started. All but `memory` only grow while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// CPU time.
    pub cpu: Duration,
    /// Resident memory on the node.
    pub memory: Bytes,
    /// Read from its disks.
    pub disk_read: Bytes,
    /// Written to its disks.
    pub disk_written: Bytes,
    /// Received by its network interfaces.
    pub network_received: Bytes,
    /// Sent by them.
    pub network_sent: Bytes,
    /// Read requests to its disks.
    pub disk_reads: u64,
    /// Write requests to its disks.
    pub disk_writes: u64,
    /// Packets received by its network interfaces.
    pub packets_received: u64,
    /// Packets sent by them.
    pub packets_sent: u64,
}
