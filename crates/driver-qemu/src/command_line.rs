//! From what a guest should be to QEMU's arguments. Pure.
//!
//! Invariant: no text that a caller controls reaches QEMU's option parser. The arguments of a Linux kernel are one
//! argument of QEMU, which takes it as it is. Files are named by constants relative to the
//! guest's run folder or are passed as open descriptors; numbers are numbers; addresses were checked when the guest was
//! defined. Structured values go as JSON, where commas mean nothing.

use std::os::fd::RawFd;

use nephos_driver::{Accelerator, DiskFormat, GuestSpec, Interface, Protocol};
use nephos_types::{Bytes, MIB, ServerId};
use serde_json::{Value, json};

use crate::folder::{
    AGENT_SOCKET, CONSOLE_LOG, CONSOLE_SOCKET, COPY_SOCKET, DISPLAY_SOCKET, QMP_SOCKET, RESCUE, VARIABLES, disk_file,
};

/// The block node of the root disk, for QMP.
pub(crate) const DISK_NODE: &str = "disk0";

/// The line to the agent in the guest, for QMP.
pub(crate) const AGENT_LINE: &str = "agent0";

/// PCI ports that are free at the start, so that devices can be plugged in while the guest runs.
const SPARE_PORTS: u8 = 4;

/// The kind of machine that new guests get, in the newest version that QEMU has.
pub(crate) const MACHINE: &str = "q35";

/// How many may look at a guest's screen at once.
const MAX_VIEWERS: u8 = 16;

/// System calls that a QEMU needs none of.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// What a start needs besides the definition.
pub(crate) struct Launch<'a> {
    /// The definition.
    pub(crate) spec: &'a GuestSpec,
    /// The kind of machine: `q35`, or one of its versions.
    pub(crate) machine: &'a str,
    /// How instructions are executed.
    pub(crate) accelerator: &'a Accelerator,
    /// Descriptor of the base image, inherited by QEMU.
    pub(crate) base: Option<(RawFd, DiskFormat)>,
    /// Descriptor of the rescue image, inherited by QEMU.
    pub(crate) rescue: Option<(RawFd, DiskFormat)>,
    /// Descriptors of the interfaces' tap devices, inherited by QEMU.
    pub(crate) taps: &'a [Option<RawFd>],
    /// Descriptor of the configuration drive, inherited by QEMU.
    pub(crate) config_drive: Option<RawFd>,
    /// A kernel to be loaded directly.
    pub(crate) kernel: Option<Kernel<'a>>,
    /// Descriptor of the UEFI firmware, inherited by QEMU.
    pub(crate) firmware: Option<RawFd>,
    /// Wait for `cont` before the first instruction.
    pub(crate) paused: bool,
    /// Wait for a saved memory.
    pub(crate) incoming: bool,
}

/// A Linux kernel.
pub(crate) struct Kernel<'a> {
    /// Its descriptor, inherited by QEMU.
    pub(crate) kernel: RawFd,
    /// Its first root file system's, likewise.
    pub(crate) initrd: Option<RawFd>,
    /// Its arguments.
    pub(crate) arguments: &'a str,
}

