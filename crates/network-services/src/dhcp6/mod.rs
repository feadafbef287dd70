//! DHCPv6 (RFC 8415) for the guests of one network, stateful and stateless. As with DHCP nothing is allocated and nothing
//! remembered; the server's identifier follows from the network, so all nodes are one server to a guest that moves.

mod answer;
mod serve;

pub use answer::answer;
pub(crate) use serve::serve;
