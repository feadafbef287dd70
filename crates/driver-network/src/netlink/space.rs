//! A network namespace, with the sockets that speak to its part of the kernel.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use nephos_host::netns;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use super::socket::{Socket, is_gone};

/// How many changes have been made to the kernel's state.
#[derive(Clone, Default)]
pub(crate) struct Changes(Arc<AtomicU64>);

impl Changes {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A network namespace.
pub(crate) struct Space {
    namespace: OwnedFd,
    route: Socket<RouteNetlinkMessage>,
    pub(super) netfilter: Socket<NetfilterMessage>,
    changes: Changes,
}

impl Space {
    /// The namespace that is kept at this path.
    pub(crate) fn open(path: &Path, changes: &Changes) -> io::Result<Self> {
        Self::new(netns::open(path)?, changes)
    }

    /// The namespace that this process is in.
    pub(crate) fn own(changes: &Changes) -> io::Result<Self> {
        Self::new(netns::own()?, changes)
    }

    fn new(namespace: OwnedFd, changes: &Changes) -> io::Result<Self> {
        let (route, netfilter) =
            netns::inside(&namespace, || Ok((Socket::open(NETLINK_ROUTE)?, Socket::open(NETLINK_NETFILTER)?)))?;
        Ok(Self { namespace, route, netfilter, changes: changes.clone() })
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Works inside, on a thread of its own.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        netns::inside(&self.namespace, work)
    }

    pub(crate) fn changes(&self) -> &Changes {
        &self.changes
    }

    pub(crate) fn list(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.route.list(message)
    }

    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        self.route.get(message)
    }

    /// Makes something anew; an error if it is there.
    pub(crate) fn create(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.changes.one();
        // NLM_F_EXCL
        self.route.change(message, NLM_F_CREATE | 0x200)
    }

    /// Tries to make what cannot be made, for the way in which it is refused.
    pub(crate) fn probe(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.route.change(message, NLM_F_CREATE | 0x200)
    }

    /// Makes something, or makes it so.
    pub(crate) fn replace(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.changes.one();
        self.route.change(message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Adds one of several.
    pub(crate) fn append(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.changes.one();
        // NLM_F_APPEND
        self.route.change(message, NLM_F_CREATE | 0x800)
    }

    /// Changes what is there.
    pub(crate) fn set(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.changes.one();
        self.route.change(message, 0)
    }

    /// Removes. What is not there need not be removed.
    pub(crate) fn delete(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.changes.one();
        match self.route.change(message, 0) {
            Err(error) if is_gone(&error) => Ok(()),
            other => other,
        }
    }

    /// Writes one of the kernel's settings, below `/proc/sys/net`, unless it is so.
    pub(crate) fn sysctl(&self, settings: &[(String, &str)]) -> io::Result<()> {
        let changes = &self.changes;
        self.inside(move || {
            for (name, value) in settings {
                let path = Path::new("/proc/sys/net").join(name);
                let found = std::fs::read_to_string(&path)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
                if !found.split_whitespace().eq(value.split_whitespace()) {
                    changes.one();
                    std::fs::write(&path, value)
                        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
                }
            }
            Ok(())
        })
    }
}
