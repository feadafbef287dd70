//! What a driver can do.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::DiskFormat;
#[allow(unused_imports, reason = "for links in the documentation")]
use crate::{ComputeDriver, GuestSpec};

/// How guests' instructions are executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Accelerator {
    /// Hardware virtualisation; a probe guest has really booted under it.
    Kvm,
    /// Emulation; ten to twenty times slower.
    Tcg {
        /// Why not hardware virtualisation.
        reason: String,
    },
    /// Nothing is executed (simulated driver).
    None,
}

/// What a driver can do. What it cannot is refused before any work starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The driver's name: `qemu`, `simulated`.
    pub driver: String,
    /// Version of the engine behind it, as text.
    pub version: String,
    /// How instructions are executed.
    pub accelerator: Accelerator,
    /// Image formats that can be a root disk's base.
    pub disk_formats: Vec<DiskFormat>,
    /// Whether guests have a serial console.
    pub console: bool,
    /// Whether a guest can be asked to shut down.
    pub soft_stop: bool,
    /// What else it can do.
    #[serde(default)]
    pub features: BTreeSet<Feature>,
}

/// A driver that a node would have if the machine let it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingDriver {
    /// Its name: `qemu`, `container`.
    pub driver: String,
    /// What is missing.
    pub reason: String,
}

/// Something that not every driver can do. A driver that does not name it refuses the calls that need it with
/// `unsupported`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// [`ComputeDriver::pause`].
    Pause,
    /// [`ComputeDriver::suspend`].
    Suspend,
    /// [`ComputeDriver::snapshot`].
    Snapshot,
    /// [`GuestSpec::rescue`].
    Rescue,
    /// A larger disk in a definition reaches a running guest at once.
    GrowLive,
    /// [`Firmware::Uefi`](crate::Firmware::Uefi).
    Uefi,
    /// [`Boot::Kernel`](crate::Boot::Kernel).
    Kernel,
    /// [`ComputeDriver::ask`].
    Ask,
    /// [`ComputeDriver::display`] and [`ComputeDriver::screenshot`].
    Display,
    /// [`Interface::Tap`](crate::Interface::Tap); or, with [`Feature::Namespace`], that.
    Network,
    /// Guests are started in a network namespace: [`Interface::Namespace`](crate::Interface::Namespace).
    Namespace,
}
