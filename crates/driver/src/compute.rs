//! The compute driver: what a guest should be, what it is, and the verbs in between.

use std::{path::PathBuf, pin::Pin, time::Duration};

use futures_util::{Stream, future::BoxFuture};
use nephos_types::{Bytes, Error, ServerId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

/// Both directions of a guest's serial line.
pub trait Console: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Console for T {}

/// How a disk image is laid out in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
    /// Plain bytes.
    Raw,
    /// An ISO 9660 file system (booted as a CD).
    Iso,
}

/// The root disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The read-only base image in the node's cache; `None` for an empty disk.
    pub base: Option<(PathBuf, DiskFormat)>,
    /// Size as the guest sees it; zero means the base's own.
    pub size: Bytes,
}

/// Firmware and boot source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// The driver's usual firmware, from the root disk.
    #[default]
    Disk,
}

/// Transport protocol of a forwarded port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A port of the node's loopback that leads to a port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    /// Protocol.
    pub protocol: Protocol,
    /// Port on 127.0.0.1 of the node.
    pub host_port: u16,
    /// Port of the guest.
    pub guest_port: u16,
}

/// One network interface of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Interface {
    /// User-mode networking inside the hypervisor process: no privileges needed, the guest reaches nothing, and only
    /// the forwarded ports reach the guest.
    User {
        /// MAC address, `52:54:00:…`.
        mac: String,
        /// Ports of the node that lead to the guest.
        forwards: Vec<PortForward>,
    },
}

/// A file on the guest's configuration drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// Path on the drive, e.g. `meta-data`.
    pub path: String,
    /// Content.
    pub content: String,
}

/// Whether a guest should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Power {
    On,
    Off,
}

/// What a guest should be. Equal specs mean equal guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// Which server it is.
    pub id: ServerId,
    /// Host name.
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Root disk.
    pub disk: Disk,
    /// Boot source.
    pub boot: Boot,
    /// Network interfaces, in order.
    pub interfaces: Vec<Interface>,
    /// Content of the configuration drive (NoCloud, label `cidata`); empty for none.
    pub config_drive: Vec<ConfigFile>,
}

/// How to end a running guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Ask the guest (ACPI power button); after this long, cut the power.
    Soft(Duration),
    /// Cut the power now.
    Hard,
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

/// What a guest has used since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time.
    pub cpu: Duration,
    /// Resident memory on the node.
    pub memory: Bytes,
}

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
}

/// A hypervisor or container runtime. Object-safe; calls on different guests may run at the same time, the caller
/// serialises calls on one guest.
pub trait ComputeDriver: Send + Sync + 'static {
    /// What this driver can do.
    fn capabilities(&self) -> Capabilities;

    /// All guests that this driver has anything of, running or not. A restarted agent adopts from here.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ServerId>, Error>>;

    /// What is known about a guest. Never fails: what cannot be found out is [`Presence::Unknown`].
    fn observe(&self, id: ServerId) -> BoxFuture<'_, Presence>;

    /// Makes the guest's definition and disk exist as in the spec; leaves a running guest running. What cannot change
    /// on a running guest takes effect at its next start.
    fn define<'a>(&'a self, spec: &'a GuestSpec) -> BoxFuture<'a, Result<(), Error>>;

    /// Makes a defined guest run; nothing happens if it runs. Without a definition: `guest_not_found`.
    fn start(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>>;

    /// Makes a guest not run; nothing happens if it does not, or does not exist. Its process is gone when this returns.
    fn stop(&self, id: ServerId, mode: StopMode) -> BoxFuture<'_, Result<(), Error>>;

    /// Restarts a running guest: soft asks it to shut down and starts it again; hard resets it. A guest that does not
    /// run is refused with `guest_not_running`.
    fn reboot(&self, id: ServerId, mode: StopMode) -> BoxFuture<'_, Result<(), Error>>;

    /// Makes everything of a guest be gone: process, files, ports. Nothing happens if it does not exist.
    fn remove(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>>;

    /// Opens the serial console of a running guest, from now on. Several may be open at once; each sees what the guest
    /// writes, whoever typed it. Ends when the guest does. Refused with `guest_not_running` or `guest_not_found`.
    fn console(&self, id: ServerId) -> BoxFuture<'_, Result<Box<dyn Console>, Error>>;

    /// The last bytes that the guest wrote to its serial console, at most `max`.
    fn console_log(&self, id: ServerId, max: usize) -> BoxFuture<'_, Result<Vec<u8>, Error>>;

    /// What the guest has used since its start; zero if it does not run.
    fn usage(&self, id: ServerId) -> BoxFuture<'_, Result<Usage, Error>>;

    /// What happens to guests by themselves, from now on. Best effort: a listener that falls far behind misses events,
    /// and [`ComputeDriver::observe`] is the truth.
    fn events(&self) -> Pin<Box<dyn Stream<Item = GuestEvent> + Send>>;
}
