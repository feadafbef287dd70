//! What makes a guest's definition acceptable to any driver. Definitions come from people; nothing in one may reach a
//! hypervisor's option parser or the node's file system as anything but the value it is.

use std::collections::BTreeSet;

use nephos_types::{Error, MIB, Reason};

use crate::{Boot, GuestSpec, Interface};

/// The most virtual CPUs of one guest.
const MAX_VCPUS: u32 = 255;
/// The least memory that any guest boots with.
const MIN_MEMORY_MIB: u64 = 16;
/// The most memory of one guest: what 46 physical address bits hold.
const MAX_MEMORY_MIB: u64 = 64 << 20;
/// The largest disk: what a qcow2 file with the usual cluster size can hold.
const MAX_DISK_MIB: u64 = 64 << 20;
const MAX_INTERFACES: usize = 16;
const MAX_FORWARDS: usize = 64;
const MAX_FILES: usize = 64;
const MAX_FILE_DEPTH: usize = 4;
const MAX_FILE_NAME: usize = 64;
/// The most content of a configuration drive.
const MAX_CONFIG: usize = 8 << 20;
const MAX_NAME: usize = 255;
/// What Linux reads of its command line.
const MAX_COMMAND_LINE: usize = 2047;

impl GuestSpec {
    /// Refuses what no driver can make a guest of, naming every field that is wrong.
    pub fn check(&self) -> Result<(), Error> {
        let mut error = Error::invalid("invalid_guest", "The server's definition cannot be used");
        let mut refuse = |field: String, constraint: &str, detail: String| {
            error.reasons.push(Reason { subject: field, constraint: constraint.to_owned(), detail });
        };
        if self.name.is_empty() || self.name.chars().count() > MAX_NAME {
            refuse("name".into(), "length", format!("a name has 1 to {MAX_NAME} characters"));
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            refuse("vcpus".into(), "range", format!("1 to {MAX_VCPUS}, not {}", self.vcpus));
        }
        let memory = self.memory.0;
        if !(MIN_MEMORY_MIB * MIB..=MAX_MEMORY_MIB * MIB).contains(&memory) {
            refuse("memory".into(), "range", format!("{MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB, not {memory} bytes"));
        } else if !memory.is_multiple_of(MIB) {
            refuse("memory".into(), "unit", format!("whole mebibytes, not {memory} bytes"));
        }
        if self.disk.size.0 > MAX_DISK_MIB * MIB {
            refuse("disk.size".into(), "range", format!("at most {MAX_DISK_MIB} MiB"));
        }
        if self.disk.base.is_none() && self.disk.size.0 == 0 {
            refuse("disk.size".into(), "required", "a disk without an image needs a size".into());
        }
        if let Boot::Kernel { command_line, .. } = &self.boot
            && (command_line.len() > MAX_COMMAND_LINE || command_line.chars().any(char::is_control))
        {
            let detail = format!("at most {MAX_COMMAND_LINE} bytes without control characters");
            refuse("boot.command_line".into(), "format", detail);
        }
        if self.interfaces.len() > MAX_INTERFACES {
            refuse("interfaces".into(), "count", format!("at most {MAX_INTERFACES}"));
        }
        let mut ports = BTreeSet::new();
        for (place, interface) in self.interfaces.iter().enumerate() {
            match interface {
                Interface::User { mac, forwards } => {
                    if !is_unicast_mac(mac) {
                        let shown: String = mac.chars().take(32).collect();
                        let detail =
                            format!("six pairs of hexadecimal digits of one card, as 52:54:00:…, not {shown:?}");
                        refuse(format!("interfaces[{place}].mac"), "format", detail);
                    }
                    if forwards.len() > MAX_FORWARDS {
                        refuse(format!("interfaces[{place}].forwards"), "count", format!("at most {MAX_FORWARDS}"));
                    }
                    for forward in forwards {
                        if forward.host_port == 0 || forward.guest_port == 0 {
                            refuse(format!("interfaces[{place}].forwards"), "range", "a port is 1 to 65535".into());
                        }
                        if !ports.insert((forward.protocol, forward.host_port)) {
                            let detail = format!("port {} of the node is forwarded twice", forward.host_port);
                            refuse(format!("interfaces[{place}].forwards"), "unique", detail);
                        }
                    }
                }
                Interface::Tap { device, namespace, .. } => {
                    if !is_device(device) {
                        let detail = "1 to 15 letters, digits, `.`, `_` and `-`".to_owned();
                        refuse(format!("interfaces[{place}].device"), "format", detail);
                    }
                    if !namespace.is_absolute() {
                        refuse(format!("interfaces[{place}].namespace"), "format", "an absolute path".into());
                    }
                }
                Interface::Namespace { path } => {
                    if !path.is_absolute() {
                        refuse(format!("interfaces[{place}].path"), "format", "an absolute path".into());
                    }
                }
            }
        }
        if self.config_drive.len() > MAX_FILES {
            refuse("config_drive".into(), "count", format!("at most {MAX_FILES} files"));
        }
        let size: usize = self.config_drive.iter().map(|file| file.content.len()).sum();
        if size > MAX_CONFIG {
            refuse("config_drive".into(), "size", format!("at most {MAX_CONFIG} bytes, not {size}"));
        }
        let mut paths = BTreeSet::new();
        for (place, file) in self.config_drive.iter().take(MAX_FILES).enumerate() {
            if !is_drive_path(&file.path) {
                let detail = "up to four names of letters, digits, `.`, `_` and `-`, joined by `/`".to_owned();
                refuse(format!("config_drive[{place}].path"), "format", detail);
            }
            // The drive's file system does not tell capital letters from small ones.
            if !paths.insert(file.path.to_ascii_lowercase()) {
                refuse(format!("config_drive[{place}].path"), "unique", "the same path twice".into());
            }
        }
        if error.reasons.is_empty() { Ok(()) } else { Err(error) }
    }
}

