//! What a machine is made of, as its agent tells it once.

use nephos_types::Bytes;
use serde::{Deserialize, Serialize};

/// What a machine is made of, as Linux shows it. Kept small: the control plane has it of every node in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// The CPUs' flags as in `/proc/cpuinfo`, with spaces between.
    #[serde(default)]
    pub cpu_flags: String,
    /// Parts of the machine with memory of their own.
    #[serde(default)]
    pub numa: Vec<NumaNode>,
    /// Disks.
    #[serde(default)]
    pub disks: Vec<DiskDevice>,
    /// Network interfaces with a device behind them.
    #[serde(default)]
    pub interfaces: Vec<NetworkDevice>,
    /// PCI devices that are of use to somebody: no bridges, no parts of the board.
    #[serde(default)]
    pub devices: Vec<PciDevice>,
}

/// CPUs and the memory that is near them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaNode {
    /// Its number.
    pub id: u32,
    /// Its CPUs as ranges: `0-7,16-23`.
    pub cpus: String,
    /// Its memory.
    pub memory: Bytes,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDevice {
    /// Name below `/dev`.
    pub name: String,
    /// What its maker calls it.
    pub model: Option<String>,
    /// Size.
    pub size: Bytes,
    /// Whether it has moving parts.
    pub rotational: bool,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDevice {
    /// Name.
    pub name: String,
    /// Hardware address.
    pub mac: String,
    /// In Mbit/s; `None` without a link, or where it is not said.
    pub speed: Option<u32>,
}

/// A PCI device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevice {
    /// `DOMAIN:BUS:DEVICE.FUNCTION`.
    pub address: String,
    /// Class, subclass and programming interface.
    pub class: u32,
    /// Maker.
    pub vendor: u16,
    /// Model.
    pub device: u16,
    /// The kernel's driver for it.
    pub driver: Option<String>,
    /// What can be handed to a guest only together; `None` without an IOMMU.
    pub iommu_group: Option<u32>,
}
