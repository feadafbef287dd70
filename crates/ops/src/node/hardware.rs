//! What a node is made of, and how it is.

use nephos_types::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a machine is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeHardware {
    /// What its CPUs can do, in Linux' words: `avx2`, `vmx`, …
    pub cpu_flags: Vec<String>,
    /// Its parts with memory of their own.
    pub numa: Vec<NodeNuma>,
    /// Its disks.
    pub disks: Vec<NodeDisk>,
    /// Its network interfaces.
    pub interfaces: Vec<NodeInterface>,
    /// Its PCI devices: controllers, accelerators, no bridges.
    pub devices: Vec<NodeDevice>,
}

/// CPUs and the memory that is near them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeNuma {
    /// Its number.
    pub id: u32,
    /// Its CPUs as ranges: `0-7,16-23`.
    pub cpus: String,
    /// Its memory in MiB.
    pub memory_mib: u64,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeDisk {
    /// Name below `/dev`.
    pub name: String,
    /// What its maker calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Size in bytes.
    pub bytes: u64,
    /// Whether it has moving parts.
    pub rotational: bool,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeInterface {
    /// Name.
    pub name: String,
    /// Hardware address.
    pub mac: String,
    /// In Mbit/s, where there is a link that says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mbit_per_second: Option<u32>,
}

/// A PCI device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeDevice {
    /// `DOMAIN:BUS:DEVICE.FUNCTION`.
    pub address: String,
    /// Class, subclass and programming interface, six hexadecimal digits.
    pub class: String,
    /// Maker and model, as in `10de:20b0`.
    pub id: String,
    /// The kernel's driver for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Devices of one group can be handed to a guest only together; absent without an IOMMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_group: Option<u32>,
}

/// Something about a node that somebody should look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeCondition {
    /// `disk_nearly_full`, `memory_pressure`, `clock_differs`, `upgrade_failed`.
    pub code: String,
    /// What is so, and what to do.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}
