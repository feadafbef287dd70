//! DHCP (RFC 2131) for the guests of one network. Nothing is allocated, nothing remembered: a lease is what the plan says,
//! so it outlives whoever gave it.

mod answer;
mod serve;

pub use answer::{Destination, Reply, answer};
pub(crate) use serve::serve;
