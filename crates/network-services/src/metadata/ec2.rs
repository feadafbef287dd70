//! EC2's tree of names and values (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-metadata.html>).

use std::{collections::BTreeMap, net::IpAddr};

use nephos_node_api::metadata::{InterfaceMetadata, ServerMetadata};
use nephos_types::Id;
use serde_json::json;

use super::open_stack::full_name;

/// Versions that may be asked for. All are the same: later ones only add to what is there.
pub const VERSIONS: &[&str] = &[
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "latest",
];

/// A directory or a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Names, one a line.
    Directory(BTreeMap<String, Node>),
    /// `0=name` a line; below each number there is `openssh-key`.
    Keys(Vec<(String, String)>),
    /// A value.
    Value(String),
}

impl Node {
    fn directory(nodes: impl IntoIterator<Item = (&'static str, Self)>) -> Self {
        Self::Directory(nodes.into_iter().map(|(name, node)| (name.to_owned(), node)).collect())
    }

    fn lines(lines: impl IntoIterator<Item = impl ToString>) -> Self {
        Self::Value(lines.into_iter().map(|line| line.to_string()).collect::<Vec<_>>().join("\n"))
    }

    /// What is at this path, as it is served; `None`: nothing.
    #[must_use]
    pub fn get(&self, path: &[&str]) -> Option<String> {
        match (self, path) {
            (Self::Value(value), []) => Some(value.clone()),
            (Self::Value(_), _) => None,
            (Self::Directory(nodes), []) => {
                let line = |(name, node): (&String, &Self)| match node {
                    Self::Value(_) => name.clone(),
                    Self::Directory(_) | Self::Keys(_) => format!("{name}/"),
                };
                Some(nodes.iter().map(line).collect::<Vec<_>>().join("\n"))
            }
            (Self::Directory(nodes), [name, rest @ ..]) => nodes.get(*name)?.get(rest),
            (Self::Keys(keys), []) => {
                let line = |(place, (name, _)): (usize, &(String, String))| format!("{place}={name}");
                Some(keys.iter().enumerate().map(line).collect::<Vec<_>>().join("\n"))
            }
            (Self::Keys(keys), [place, rest @ ..]) => {
                // Some clients ask for `0=name` as it is listed.
                let place = place.split('=').next().unwrap_or_default();
                let (_, key) = keys.get(place.parse::<usize>().ok()?)?;
                match rest {
                    [] => Some("openssh-key".to_owned()),
                    ["openssh-key"] => Some(key.clone()),
                    _ => None,
                }
            }
        }
    }
}

/// An id in EC2's form, which follows from ours: a prefix and 17 digits.
#[must_use]
pub fn id(prefix: &str, id: impl Id) -> String {
    format!("{prefix}-0{:016x}", id.bits())
}

/// The number of an account, which follows from the project's id: 12 digits.
#[must_use]
pub fn account(server: &ServerMetadata) -> String {
    format!("{:012}", server.project.map_or(0, |project| project.bits() % 1_000_000_000_000))
}

fn first(server: &ServerMetadata, interface: Option<&InterfaceMetadata>, public: bool, ipv4: bool) -> Option<IpAddr> {
    let interfaces = interface.map_or(server.interfaces.as_slice(), std::slice::from_ref);
    let mut addresses = interfaces.iter().flat_map(|interface| {
        let own = interface.addresses.iter().map(|address| address.address.addr()).filter(move |_| !public);
        own.chain(interface.public_addresses.iter().copied().filter(move |_| public))
    });
    addresses.find(|address| address.is_ipv4() == ipv4)
}

/// What is below `meta-data`.
#[must_use]
pub fn meta_data(server: &ServerMetadata) -> Node {
    let value = |text: &str| Node::Value(text.to_owned());
    let instance = id("i", server.id);
    let name = full_name(server);
    let mut tree: Vec<(&'static str, Node)> = vec![
        (
            "ami-id",
            Node::Value(server.image.map_or_else(|| "ami-00000000000000000".to_owned(), |image| id("ami", image))),
        ),
        ("ami-launch-index", Node::Value(server.launch_index.to_string())),
        ("ami-manifest-path", value("(unknown)")),
        ("block-device-mapping", Node::directory([("ami", value("vda")), ("root", value("/dev/vda"))])),
        ("hostname", Node::Value(name.clone())),
        ("instance-action", value("none")),
        ("instance-id", Node::Value(instance)),
        ("instance-life-cycle", value("on-demand")),
        ("instance-type", Node::Value(server.flavor.clone())),
        ("local-hostname", Node::Value(name)),
        (
            "placement",
            Node::directory([
                ("availability-zone", Node::Value(server.zone.clone())),
                ("region", Node::Value(server.region.clone())),
            ]),
        ),
        ("profile", value("default-hvm")),
        ("reservation-id", Node::Value(id("r", server.id))),
    ];
    let mut groups: Vec<&str> = vec![];
    for group in server.interfaces.iter().flat_map(|interface| &interface.security_groups) {
        if !groups.contains(&group.name.as_str()) {
            groups.push(&group.name);
        }
    }
    tree.push(("security-groups", Node::lines(groups)));
    if !server.keys.is_empty() {
        tree.push((
            "public-keys",
            Node::Keys(server.keys.iter().map(|key| (key.name.clone(), key.key.clone())).collect()),
        ));
    }
    if let Some(interface) = server.interfaces.first() {
        let macs = server
            .interfaces
            .iter()
            .enumerate()
            .map(|(place, interface)| (interface.mac.to_string(), network(server, place, interface)));
        let macs = Node::Directory(macs.collect());
        tree.push(("mac", Node::Value(interface.mac.to_string())));
        tree.push(("network", Node::directory([("interfaces", Node::directory([("macs", macs)]))])));
    }
    for (name, public, ipv4) in [("local-ipv4", false, true), ("public-ipv4", true, true), ("ipv6", false, false)] {
        if let Some(address) = first(server, None, public, ipv4) {
            tree.push((name, Node::Value(address.to_string())));
        }
    }
    if server.access.tags && !server.metadata.is_empty() {
        // A name with a slash in it could not be asked for; EC2 refuses such tags.
        let tags = server.metadata.iter().filter(|(name, _)| !name.contains('/') && !name.is_empty());
        let tags = tags.map(|(name, text)| (name.clone(), Node::Value(text.clone()))).collect();
        tree.push(("tags", Node::directory([("instance", Node::Directory(tags))])));
    }
    Node::directory(tree)
}

fn network(server: &ServerMetadata, place: usize, interface: &InterfaceMetadata) -> Node {
    let of = |ipv4: bool| interface.addresses.iter().filter(move |address| address.address.addr().is_ipv4() == ipv4);
    let mut tree: Vec<(&'static str, Node)> = vec![
        ("device-number", Node::Value(place.to_string())),
        ("interface-id", Node::Value(id("eni", interface.port))),
        ("local-hostname", Node::Value(full_name(server))),
        ("mac", Node::Value(interface.mac.to_string())),
        ("owner-id", Node::Value(account(server))),
        ("security-group-ids", Node::lines(interface.security_groups.iter().map(|group| id("sg", group.id)))),
        ("security-groups", Node::lines(interface.security_groups.iter().map(|group| &group.name))),
        ("vpc-id", Node::Value(id("vpc", interface.network))),
    ];
    if let Some(address) = of(true).next().or_else(|| of(false).next()) {
        tree.push(("subnet-id", Node::Value(id("subnet", address.subnet))));
    }
    if let Some(address) = of(true).next() {
        let range = address.address.trunc();
        tree.push(("local-ipv4s", Node::lines(of(true).map(|address| address.address.addr()))));
        tree.push(("subnet-ipv4-cidr-block", Node::Value(range.to_string())));
        tree.push(("vpc-ipv4-cidr-block", Node::Value(range.to_string())));
        tree.push(("vpc-ipv4-cidr-blocks", Node::lines(of(true).map(|address| address.address.trunc()))));
    }
    if of(false).next().is_some() {
        tree.push(("ipv6s", Node::lines(of(false).map(|address| address.address.addr()))));
        for name in ["subnet-ipv6-cidr-blocks", "vpc-ipv6-cidr-blocks"] {
            tree.push((name, Node::lines(of(false).map(|address| address.address.trunc()))));
        }
    }
    let public: Vec<&IpAddr> = interface.public_addresses.iter().filter(|address| address.is_ipv4()).collect();
    if let (Some(outside), Some(inside)) = (public.first(), first(server, Some(interface), false, true)) {
        let associations =
            public.iter().map(|address| (address.to_string(), Node::Value(inside.to_string()))).collect();
        tree.push(("ipv4-associations", Node::Directory(associations)));
        tree.push(("public-hostname", Node::Value(outside.to_string())));
        tree.push(("public-ipv4s", Node::lines(public)));
    }
    Node::directory(tree)
}

/// What is below `dynamic`.
#[must_use]
pub fn dynamic(server: &ServerMetadata) -> Node {
    let text = |address: Option<IpAddr>| address.map(|address| address.to_string());
    let document = json!({
        "accountId": account(server),
        "architecture": std::env::consts::ARCH,
        "availabilityZone": server.zone,
        "billingProducts": null,
        "devpayProductCodes": null,
        "imageId": server.image.map(|image| id("ami", image)),
        "instanceId": id("i", server.id),
        "instanceType": server.flavor,
        "kernelId": null,
        "marketplaceProductCodes": null,
        "pendingTime": seconds(&server.created.to_string()),
        "privateIp": text(first(server, None, false, true)),
        "ramdiskId": null,
        "region": server.region,
        "version": "2017-09-30",
    });
    let document = Node::Value(format!("{document:#}"));
    Node::directory([("instance-identity", Node::directory([("document", document)]))])
}

/// Without the fraction, which EC2 does not write.
fn seconds(time: &str) -> String {
    match time.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => time.to_owned(),
    }
}
