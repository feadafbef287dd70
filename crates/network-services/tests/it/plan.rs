//! Plans and metadata to test with.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use futures_util::{FutureExt, future::BoxFuture};
use nephos_driver::network::{
    Attachment, HostName, NetworkPlan, NetworkSpec, PortAddress, PortSpec, Segment, SubnetSpec,
};
use nephos_network_services::MetadataSource;
use nephos_node_api::metadata::{InterfaceMetadata, PublicKey, ServerMetadata};
use nephos_types::{Error, Id, MacAddress, NetworkId, PortId, ServerId, SubnetId, Timestamp};

pub(crate) fn mac(number: u64) -> MacAddress {
    MacAddress::made_up(number)
}

pub(crate) fn subnet(number: u64, cidr: &str, gateway: Option<&str>, service: &str) -> SubnetSpec {
    SubnetSpec {
        id: SubnetId::from_bits(number),
        cidr: cidr.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        service: Some(service.parse().unwrap()),
        dhcp: true,
        dns_servers: vec![],
        host_routes: vec![],
        ipv6_mode: None,
    }
}

pub(crate) fn network(number: u64, domain: &str, subnets: Vec<SubnetSpec>, names: &[(&str, &[&str])]) -> NetworkSpec {
    let host = |(name, addresses): &(&str, &[&str])| HostName {
        name: (*name).to_owned(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    };
    NetworkSpec {
        id: NetworkId::from_bits(number),
        segment: Segment::Vxlan { vni: u32::try_from(number).unwrap() },
        mtu: 1450,
        subnets,
        dns_domain: domain.to_owned(),
        names: names.iter().map(host).collect(),
        remote: vec![],
    }
}

pub(crate) fn port(
    number: u64,
    network: &NetworkSpec,
    mac: MacAddress,
    host_name: &str,
    addresses: &[&str],
) -> PortSpec {
    let of = |address: &&str| {
        let address: IpAddr = address.parse().unwrap();
        let subnet = network.subnets.iter().find(|subnet| subnet.cidr.contains(address)).unwrap().id;
        PortAddress { subnet, address }
    };
    PortSpec {
        id: PortId::from_bits(number),
        network: network.id,
        server: ServerId::from_bits(number),
        host_name: host_name.to_owned(),
        mac,
        addresses: addresses.iter().map(of).collect(),
        attachment: Attachment::Tap,
        allowed_pairs: vec![],
        port_security: true,
        security_groups: vec![],
        up: true,
        send_limit: None,
        receive_limit: None,
    }
}

pub(crate) fn plan(networks: Vec<NetworkSpec>, ports: Vec<PortSpec>) -> NetworkPlan {
    NetworkPlan { networks, ports, ..NetworkPlan::default() }
}

/// Tells servers what the test says.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) servers: Mutex<HashMap<ServerId, Arc<ServerMetadata>>>,
    pub(crate) passwords: Mutex<HashMap<ServerId, String>>,
}

impl Told {
    pub(crate) fn with(servers: impl IntoIterator<Item = ServerMetadata>) -> Arc<Self> {
        let servers = servers.into_iter().map(|server| (server.id, Arc::new(server))).collect();
        Arc::new(Self { servers: Mutex::new(servers), passwords: Mutex::default() })
    }
}

impl MetadataSource for Told {
    fn server(&self, server: ServerId) -> Option<Arc<ServerMetadata>> {
        self.servers.lock().unwrap().get(&server).cloned()
    }

    fn password(&self, server: ServerId) -> BoxFuture<'_, Result<Option<String>, Error>> {
        let password = self.passwords.lock().unwrap().get(&server).cloned();
        async move { Ok(password) }.boxed()
    }

    fn set_password(&self, server: ServerId, password: String) -> BoxFuture<'_, Result<bool, Error>> {
        let mut passwords = self.passwords.lock().unwrap();
        let first = !passwords.contains_key(&server);
        if first {
            passwords.insert(server, password);
        }
        async move { Ok(first) }.boxed()
    }
}

pub(crate) const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7oAuEkRlGcVTSdqDFZO2uuhkjK4lIcjWNe6SAtmgEh me@home";

pub(crate) fn server(number: u64, name: &str) -> ServerMetadata {
    ServerMetadata {
        id: ServerId::from_bits(number),
        name: name.to_owned(),
        host_name: name.to_owned(),
        domain: "demo.internal".to_owned(),
        project: None,
        image: None,
        flavor: "small".to_owned(),
        created: Timestamp::from_micros(1_700_000_000_000_000),
        region: "home".to_owned(),
        zone: "nova".to_owned(),
        launch_index: 0,
        keys: vec![PublicKey { name: "laptop".to_owned(), key: KEY.to_owned() }],
        metadata: [("role".to_owned(), "web".to_owned())].into(),
        user_data: Some("#cloud-config\nruncmd: [true]\n".to_owned()),
        vendor_data: None,
        files: vec![("/etc/motd".to_owned(), "hello\n".to_owned())],
        interfaces: vec![InterfaceMetadata {
            port: PortId::from_bits(number),
            network: NetworkId::from_bits(1),
            mac: mac(number),
            mtu: 1450,
            addresses: vec![],
            public_addresses: vec![],
            security_groups: vec![],
        }],
        access: Default::default(),
    }
}