/// The arguments, without the program's name.
pub(crate) fn arguments(launch: &Launch<'_>) -> Vec<String> {
    let spec = launch.spec;
    let mut line = Line::default();
    line.option("-name", &spec.id.to_string());
    line.flag("-no-user-config");
    line.flag("-nodefaults");
    line.option("-display", "none");
    let flash = if launch.firmware.is_some() { ",pflash0=code0,pflash1=variables0" } else { "" };
    line.option("-machine", &format!("{}{flash}", launch.machine));
    match launch.accelerator {
        Accelerator::Kvm => {
            line.option("-accel", "kvm");
            line.option("-cpu", "host");
        }
        Accelerator::Tcg { .. } | Accelerator::None => {
            line.option("-accel", &format!("tcg,tb-size={}", translation_mib(spec.memory)));
            line.option("-cpu", "max");
        }
    }
    line.option("-smp", &spec.vcpus.to_string());
    line.option("-m", &format!("size={}M", spec.memory.0 / MIB));
    line.option("-sandbox", SANDBOX);
    // A guest that has switched itself off stays until it has been noticed, so that it can be told from a crash.
    line.option("-action", "shutdown=pause");
    if launch.paused || launch.incoming {
        line.flag("-S");
    }
    if launch.incoming {
        line.option("-incoming", "defer");
    }
    line.option("-vga", "std");
    // No network port, and whoever connects sends nobody else away.
    line.option("-vnc", &format!("unix:{DISPLAY_SOCKET},share=ignore,connections={MAX_VIEWERS}"));
    line.device(json!({ "driver": "virtio-rng-pci" }));
    for port in 0..SPARE_PORTS {
        let number = port + 1;
        line.device(
            json!({ "driver": "pcie-root-port", "id": format!("spare{port}"), "chassis": number, "slot": number }),
        );
    }
    if let Some(fd) = launch.firmware {
        let file = inherited(&mut line, 4, fd);
        line.blockdev(json!({ "node-name": "code0", "driver": "raw", "read-only": true, "file": file }));
        let file = json!({ "driver": "file", "filename": VARIABLES });
        line.blockdev(json!({ "node-name": "variables0", "driver": "raw", "file": file }));
    }
    if let Some(kernel) = &launch.kernel {
        line.option("-kernel", &format!("/proc/self/fd/{}", kernel.kernel));
        if let Some(initrd) = kernel.initrd {
            line.option("-initrd", &format!("/proc/self/fd/{initrd}"));
        }
        line.option("-append", kernel.arguments);
    }
    disks(&mut line, launch);
    for (place, interface) in spec.interfaces.iter().enumerate() {
        network(&mut line, place, interface, launch.taps.get(place).copied().flatten());
    }
    line.option("-chardev", &format!("{},logfile={CONSOLE_LOG},logappend=on", socket("console0", CONSOLE_SOCKET)));
    line.option("-serial", "chardev:console0");
    line.device(json!({ "driver": "virtio-serial-pci" }));
    line.option("-chardev", &socket(AGENT_LINE, AGENT_SOCKET));
    line.device(json!({ "driver": "virtserialport", "chardev": AGENT_LINE, "name": "org.qemu.guest_agent.0" }));
    line.option("-chardev", &socket("qmp0", QMP_SOCKET));
    line.option("-mon", "chardev=qmp0,mode=control");
    line.0
}

/// How much translated code an emulated guest's QEMU keeps, in MiB; it is memory of the node beside the guest's own, so the
/// default of 1 GiB is too much. 64 MiB are enough for a small system; a full one would translate over and over in less than 256.
fn translation_mib(memory: Bytes) -> u64 {
    (memory.0 / MIB / 4).clamp(64, 256)
}

/// The arguments of a QEMU without a machine, which only reads a root disk.
pub(crate) fn disk_reader(id: ServerId, incarnation: u64, base: Option<(RawFd, DiskFormat)>) -> Vec<String> {
    let mut line = Line::default();
    line.option("-name", &id.to_string());
    line.flag("-no-user-config");
    line.flag("-nodefaults");
    line.option("-display", "none");
    line.option("-machine", "none");
    line.option("-accel", "tcg,tb-size=1");
    line.option("-sandbox", SANDBOX);
    let (mut disk, _) = Overlay::root(incarnation, base).node(&mut line);
    disk["read-only"] = true.into();
    line.blockdev(disk);
    line.option("-chardev", &socket("qmp0", COPY_SOCKET));
    line.option("-mon", "chardev=qmp0,mode=control");
    line.0
}

fn socket(id: &str, path: &str) -> String {
    format!("socket,id={id},path={path},server=on,wait=off")
}

/// A file that QEMU inherits.
fn inherited(line: &mut Line, set: u8, fd: RawFd) -> Value {
    line.option("-add-fd", &format!("fd={fd},set={set}"));
    json!({ "driver": "file", "filename": format!("/dev/fdset/{set}") })
}

/// A disk of the guest's own on an image, and how QEMU knows them.
struct Overlay {
    node: &'static str,
    file: String,
    image: Option<(RawFd, DiskFormat)>,
    set: u8,
}

impl Overlay {
    fn root(incarnation: u64, image: Option<(RawFd, DiskFormat)>) -> Self {
        Self { node: DISK_NODE, file: disk_file(incarnation), image, set: 1 }
    }

    /// The block node of the disk. If the image is a CD, there is nothing of it in the disk, and its file is returned.
    fn node(self, line: &mut Line) -> (Value, Option<Value>) {
        let mut overlay = json!({
            "node-name": self.node,
            "driver": "qcow2",
            "file": { "driver": "file", "filename": self.file, "aio": "threads" },
            "discard": "unmap",
            // Never what the overlay's own header names: QEMU opens what it is given and nothing else.
            "backing": Value::Null,
        });
        let mut cd = None;
        match self.image.map(|(fd, format)| (inherited(line, self.set, fd), format)) {
            Some((file, DiskFormat::Qcow2)) => {
                overlay["backing"] =
                    json!({ "driver": "qcow2", "read-only": true, "file": file, "backing": Value::Null });
            }
            Some((file, DiskFormat::Raw)) => {
                overlay["backing"] = json!({ "driver": "raw", "read-only": true, "file": file });
            }
            Some((file, DiskFormat::Iso)) => cd = Some(file),
            // Refused when the guest was defined.
            Some((_, DiskFormat::Tar | DiskFormat::Oci)) | None => {}
        }
        (overlay, cd)
    }
}

