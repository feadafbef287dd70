//! Operations on networks: networks, subnets, ports, security groups.

mod networks;
mod port;
mod security_group;
mod subnet;
mod words;

pub use networks::{CreateNetwork, DeleteNetwork, ListNetworks, Network, SegmentType, ShowNetwork, UpdateNetwork};
pub use port::{CreatePort, DeletePort, ListPorts, Port, PortOwner, PortState, PortTrouble, ShowPort, UpdatePort};
pub use security_group::{
    CreateSecurityGroup, CreateSecurityGroupRule, DeleteSecurityGroup, DeleteSecurityGroupRule, Direction, IpVersion,
    ListSecurityGroupRules, ListSecurityGroups, SecurityGroup, SecurityGroupRule, ShowSecurityGroup,
    ShowSecurityGroupRule, UpdateSecurityGroup,
};
pub use subnet::{CreateSubnet, DeleteSubnet, Ipv6Mode, ListSubnets, ShowSubnet, Subnet, UpdateSubnet};
pub use words::{AddressPair, AddressRange, Host, PortAddress, PortRange, Route};
