//! OpenStack's documents (<https://docs.openstack.org/nova/latest/user/metadata.html>), for the metadata service and for
//! configuration drives.

use std::net::IpAddr;

use ipnet::IpNet;
use nephos_node_api::metadata::{AddressMetadata, AddressMode, InterfaceMetadata, ServerMetadata};
use serde_json::{Map, Value, json};

/// Versions whose documents are understood. All are the same: later ones only add to what is there.
pub const VERSIONS: &[&str] = &[
    "2012-08-10",
    "2013-04-04",
    "2013-10-17",
    "2015-10-15",
    "2016-06-30",
    "2016-10-06",
    "2017-02-22",
    "2018-08-27",
    "2020-10-14",
    "latest",
];

/// Who the server is, its keys, and which files it is to have. `seed`: random bytes for its kernel, in base64.
#[must_use]
pub fn meta_data(server: &ServerMetadata, seed: Option<&str>) -> Value {
    let public_keys: Map<String, Value> =
        server.keys.iter().map(|key| (key.name.clone(), Value::from(key.key.as_str()))).collect();
    let keys: Vec<Value> =
        server.keys.iter().map(|key| json!({ "data": key.key, "name": key.name, "type": "ssh" })).collect();
    let files: Vec<Value> = server
        .files
        .iter()
        .enumerate()
        .map(|(place, (path, _))| json!({ "content_path": format!("/{}", content_path(place)), "path": path }))
        .collect();
    let mut document = json!({
        "availability_zone": server.zone,
        "dedicated_cpus": [],
        "devices": [],
        "files": files,
        "hostname": full_name(server),
        "keys": keys,
        "launch_index": server.launch_index,
        "meta": server.metadata,
        "name": server.name,
        "project_id": server.project,
        "public_keys": public_keys,
        "uuid": server.id,
    });
    if let (Some(seed), Some(fields)) = (seed, document.as_object_mut()) {
        fields.insert("random_seed".to_owned(), seed.into());
    }
    document
}

/// Where the content of the file in this place is, below `openstack/`.
#[must_use]
pub fn content_path(place: usize) -> String {
    format!("content/{place:04}")
}

/// The host name with its domain.
#[must_use]
pub fn full_name(server: &ServerMetadata) -> String {
    if server.domain.is_empty() { server.host_name.clone() } else { format!("{}.{}", server.host_name, server.domain) }
}

/// What the operator wants done, as cloud-init takes it out of what may be for other software, too.
#[must_use]
pub fn vendor_data(server: &ServerMetadata) -> Value {
    server.vendor_data.as_ref().map_or_else(|| json!({}), |content| json!({ "cloud-init": content }))
}

/// Its interfaces, and how they are configured.
#[must_use]
pub fn network_data(server: &ServerMetadata) -> Value {
    let links: Vec<Value> = server
        .interfaces
        .iter()
        .enumerate()
        .map(|(place, interface)| {
            json!({
                "ethernet_mac_address": interface.mac,
                "id": format!("nic{place}"),
                "mtu": interface.mtu,
                "type": "phy",
                "vif_id": interface.port,
            })
        })
        .collect();
    let networks: Vec<Value> =
        server.interfaces.iter().enumerate().flat_map(|(place, interface)| networks(place, interface)).collect();
    let mut servers: Vec<IpAddr> = vec![];
    for address in server.interfaces.iter().flat_map(|interface| &interface.addresses) {
        for server in &address.dns_servers {
            if !servers.contains(server) {
                servers.push(*server);
            }
        }
    }
    json!({ "links": links, "networks": networks, "services": services(&servers) })
}

fn services(servers: &[IpAddr]) -> Vec<Value> {
    servers.iter().map(|address| json!({ "type": "dns", "address": address })).collect()
}

fn networks(link: usize, interface: &InterfaceMetadata) -> Vec<Value> {
    interface.addresses.iter().enumerate().map(|(place, address)| network(link, place, interface, address)).collect()
}

fn network(link: usize, place: usize, interface: &InterfaceMetadata, address: &AddressMetadata) -> Value {
    let kind = match (address.mode, address.address) {
        (AddressMode::Static, IpNet::V4(_)) => "ipv4",
        (AddressMode::Static, IpNet::V6(_)) => "ipv6",
        (_, IpNet::V4(_)) => "ipv4_dhcp",
        (AddressMode::Dhcp, IpNet::V6(_)) => "ipv6_dhcpv6-stateful",
        (AddressMode::DhcpStateless, IpNet::V6(_)) => "ipv6_dhcpv6-stateless",
        (AddressMode::Slaac, IpNet::V6(_)) => "ipv6_slaac",
    };
    let mut network = Map::new();
    let mut put = |name: &str, value: Value| network.insert(name.to_owned(), value);
    put("id", format!("network{link}-{place}").into());
    put("link", format!("nic{link}").into());
    put("network_id", json!(interface.network));
    put("type", kind.into());
    // Whoever is told by DHCP takes everything from there; written here as well it would be configured twice.
    if address.mode == AddressMode::Static {
        let mut routes: Vec<Value> = vec![];
        let mut route = |to: IpNet, by: IpAddr| {
            routes.push(json!({ "network": to.network(), "netmask": to.netmask(), "gateway": by }));
        };
        if let Some(gateway) = address.gateway {
            let everything = if gateway.is_ipv4() {
                IpNet::from(ipnet::Ipv4Net::default())
            } else {
                ipnet::Ipv6Net::default().into()
            };
            route(everything, gateway);
        }
        for further in &address.routes {
            route(further.destination.net(), further.next_hop);
        }
        put("ip_address", address.address.addr().to_string().into());
        put("netmask", address.address.netmask().to_string().into());
        put("routes", routes.into());
        put("services", services(&address.dns_servers).into());
    }
    network.into()
}
