//! What devices and namespaces are called: by the id of what they are for, so that whoever looks finds out.
//!
//! A device's name has at most 15 bytes. An id without its kind has 13, so a letter says the kind; packet filters tell
//! devices apart by that letter.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use nephos_types::{NetworkId, PortId, RouterId};

use crate::netlink::Mac;

/// First letter of the devices of servers' ports.
pub(crate) const PORT: char = 'p';
/// First letter of the bridges' ends of links to what serves guests.
pub(crate) const SERVICE: char = 's';
/// The other ends of those.
pub(crate) const SERVICE_INTERFACE: &str = "service";
/// The MAC address of what serves guests: the same on all networks and nodes.
pub(crate) const SERVICE_MAC: Mac = [0x02, 0x4e, 0x45, 0x50, 0xa9, 0xfe];

/// An id without its kind.
pub(crate) fn short(id: impl Display) -> String {
    let text = id.to_string();
    text.rsplit_once('-').map_or(text.clone(), |(_, digits)| digits.to_owned())
}

pub(crate) fn bridge(network: NetworkId) -> String {
    format!("b{}", short(network))
}

pub(crate) fn vxlan(network: NetworkId) -> String {
    format!("x{}", short(network))
}

pub(crate) fn vlan(network: NetworkId) -> String {
    format!("v{}", short(network))
}

/// First letters of devices that have a part outside their namespace: it has to be gone when they are.
pub(crate) const OUTWARD: [char; 3] = ['x', 'h', 'v'];
/// First letter of interfaces of the machine that networks have taken.
pub(crate) const TAKEN: char = 'f';

pub(crate) fn physical(network: NetworkId) -> String {
    format!("{TAKEN}{}", short(network))
}

pub(crate) fn service(network: NetworkId) -> String {
    format!("{SERVICE}{}", short(network))
}

/// The bridge's end of a link to the machine itself.
pub(crate) fn host(network: NetworkId) -> String {
    format!("h{}", short(network))
}

/// The machine's end of it.
pub(crate) fn machine(network: NetworkId) -> String {
    format!("nh{}", short(network))
}

/// The device of a server's port.
pub(crate) fn port(port: PortId) -> String {
    format!("{PORT}{}", short(port))
}

/// What a port's frames go round by, to be slowed.
pub(crate) fn detour(port: PortId) -> String {
    format!("i{}", short(port))
}

/// The bridge's end of a router's interface.
pub(crate) fn router_port(port: PortId) -> String {
    format!("r{}", short(port))
}

/// The router's end of it.
pub(crate) fn router_interface(port: PortId) -> String {
    format!("q{}", short(port))
}

/// Where the namespaces of one cloud on this machine are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) folder: PathBuf,
    pub(crate) name: String,
}

impl Places {
    /// The namespace of all bridges.
    pub(crate) fn fabric(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    pub(crate) fn service(&self, network: NetworkId) -> PathBuf {
        self.folder.join(format!("{}-s-{}", self.name, short(network)))
    }

    pub(crate) fn router(&self, router: RouterId) -> PathBuf {
        self.folder.join(format!("{}-r-{}", self.name, short(router)))
    }

    /// The namespaces of services (`s`) or routers (`r`) that are there, with the short ids of what they are for.
    pub(crate) fn found(&self, kind: char) -> std::io::Result<Vec<(String, PathBuf)>> {
        let prefix = format!("{}-{kind}-", self.name);
        let entries = match std::fs::read_dir(Path::new(&self.folder)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries?,
        };
        let mut found = vec![];
        for entry in entries {
            let entry = entry?;
            if let Some(short) = entry.file_name().to_str().and_then(|name| name.strip_prefix(&prefix)) {
                found.push((short.to_owned(), entry.path()));
            }
        }
        Ok(found)
    }
}
