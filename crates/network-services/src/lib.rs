//! What a node serves to the guests of its networks: DHCP, DHCPv6, router advertisements, DNS, metadata.
//!
//! [`Services::update`] makes what is served be as planned, again and again; what did not change goes on undisturbed. All
//! sockets are in the networks' own namespaces, all tasks in this one process. Nothing is written to disk: what is
//! answered is a function of the plan, so a restart changes nothing for guests.
//!
//! Invariants: everything that comes from guests is hostile, bounded, and judged by pure functions that never panic
//! ([`dhcp4::answer`], [`dhcp6::answer`], [`dns::answer`], [`advertise::is_solicitation`], [`metadata::answer`]); only
//! ports of this node on the same network are answered; who asks is known by network and address, never by what is said.
//!
//! Must not know: how namespaces and interfaces come to be, the control plane, the store.

pub mod advertise;
pub mod dhcp4;
pub mod dhcp6;
pub mod dns;
mod limit;
pub mod metadata;
mod namespace;
mod resolv;
mod serve;
mod services;
mod site;
pub mod view;

pub use metadata::MetadataSource;
pub use namespace::Place;
pub use resolv::system_forwarders;
pub use services::{Places, Services, Settings, Troubles};
