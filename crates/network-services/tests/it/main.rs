//! The services in network namespaces, with the clients that guests have: busybox, ISC, dig, curl, the kernel.
//!
//! Needs root, as the agent does.

#![allow(clippy::unwrap_used)]

mod bed;
mod dhcp;
mod dns;
mod hostile;
mod ipv6;
mod metadata;
mod plan;
