//! What a guest should be: plain data, the same for all drivers.

use std::path::PathBuf;

use nephos_types::{Bytes, MacAddress, ServerId};
use serde::{Deserialize, Serialize};

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
    /// A root file system as a tar archive, plain or compressed with gzip or zstd. For containers.
    Tar,
    /// An OCI image layout as a tar archive. For containers.
    Oci,
}

impl DiskFormat {
    /// Whether it is a root file system for a container rather than a disk for a virtual machine.
    #[must_use]
    pub fn is_root_file_system(self) -> bool {
        matches!(self, Self::Tar | Self::Oci)
    }
}

/// The root disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The read-only base image in the node's cache; `None` for an empty disk.
    pub base: Option<(PathBuf, DiskFormat)>,
    /// Size as the guest sees it; zero means the base's own.
    pub size: Bytes,
    /// A disk with another number is another disk: what is on the old one is thrown away when the guest is defined
    /// with a new number, and a new one is made from `base`.
    #[serde(default)]
    pub incarnation: u64,
}

/// What a virtual machine begins with when it is switched on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// The classic PC firmware.
    #[default]
    Bios,
    /// UEFI, with variables that the guest keeps.
    Uefi,
}

/// Boot source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "lowercase")]
pub enum Boot {
    /// The firmware looks for it: on the root disk, then on the CD.
    #[default]
    Disk,
    /// A Linux kernel that is loaded directly.
    Kernel {
        /// The kernel in the node's cache.
        kernel: PathBuf,
        /// Its first root file system, likewise.
        initrd: Option<PathBuf>,
        /// Its command line.
        command_line: String,
    },
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
    /// A tap device of the node's networks: for hypervisors.
    Tap {
        /// MAC address.
        mac: MacAddress,
        /// The network namespace that the device is in.
        namespace: PathBuf,
        /// Its name in there.
        device: String,
        /// Largest packet in bytes.
        mtu: u32,
    },
    /// A network namespace that is there and has all that it needs: for containers. The last one counts.
    Namespace {
        /// Where it is kept.
        path: PathBuf,
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
    /// Firmware.
    #[serde(default)]
    pub firmware: Firmware,
    /// Boot source.
    pub boot: Boot,
    /// Boot from a throw-away copy of this image instead; the root disk is the second disk.
    #[serde(default)]
    pub rescue: Option<(PathBuf, DiskFormat)>,
    /// Network interfaces, in order.
    pub interfaces: Vec<Interface>,
    /// Content of the configuration drive, whose label is [`config_drive_label`]; empty for none.
    pub config_drive: Vec<ConfigFile>,
}

/// The label by which first-boot software knows a configuration drive: `cidata` for one in the format of NoCloud, which
/// has the file `meta-data`; `config-2` for one of OpenStack's.
#[must_use]
pub fn config_drive_label(files: &[ConfigFile]) -> &'static str {
    let open_stack = files.iter().any(|file| file.path.starts_with("openstack/"));
    if open_stack && files.iter().all(|file| file.path != "meta-data") { "config-2" } else { "cidata" }
}
