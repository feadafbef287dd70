//! What this crate says to the kernel by netlink, and reads from it. Nothing here knows what a network or a port is.

mod address;
mod flow;
mod link;
mod neighbour;
mod route;
mod shaper;
mod socket;
mod space;

/// A MAC address.
pub(crate) type Mac = [u8; 6];

pub(crate) use address::Address;
pub(crate) use flow::{Flow, Tuple};
pub(crate) use link::{BridgePort, Kind, Link, Links, New};
pub(crate) use neighbour::{Forwarding, Neighbour};
pub(crate) use route::Route;
pub(crate) use shaper::{Bucket, Shaping};
pub(crate) use socket::is_gone;
pub(crate) use space::{Changes, Space};