/// Whether this is the name of a network device, which the kernel limits to 15 bytes.
fn is_device(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=15).contains(&name.len()) && name.bytes().all(good) && name != "." && name != ".."
}

/// Whether this is the address of one network card, in the usual notation.
fn is_unicast_mac(mac: &str) -> bool {
    let octets: Vec<&str> = mac.split(':').collect();
    octets.len() == 6
        && octets.iter().all(|octet| octet.len() == 2 && octet.bytes().all(|b| b.is_ascii_hexdigit()))
        && octets.first().and_then(|octet| u8::from_str_radix(octet, 16).ok()).is_some_and(|first| first & 1 == 0)
}

fn is_drive_path(path: &str) -> bool {
    let names: Vec<&str> = path.split('/').collect();
    names.len() <= MAX_FILE_DEPTH
        && names.iter().all(|name| {
            !name.is_empty()
                && name.len() <= MAX_FILE_NAME
                && !name.ends_with('.')
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        })
}

#[cfg(test)]
mod tests {
    use nephos_types::{Bytes, ServerId};

    use super::*;
    use crate::{ConfigFile, Disk, Firmware, PortForward, Protocol};

    fn spec() -> GuestSpec {
        GuestSpec {
            id: ServerId::new(),
            name: "web".into(),
            vcpus: 1,
            memory: Bytes::mib(256),
            disk: Disk { base: None, size: Bytes::mib(64), incarnation: 0 },
            firmware: Firmware::Bios,
            boot: Boot::Disk,
            rescue: None,
            interfaces: vec![Interface::User {
                mac: "52:54:00:00:00:01".into(),
                forwards: vec![PortForward { protocol: Protocol::Tcp, host_port: 2222, guest_port: 22 }],
            }],
            config_drive: vec![ConfigFile { path: "openstack/latest/meta_data.json".into(), content: "{}".into() }],
        }
    }

    #[test]
    fn an_ordinary_definition_passes() {
        assert_eq!(spec().check(), Ok(()));
    }

    #[test]
    fn each_wrong_field_is_named() {
        type Spoil = fn(&mut GuestSpec);
        let cases: [(&str, Spoil); 17] = [
            ("name", |s| s.name.clear()),
            ("name", |s| s.name = "x".repeat(256)),
            ("vcpus", |s| s.vcpus = 0),
            ("vcpus", |s| s.vcpus = 1000),
            ("memory", |s| s.memory = Bytes(0)),
            ("memory", |s| s.memory = Bytes(256 * MIB + 1)),
            ("memory", |s| s.memory = Bytes(u64::MAX)),
            ("disk.size", |s| s.disk.size = Bytes(0)),
            ("disk.size", |s| s.disk.size = Bytes(u64::MAX)),
            ("boot.command_line", |s| {
                s.boot = Boot::Kernel { kernel: "/k".into(), initrd: None, command_line: "quiet\n".into() };
            }),
            ("interfaces", |s| s.interfaces = vec![s.interfaces[0].clone(); 17]),
            ("interfaces[0].mac", |s| {
                s.interfaces = vec![Interface::User { mac: "52:54:00:00:00:01,x=y".into(), forwards: vec![] }];
            }),
            ("interfaces[0].mac", |s| {
                s.interfaces = vec![Interface::User { mac: "01:00:5e:00:00:01".into(), forwards: vec![] }];
            }),
            ("interfaces[1].forwards", |s| s.interfaces.push(s.interfaces[0].clone())),
            ("config_drive[0].path", |s| s.config_drive[0].path = "../../etc/passwd".into()),
            ("config_drive[1].path", |s| s.config_drive.push(s.config_drive[0].clone())),
            ("config_drive", |s| s.config_drive[0].content = "x".repeat(MAX_CONFIG + 1)),
        ];
        for (field, spoil) in cases {
            let mut spec = spec();
            spoil(&mut spec);
            let error = spec.check().unwrap_err();
            assert!(
                error.reasons.iter().any(|reason| reason.subject == field),
                "{field}: {error:?} {:?}",
                error.reasons
            );
        }
    }
}
