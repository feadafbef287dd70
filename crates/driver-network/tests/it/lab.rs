//! Machines, the wire between them, and the guests on them.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nephos_driver::network::{
    Attachment, Direction, ExternalGateway, IpVersion, NetworkDriver, NetworkPlan, NetworkSpec, PortAddress, PortSpec,
    RouterInterface, RouterSpec, RulePeer, RuleProtocol, SecurityGroupSpec, SecurityRule, Segment, SubnetSpec,
};
use nephos_driver_network::{LinuxNetworks, Settings};
use nephos_host::netns;
use nephos_types::{
    MacAddress, NetworkId, NodeId, PortId, RouterId, SecurityGroupId, SecurityGroupRuleId, ServerId, SubnetId,
};

/// Several machines on one wire.
pub(crate) struct Lab {
    folder: tempfile::TempDir,
}

/// A machine.
pub(crate) struct Machine {
    pub(crate) node: NodeId,
    pub(crate) settings: Settings,
    pub(crate) driver: LinuxNetworks,
    pub(crate) plan: NetworkPlan,
    pub(crate) path: PathBuf,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap() };
        netns::create(&lab.path("wire")).unwrap();
        lab.run("wire", "ip link add wire type bridge");
        lab.run("wire", "ip link set wire up");
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A machine that has 10.200.0.`number`.
    pub(crate) fn machine(&self, number: u8) -> Machine {
        let name = format!("machine{number}");
        let path = self.path(&name);
        netns::create(&path).unwrap();
        self.run("wire", &format!("ip link add u{number} type veth peer name wire netns {}", self.of(&path)));
        self.run("wire", &format!("ip link set u{number} master wire up"));
        // Nobody else has these addresses; waiting whether somebody does would change what is seen of the machine.
        self.run(&name, "ip link set lo up; sysctl -q net.ipv6.conf.wire.accept_dad=0");
        self.run(&name, &format!("ip addr add 10.200.0.{number}/24 dev wire"));
        self.run(&name, "ip link set wire up");
        let settings = Settings {
            folder: self.folder.path().join(format!("spaces{number}")),
            machine: Some(path.clone()),
            underlay: Some(IpAddr::from([10, 200, 0, number])),
            ..Settings::new("cloud")
        };
        Machine {
            node: NodeId::new(),
            driver: LinuxNetworks::open(settings.clone()).unwrap(),
            settings,
            plan: NetworkPlan::default(),
            path,
        }
    }

    /// `ip` knows namespaces by names in one folder, or by processes; a path is reached from there.
    fn of(&self, path: &Path) -> String {
        format!("/../..{}", path.display())
    }

    pub(crate) fn run(&self, name: &str, command: &str) -> String {
        run(&self.path(name), command)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        forget(self.folder.path());
    }
}

/// Lets go of all namespaces under a folder.
fn forget(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            forget(&path);
        } else if netns::is_kept(&path) {
            netns::remove(&path).ok();
        }
    }
}