fn disks(line: &mut Line, launch: &Launch<'_>) {
    let mut place = 0;
    let mut next_place = || {
        place += 1;
        place
    };
    if let Some(image) = launch.rescue {
        let rescue = Overlay { node: "rescue0", file: RESCUE.to_owned(), image: Some(image), set: 3 };
        match rescue.node(line) {
            (_, Some(file)) => cd(line, "rescue0", file, next_place()),
            (node, None) => virtio_disk(line, node, Some(next_place())),
        }
    }
    let (root, file) = Overlay::root(launch.spec.disk.incarnation, launch.base).node(line);
    virtio_disk(line, root, Some(next_place()));
    if let Some(file) = file {
        cd(line, "cd0", file, next_place());
    }
    if let Some(fd) = launch.config_drive {
        let file = inherited(line, 2, fd);
        let node = json!({ "node-name": "config0", "driver": "raw", "read-only": true, "file": file });
        virtio_disk(line, node, None);
    }
}

/// A disk, with its place in the order in which the firmware tries them.
fn virtio_disk(line: &mut Line, node: Value, place: Option<u8>) {
    let mut device = json!({ "driver": "virtio-blk-pci", "drive": node["node-name"] });
    if let Some(place) = place {
        device["bootindex"] = place.into();
    }
    line.blockdev(node);
    line.device(device);
}

fn cd(line: &mut Line, node: &str, file: Value, place: u8) {
    line.blockdev(json!({ "node-name": node, "driver": "raw", "read-only": true, "file": file }));
    line.device(json!({ "driver": "ide-cd", "drive": node, "bootindex": place }));
}

/// `tap`: the descriptor of its tap device, inherited by QEMU.
fn network(line: &mut Line, place: usize, interface: &Interface, tap: Option<RawFd>) {
    match interface {
        Interface::User { mac, forwards } => {
            let mut backend = format!("user,id=net{place},restrict=on");
            for forward in forwards {
                let protocol = match forward.protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                };
                let (host, guest) = (forward.host_port, forward.guest_port);
                backend.push_str(&format!(",hostfwd={protocol}:127.0.0.1:{host}-:{guest}"));
            }
            line.option("-netdev", &backend);
            line.device(json!({ "driver": "virtio-net-pci", "netdev": format!("net{place}"), "mac": mac }));
        }
        Interface::Tap { mac, mtu, .. } => {
            let Some(tap) = tap else { return };
            line.option("-netdev", &format!("tap,id=net{place},fd={tap}"));
            line.device(json!({
                "driver": "virtio-net-pci", "netdev": format!("net{place}"), "mac": mac, "host_mtu": mtu
            }));
        }
        // Refused when it was defined.
        Interface::Namespace { .. } => {}
    }
}

