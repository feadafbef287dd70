//! The networks of a node, made of what the Linux kernel has: bridges, VXLAN, namespaces, nftables.
//!
//! All of it lives in a network namespace of its own, the *fabric*: a bridge for each network, the devices of ports, the
//! packet filter. Each network also has a namespace in which its guests are served, and each router has one. So the
//! machine's own namespace is left as it is, removal is deletion, and several clouds on one machine do not meet.
//!
//! Invariants: what the driver knows it reads from the kernel and from the plan, so a new process goes on where another
//! was killed. What is as planned is not touched. Nothing passes a port before its rules are there.
//!
//! Must not know: the resource model, what a hypervisor is, DHCP, DNS.

mod apply;
mod connections;
mod driver;
mod filter;
mod forwarding;
mod interface;
mod limits;
mod machine;
mod names;
mod netlink;
mod network;
mod port;
mod router;
mod translation;

pub use driver::{LinuxNetworks, Settings, VXLAN_PORT};
