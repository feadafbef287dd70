//! What the machine is made of, from `/proc/cpuinfo` and `/sys`.
//!
//! A file that is missing or holds something else leaves out what it would have said: no machine is refused for that.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nephos_node_api::{DiskDevice, Hardware, NetworkDevice, NumaNode, PciDevice};
use nephos_types::Bytes;

/// More of a kind than this is not told.
const MOST: usize = 256;
/// `size` of a disk is counted in these, whatever its own sectors are.
const SECTOR: u64 = 512;

/// Reads it below a root, `/` on a real machine.
pub(super) fn read(root: &Path) -> Hardware {
    let class = root.join("sys/class");
    Hardware {
        cpu_flags: cpu_flags(&fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default()),
        numa: all(&root.join("sys/devices/system/node"), numa_node),
        disks: all(&root.join("sys/block"), disk),
        interfaces: all(&class.join("net"), interface),
        devices: all(&root.join("sys/bus/pci/devices"), pci_device),
    }
}

/// What is made of each entry of a folder, in the order of their names.
fn all<T>(folder: &Path, read: impl Fn(&str, &Path) -> Option<T>) -> Vec<T> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort_unstable();
    entries.iter().filter_map(|path| read(path.file_name()?.to_str()?, path)).take(MOST).collect()
}

