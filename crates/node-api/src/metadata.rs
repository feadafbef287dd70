//! What a server is told about itself, by the metadata service of its node and by its configuration drive: plain data,
//! from which both make their documents, so that they say the same.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use nephos_driver::network::StaticRoute;
use nephos_types::{ImageId, MacAddress, NetworkId, PortId, ProjectId, SecurityGroupId, ServerId, SubnetId, Timestamp};
use serde::{Deserialize, Serialize};

/// All that one server is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMetadata {
    /// Who it is.
    pub id: ServerId,
    /// What people call it.
    pub name: String,
    /// Its host name, without a domain.
    pub host_name: String,
    /// What its host name is completed with, without dots at the ends; empty for nothing.
    #[serde(default)]
    pub domain: String,
    /// Whose it is.
    #[serde(default)]
    pub project: Option<ProjectId>,
    /// What it was made of.
    #[serde(default)]
    pub image: Option<ImageId>,
    /// Name of its flavor.
    #[serde(default)]
    pub flavor: String,
    /// When it was made.
    #[serde(default)]
    pub created: Timestamp,
    /// Region that it is in.
    pub region: String,
    /// Availability zone that it is in.
    pub zone: String,
    /// Its place among those that were made by one request, from 0.
    #[serde(default)]
    pub launch_index: u32,
    /// Keys whose owners may log in.
    #[serde(default)]
    pub keys: Vec<PublicKey>,
    /// What its owner noted down for it.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// What its owner wants done when it starts first.
    #[serde(default)]
    pub user_data: Option<String>,
    /// What the operator wants done in every server.
    #[serde(default)]
    pub vendor_data: Option<String>,
    /// Files that it is to have: path and content.
    #[serde(default)]
    pub files: Vec<(String, String)>,
    /// Its interfaces, in order.
    #[serde(default)]
    pub interfaces: Vec<InterfaceMetadata>,
    /// How it may ask.
    #[serde(default)]
    pub access: MetadataAccess,
}

/// A key whose owner may log in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// What its owner calls it.
    pub name: String,
    /// One line, as in `authorized_keys`.
    pub key: String,
}

/// How the metadata service may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataAccess {
    /// Whether it answers at all.
    pub enabled: bool,
    /// Whether it answers only who shows a token (version 2 of EC2's). Then OpenStack's side, too, since what is asked for
    /// there is the same.
    pub tokens_required: bool,
    /// How many hops the answer with a token may take: with 1 it does not get out of the guest.
    pub hop_limit: u8,
    /// Whether [`ServerMetadata::metadata`] is also shown as EC2's tags.
    pub tags: bool,
}

impl Default for MetadataAccess {
    fn default() -> Self {
        Self { enabled: true, tokens_required: false, hop_limit: 1, tags: false }
    }
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceMetadata {
    /// Its port.
    pub port: PortId,
    /// The network that it is on.
    pub network: NetworkId,
    /// Its MAC address.
    pub mac: MacAddress,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<AddressMetadata>,
    /// Addresses under which it is reached from outside (floating IPs).
    #[serde(default)]
    pub public_addresses: Vec<IpAddr>,
    /// Its security groups.
    #[serde(default)]
    pub security_groups: Vec<SecurityGroupMetadata>,
}

/// A security group, as far as its members are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroupMetadata {
    /// Which.
    pub id: SecurityGroupId,
    /// Its name.
    pub name: String,
}

/// One address of an interface, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressMetadata {
    /// The range that it is of.
    pub subnet: SubnetId,
    /// The address, with the length of its range's prefix.
    pub address: IpNet,
    /// How the guest comes to it.
    pub mode: AddressMode,
    /// The default gateway.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Further routes.
    #[serde(default)]
    pub routes: Vec<StaticRoute>,
    /// DNS servers.
    #[serde(default)]
    pub dns_servers: Vec<IpAddr>,
}

/// How a guest comes to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressMode {
    /// It configures it by itself, as it is written here.
    Static,
    /// By DHCP or, with IPv6, by stateful DHCPv6.
    Dhcp,
    /// By router advertisements.
    Slaac,
    /// By router advertisements; DNS by DHCPv6.
    DhcpStateless,
}
