//! What a node's networks should be, and who makes them so.
//!
//! [`NetworkPlan`] is plain data, whole for one node: its networks, the ports of the servers that it runs, the security
//! groups that those have, the routers that it carries. A [`NetworkDriver`] makes the node be like it, again and again,
//! and touches only what differs, so that traffic flows on.
//!
//! Invariants: all names in a plan (ids) are resolved within the plan; addresses may overlap between networks, never
//! within one; what the plan does not name is not there after [`NetworkDriver::apply`].

mod driver;
mod plan;

pub use driver::{NetworkCapabilities, NetworkDriver, NetworkReport, PortTraffic, Trouble};
pub use plan::{
    AddressPair, Attachment, Direction, ExternalGateway, FloatingIp, Forwarding, HostName, IpVersion, Ipv6Mode,
    METADATA_V4, METADATA_V6, NetworkPlan, NetworkSpec, PortAddress, PortSpec, RateLimit, RemotePort, RouterInterface,
    RouterSpec, RulePeer, RuleProtocol, SecurityGroupSpec, SecurityRule, Segment, StaticRoute, SubnetSpec,
};