/// What a command says that is run in a namespace.
pub(crate) fn try_run(namespace: &Path, command: &str) -> Output {
    Command::new("nsenter")
        .arg(format!("--net={}", namespace.display()))
        .args(["sh", "-c", command])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub(crate) fn run(namespace: &Path, command: &str) -> String {
    let output = try_run(namespace, command);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Whether an address answers. One that should gets more time.
pub(crate) fn reaches(namespace: &Path, to: &str) -> bool {
    try_run(namespace, &format!("ping -n -i 0.2 -c 1 -w 60 {to}")).status.success()
}

/// Whether nothing comes back, several times.
pub(crate) fn is_cut_off(namespace: &Path, to: &str) -> bool {
    !try_run(namespace, &format!("ping -n -i 0.2 -c 3 -W 1 {to}")).status.success()
}

/// A network on an overlay, of one range.
pub(crate) fn network(vni: u32, cidr: &str) -> NetworkSpec {
    let cidr: nephos_types::Cidr = cidr.parse().unwrap();
    let mut hosts = cidr.net().hosts();
    let gateway = hosts.next();
    let service = hosts.next();
    NetworkSpec {
        id: NetworkId::new(),
        segment: Segment::Vxlan { vni },
        mtu: 1450,
        subnets: vec![SubnetSpec {
            id: SubnetId::new(),
            cidr,
            gateway,
            service,
            dhcp: true,
            dns_servers: vec![],
            host_routes: vec![],
            ipv6_mode: None,
        }],
        dns_domain: "test.internal".into(),
        names: vec![],
        remote: vec![],
    }
}

/// A rule for all of a protocol.
pub(crate) fn rule(direction: Direction, protocol: RuleProtocol, peer: RulePeer) -> SecurityRule {
    SecurityRule { id: SecurityGroupRuleId::new(), direction, version: IpVersion::V4, protocol, peer }
}

/// A group that lets everything out, and in what these rules do.
pub(crate) fn group(mut rules: Vec<SecurityRule>) -> SecurityGroupSpec {
    rules.push(rule(Direction::Egress, RuleProtocol::Any, RulePeer::Any));
    rules.push(SecurityRule { version: IpVersion::V6, ..rule(Direction::Egress, RuleProtocol::Any, RulePeer::Any) });
    SecurityGroupSpec { id: SecurityGroupId::new(), rules, members: vec![] }
}

pub(crate) fn ping_from_anywhere() -> SecurityRule {
    rule(Direction::Ingress, RuleProtocol::Icmp { kind: None, code: None }, RulePeer::Any)
}

impl Machine {
    /// A guest with an address on a network, in a namespace of its own.
    pub(crate) fn guest(&mut self, network: &NetworkSpec, address: &str, groups: &[&SecurityGroupSpec]) -> PathBuf {
        let id = PortId::new();
        let path = self.settings.folder.join(format!("guest-{id}"));
        if !self.plan.networks.iter().any(|known| known.id == network.id) {
            self.plan.networks.push(network.clone());
        }
        for group in groups {
            if !self.plan.security_groups.iter().any(|known| known.id == group.id) {
                self.plan.security_groups.push((*group).clone());
            }
        }
        let addresses = address
            .split_whitespace()
            .map(|address| {
                let address: IpAddr = address.parse().unwrap();
                let subnet = network.subnets.iter().find(|subnet| subnet.cidr.contains(address)).unwrap().id;
                PortAddress { subnet, address }
            })
            .collect();
        self.plan.ports.push(PortSpec {
            id,
            network: network.id,
            server: ServerId::new(),
            host_name: "guest".into(),
            mac: made_up_mac(),
            addresses,
            attachment: Attachment::Namespace { path: path.clone(), interface: "eth0".into() },
            allowed_pairs: vec![],
            port_security: true,
            security_groups: groups.iter().map(|group| group.id).collect(),
            up: true,
            send_limit: None,
            receive_limit: None,
        });
        path
    }

    pub(crate) async fn apply(&self) {
        let report = self.driver.apply(&self.plan).await.unwrap();
        assert!(report.is_clean(), "{report:#?}");
    }

    /// Everything that an administrator of the machine itself would see.
    pub(crate) fn state(&self) -> String {
        run(
            &self.path,
            "ip -d link; ip addr; ip route show table all | sort; ip -6 route show table all | sort; ip rule; ip neigh show nud permanent; \
             nft list ruleset; cat /proc/sys/net/ipv4/ip_forward; ls /sys/class/net | wc -l",
        )
    }

    pub(crate) fn group_of(&mut self, group: &SecurityGroupSpec) -> &mut SecurityGroupSpec {
        self.plan.security_groups.iter_mut().find(|known| known.id == group.id).unwrap()
    }
}

/// Tells machines of each other's ports.
pub(crate) fn introduce(machines: &mut [&mut Machine]) {
    let everywhere: Vec<_> = machines
        .iter()
        .flat_map(|machine| {
            machine.plan.ports.iter().map(|port| (machine.node, machine.settings.underlay, port.clone()))
        })
        .collect();
    for machine in machines {
        let node = machine.node;
        for network in &mut machine.plan.networks {
            network.remote = everywhere
                .iter()
                .filter(|(on, _, port)| *on != node && port.network == network.id)
                .map(|(on, at, port)| nephos_driver::network::RemotePort {
                    mac: port.mac,
                    addresses: port.addresses.iter().map(|address| address.address).collect(),
                    node: *on,
                    at: at.unwrap(),
                })
                .collect();
        }
    }
}

/// A network of the machine itself, of which it is the gateway.
pub(crate) fn external(cidr: &str) -> NetworkSpec {
    NetworkSpec { segment: Segment::Host, mtu: 1500, ..network(0, cidr) }
}

/// Another one each time.
fn made_up_mac() -> MacAddress {
    static MADE: AtomicU64 = AtomicU64::new(1);
    MacAddress::made_up(MADE.fetch_add(1, Ordering::Relaxed))
}

/// A router's place on a network.
pub(crate) fn place(network: &NetworkSpec, address: &str) -> RouterInterface {
    RouterInterface {
        port: PortId::new(),
        network: network.id,
        mac: made_up_mac(),
        addresses: vec![address.parse().unwrap()],
        advertise: vec![],
    }
}

/// A router of these networks; the first is outside.
pub(crate) fn router(outside: (&NetworkSpec, &str), inside: &[(&NetworkSpec, &str)]) -> RouterSpec {
    RouterSpec {
        id: RouterId::new(),
        up: true,
        interfaces: inside.iter().map(|(network, address)| place(network, address)).collect(),
        gateway: Some(ExternalGateway {
            interface: place(outside.0, outside.1),
            next_hops: outside.0.subnets.iter().filter_map(|subnet| subnet.gateway).collect(),
            snat: true,
        }),
        routes: vec![],
        floating_ips: vec![],
    }
}

/// Somebody who listens in a namespace.
pub(crate) fn listen(namespace: &Path, port: u16) -> TcpListener {
    netns::inside(netns::open(namespace).unwrap(), || TcpListener::bind(("0.0.0.0", port))).unwrap()
}

/// A connection from a namespace.
pub(crate) fn connect(namespace: &Path, to: &str, limit: Duration) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    netns::inside(netns::open(namespace).unwrap(), || TcpStream::connect_timeout(&to, limit))
}

pub(crate) const PATIENT: Duration = Duration::from_secs(60);
pub(crate) const IMPATIENT: Duration = Duration::from_secs(2);

/// Whether what is written at one end comes out at the other.
pub(crate) fn carries(mut from: &TcpStream, mut to: &TcpStream, limit: Duration) -> bool {
    to.set_read_timeout(Some(limit)).unwrap();
    from.write_all(b"x").unwrap();
    matches!(to.read(&mut [0]), Ok(1))
}
