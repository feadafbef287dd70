//! DNS (RFC 1035) for the guests of one network: its own names with authority, everything else by others.
//!
//! Whoever is not a port of this node on this network is not answered at all, so nobody can be made to send answers to a
//! stranger, and no network's names are seen from another.

mod answer;
mod forward;
mod serve;
mod zone;

pub use answer::{Answer, Transport, answer, reply};
pub(crate) use forward::Forwarder;
pub(crate) use serve::{serve_tcp, serve_udp};
pub use zone::Zone;