fn text(path: &Path, file: &str) -> Option<String> {
    let text = fs::read_to_string(path.join(file)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn number(path: &Path, file: &str) -> Option<u64> {
    let text = text(path, file)?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The last part of what a link leads to.
fn link(path: &Path, file: &str) -> Option<String> {
    let target: io::Result<PathBuf> = fs::read_link(path.join(file));
    Some(target.ok()?.file_name()?.to_str()?.to_owned())
}

fn cpu_flags(cpuinfo: &str) -> String {
    // ARM calls them features.
    let flags = |line: &str| {
        let (key, flags) = line.split_once(':')?;
        matches!(key.trim(), "flags" | "Features").then(|| flags.trim().to_owned())
    };
    cpuinfo.lines().find_map(flags).unwrap_or_default()
}

fn numa_node(name: &str, path: &Path) -> Option<NumaNode> {
    let id = name.strip_prefix("node")?.parse().ok()?;
    let meminfo = text(path, "meminfo")?;
    let total = meminfo.lines().find_map(|line| line.split_once("MemTotal:"))?.1;
    let kib: u64 = total.split_whitespace().next()?.parse().ok()?;
    Some(NumaNode { id, cpus: text(path, "cpulist").unwrap_or_default(), memory: Bytes(kib.saturating_mul(1024)) })
}

fn disk(name: &str, path: &Path) -> Option<DiskDevice> {
    // Without a device behind it, it is the kernel's own: a loop device, memory, a layer over other disks.
    path.join("device").symlink_metadata().ok()?;
    let size = number(path, "size").filter(|sectors| *sectors > 0)?;
    Some(DiskDevice {
        name: name.to_owned(),
        model: text(path, "device/model"),
        size: Bytes(size.saturating_mul(SECTOR)),
        rotational: number(path, "queue/rotational") == Some(1),
    })
}

fn interface(name: &str, path: &Path) -> Option<NetworkDevice> {
    path.join("device").symlink_metadata().ok()?;
    Some(NetworkDevice {
        name: name.to_owned(),
        mac: text(path, "address").unwrap_or_default(),
        // -1 where there is no link.
        speed: number(path, "speed").and_then(|speed| u32::try_from(speed).ok()),
    })
}

fn pci_device(name: &str, path: &Path) -> Option<PciDevice> {
    /// Base classes (PCI code and ID assignment): memory, bridges, simple communication, system peripherals, processors,
    /// signal processing, and devices older than classes.
    const PARTS_OF_THE_BOARD: [u32; 7] = [0x00, 0x05, 0x06, 0x07, 0x08, 0x0b, 0x11];
    let class = u32::try_from(number(path, "class")?).ok()?;
    if PARTS_OF_THE_BOARD.contains(&(class >> 16)) {
        return None;
    }
    let id = |file| number(path, file).and_then(|id| u16::try_from(id).ok());
    Some(PciDevice {
        address: name.to_owned(),
        class,
        vendor: id("vendor")?,
        device: id("device")?,
        driver: link(path, "driver"),
        iommu_group: link(path, "iommu_group").and_then(|group| group.parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(root: &Path, file: &str, content: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn a_machine_is_described_by_what_linux_shows() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(
            root,
            "proc/cpuinfo",
            "processor\t: 0\nflags\t\t: fpu vme avx2\n\nprocessor\t: 1\nflags\t\t: fpu vme avx2\n",
        );
        for (node, cpus) in [(0, "0-7"), (1, "8-15")] {
            write(root, &format!("sys/devices/system/node/node{node}/cpulist"), &format!("{cpus}\n"));
            let meminfo = format!("Node {node} MemTotal:       1024 kB\nNode {node} MemFree: 1 kB\n");
            write(root, &format!("sys/devices/system/node/node{node}/meminfo"), &meminfo);
        }
        write(root, "sys/devices/system/node/has_cpu", "0-1\n");
        write(root, "sys/block/sda/size", "2048\n");
        write(root, "sys/block/sda/queue/rotational", "1\n");
        write(root, "sys/block/sda/device/model", "FANCY DISK \n");
        write(root, "sys/block/sr0/size", "0\n");
        write(root, "sys/block/sr0/device/model", "CD\n");
        write(root, "sys/block/loop0/size", "99\n");
        write(root, "sys/class/net/eth0/address", "02:00:00:00:00:01\n");
        write(root, "sys/class/net/eth0/speed", "10000\n");
        write(root, "sys/class/net/eth0/device/vendor", "0x8086\n");
        write(root, "sys/class/net/eth1/address", "02:00:00:00:00:02\n");
        write(root, "sys/class/net/eth1/speed", "-1\n");
        write(root, "sys/class/net/eth1/device/vendor", "0x8086\n");
        write(root, "sys/class/net/lo/address", "00:00:00:00:00:00\n");
        for (address, class) in [("0000:00:00.0", "0x060000"), ("0000:3b:00.0", "0x030200")] {
            write(root, &format!("sys/bus/pci/devices/{address}/class"), &format!("{class}\n"));
            write(root, &format!("sys/bus/pci/devices/{address}/vendor"), "0x10de\n");
            write(root, &format!("sys/bus/pci/devices/{address}/device"), "0x20b0\n");
        }
        symlink("../../drivers/vfio-pci", root.join("sys/bus/pci/devices/0000:3b:00.0/driver")).unwrap();
        symlink("../../kernel/iommu_groups/17", root.join("sys/bus/pci/devices/0000:3b:00.0/iommu_group")).unwrap();

        let node = |id, cpus: &str| NumaNode { id, cpus: cpus.to_owned(), memory: Bytes(1 << 20) };
        let interface =
            |name: &str, mac: &str, speed| NetworkDevice { name: name.to_owned(), mac: mac.to_owned(), speed };
        let expected = Hardware {
            cpu_flags: "fpu vme avx2".to_owned(),
            numa: vec![node(0, "0-7"), node(1, "8-15")],
            disks: vec![DiskDevice {
                name: "sda".to_owned(),
                model: Some("FANCY DISK".to_owned()),
                size: Bytes(1 << 20),
                rotational: true,
            }],
            interfaces: vec![
                interface("eth0", "02:00:00:00:00:01", Some(10_000)),
                interface("eth1", "02:00:00:00:00:02", None),
            ],
            devices: vec![PciDevice {
                address: "0000:3b:00.0".to_owned(),
                class: 0x0003_0200,
                vendor: 0x10de,
                device: 0x20b0,
                driver: Some("vfio-pci".to_owned()),
                iommu_group: Some(17),
            }],
        };
        assert_eq!(read(root), expected);
        assert_eq!(read(&root.join("nowhere")), Hardware::default());
    }
}