/// Arguments under construction.
#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }
    fn option(&mut self, option: &str, value: &str) {
        self.0.push(option.to_owned());
        self.0.push(value.to_owned());
    }
    fn device(&mut self, device: Value) {
        self.option("-device", &device.to_string());
    }
    fn blockdev(&mut self, node: Value) {
        self.option("-blockdev", &node.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use nephos_driver::{Boot, ConfigFile, Disk, Firmware, PortForward};
    use nephos_types::Id;
    use proptest::prelude::*;

    use super::*;

    fn spec() -> GuestSpec {
        let forward = |protocol, host_port, guest_port| PortForward { protocol, host_port, guest_port };
        GuestSpec {
            id: ServerId::from_bits(1),
            name: "web".into(),
            vcpus: 2,
            memory: Bytes::mib(512),
            disk: Disk {
                base: Some((PathBuf::from("/cache/abc"), DiskFormat::Qcow2)),
                size: Bytes::mib(1024),
                incarnation: 0,
            },
            firmware: Firmware::Bios,
            boot: Boot::Disk,
            rescue: None,
            interfaces: vec![Interface::User {
                mac: "52:54:00:00:00:01".into(),
                forwards: vec![forward(Protocol::Tcp, 2222, 22), forward(Protocol::Udp, 5353, 53)],
            }],
            config_drive: vec![],
        }
    }

    fn emulated() -> Accelerator {
        Accelerator::Tcg { reason: String::new() }
    }

    /// One line per option, as the snapshots have them.
    fn shown(launch: &Launch<'_>) -> String {
        arguments(launch).join(" ").replace(" -", "\n-")
    }

    /// A start with nothing special.
    fn plain<'a>(spec: &'a GuestSpec, accelerator: &'a Accelerator) -> Launch<'a> {
        Launch {
            spec,
            machine: MACHINE,
            accelerator,
            base: None,
            rescue: None,
            taps: &[None],
            config_drive: None,
            kernel: None,
            firmware: None,
            paused: false,
            incoming: false,
        }
    }

    #[test]
    fn an_emulated_guest_on_a_base_image() {
        let (spec, accelerator) = (spec(), emulated());
        let launch = Launch {
            base: Some((7, DiskFormat::Qcow2)),
            config_drive: Some(8),
            paused: true,
            ..plain(&spec, &accelerator)
        };
        assert_eq!(shown(&launch), include_str!("snapshots/emulated.txt").trim_end());
    }

    #[test]
    fn a_guest_with_hardware_virtualisation_and_a_cd() {
        let spec = GuestSpec { interfaces: vec![], ..spec() };
        let launch = Launch {
            machine: "pc-q35-7.2",
            base: Some((7, DiskFormat::Iso)),
            incoming: true,
            ..plain(&spec, &Accelerator::Kvm)
        };
        assert_eq!(shown(&launch), include_str!("snapshots/hardware.txt").trim_end());
    }

    #[test]
    fn a_guest_in_rescue_with_uefi_and_a_kernel() {
        let disk = Disk { incarnation: 5, ..spec().disk };
        let spec = GuestSpec { interfaces: vec![], disk, ..spec() };
        let accelerator = emulated();
        let launch = Launch {
            base: Some((7, DiskFormat::Raw)),
            rescue: Some((9, DiskFormat::Qcow2)),
            kernel: Some(Kernel { kernel: 10, initrd: Some(11), arguments: "quiet,file=/etc/passwd" }),
            firmware: Some(12),
            ..plain(&spec, &accelerator)
        };
        assert_eq!(shown(&launch), include_str!("snapshots/rescue.txt").trim_end());
    }

    proptest! {
        /// Whatever people write into a definition, QEMU reads the same options.
        #[test]
        fn text_of_callers_does_not_reach_the_arguments(
            name in ".{1,40}", path in ".{1,40}", content in ".{0,80}", kernel_arguments in ".{0,80}",
        ) {
            let ordinary = GuestSpec { config_drive: vec![ConfigFile { path: "a".into(), content: "b".into() }], ..spec() };
            let mut hostile = ordinary.clone();
            hostile.name = name;
            hostile.disk.base = Some((PathBuf::from(&path), DiskFormat::Qcow2));
            hostile.rescue = Some((PathBuf::from(&path), DiskFormat::Qcow2));
            hostile.boot = Boot::Kernel {
                kernel: PathBuf::from(&path), initrd: Some(PathBuf::from(&path)), command_line: kernel_arguments.clone(),
            };
            hostile.config_drive[0].content = content;
            let accelerator = emulated();
            let of = |spec: &GuestSpec, kernel_arguments: &str| {
                arguments(&Launch {
                    base: Some((7, DiskFormat::Qcow2)),
                    rescue: Some((9, DiskFormat::Qcow2)),
                    config_drive: Some(8),
                    kernel: Some(Kernel { kernel: 10, initrd: Some(11), arguments: kernel_arguments }),
                    firmware: Some(12),
                    ..plain(spec, &accelerator)
                })
            };
            // All but the kernel's arguments, which are one argument as they are.
            let mut line = of(&hostile, &kernel_arguments);
            let place = line.iter().position(|argument| argument == "-append").unwrap() + 1;
            prop_assert_eq!(std::mem::take(&mut line[place]), kernel_arguments);
            prop_assert_eq!(line, of(&ordinary, ""));
        }

        /// Even an address that was not checked stays one value.
        #[test]
        fn an_address_is_one_value(mac in ".{0,40}") {
            let mut spec = spec();
            spec.interfaces = vec![Interface::User { mac: mac.clone(), forwards: vec![] }];
            let accelerator = emulated();
            let line = arguments(&plain(&spec, &accelerator));
            let card = line.iter().find(|argument| argument.contains("virtio-net-pci")).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Value>(card).unwrap()["mac"], &Value::from(mac));
        }
    }
}
