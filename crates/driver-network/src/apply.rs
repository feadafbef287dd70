//! One pass over everything: from what is to what should be.
//!
//! The order keeps two promises. Nothing passes before its rules are there: devices are made first, then the packet filter,
//! and only then devices are joined to bridges. And what stays is not touched: each step reads first.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nephos_driver::network::{
    NetworkCapabilities, NetworkPlan, NetworkReport, NetworkSpec, PortSpec, PortTraffic, SecurityGroupSpec, Segment,
    Trouble,
};
use nephos_host::netns;
use nephos_types::{Error, NetworkId, PortId};

use crate::{
    connections,
    driver::{Settings, failed, find_program, unavailable},
    filter::{self, Committed},
    forwarding, limits,
    machine::Machine,
    names::{self, Places, short},
    netlink::{Changes, Links, Space},
    network, port,
    router::{self, Routers},
};

/// The node's part of the kernel.
pub(crate) struct Node {
    settings: Settings,
    places: Places,
    changes: Changes,
    nft: PathBuf,
    machine: Space,
    fabric: Option<Fabric>,
    routers: Routers,
    gateway: Machine,
    vlan: bool,
}

/// The namespace of all bridges.
struct Fabric {
    space: Space,
    rules: Committed,
    /// What the rules were made of, once they hold for all connections.
    basis: Option<Basis>,
    /// Which one it is: somebody may have made another.
    number: u64,
}

/// What the rules for servers follow from.
#[derive(PartialEq)]
struct Basis {
    ports: Vec<PortSpec>,
    groups: Vec<SecurityGroupSpec>,
    zones: BTreeMap<NetworkId, u16>,
    served: BTreeSet<(NetworkId, IpAddr)>,
}

/// Where guests are served.
fn served(plan: &NetworkPlan) -> BTreeSet<(NetworkId, IpAddr)> {
    let services = |network: &NetworkSpec| {
        let id = network.id;
        network.subnets.iter().filter_map(|subnet| subnet.service).map(move |address| (id, address)).collect::<Vec<_>>()
    };
    plan.networks.iter().flat_map(services).collect()
}

impl Node {
    pub(crate) fn open(settings: Settings, places: Places, changes: Changes) -> Result<Self, Error> {
        let nft = find_program(&settings.nft).ok_or_else(|| {
            unavailable(format!("the program `{}` is missing; install nftables", settings.nft.display()))
        })?;
        let mut machine = match &settings.machine {
            Some(path) => Space::open(path, &changes),
            None => Space::own(&changes),
        }
        .map_err(|error| failed("The machine's network namespace cannot be entered", error))?;
        let capable = netns::probe();
        capable.map_err(|error| unavailable(format!("network namespaces cannot be made: {error}; run as root")))?;
        bridges_are_filtered(&machine)?;
        let vlan = machine.knows_vlan();
        Ok(Self {
            settings,
            places,
            changes,
            nft,
            machine,
            fabric: None,
            routers: Routers::default(),
            gateway: Machine::default(),
            vlan,
        })
    }

    pub(crate) fn capabilities(&mut self) -> NetworkCapabilities {
        NetworkCapabilities {
            underlay: self.settings.underlay,
            physical: self.settings.physical.keys().cloned().collect(),
            vlan: self.vlan,
            host: self.settings.host,
            underlay_mtu: self.underlay_mtu().unwrap_or(1500),
        }
    }

    /// The MTU of the interface that has the address at which other nodes reach this one.
    fn underlay_mtu(&mut self) -> Option<u32> {
        let underlay = self.settings.underlay?;
        let addresses = self.machine.addresses().ok()?;
        let device = addresses.iter().find(|address| address.address.addr() == underlay)?.device;
        self.machine.links().ok()?.values().find(|link| link.index == device).map(|link| link.mtu)
    }

    /// The namespace of bridges, made if it is not there.
    fn fabric(&mut self) -> io::Result<Fabric> {
        let path = self.places.fabric();
        if !netns::is_kept(&path) {
            self.changes.one();
            netns::create(&path)?;
        }
        let number = netns::number(&netns::open(&path)?)?;
        if let Some(fabric) = self.fabric.take().filter(|fabric| fabric.number == number) {
            return Ok(fabric);
        }
        let mut space = Space::open(&path, &self.changes)?;
        space.sysctl(&[
            // Bridges have no addresses, and give themselves none.
            ("ipv6/conf/default/addr_gen_mode".into(), "1"),
            ("ipv6/conf/default/accept_ra".into(), "0"),
            ("bridge/bridge-nf-call-iptables".into(), "1"),
            ("bridge/bridge-nf-call-ip6tables".into(), "1"),
            ("bridge/bridge-nf-call-arptables".into(), "0"),
        ])?;
        if let Some(loopback) = space.link("lo")?.filter(|link| !link.up) {
            space.set_up(loopback.index, true)?;
        }
        Ok(Fabric { space, rules: Committed::default(), basis: None, number })
    }

    pub(crate) fn apply(&mut self, plan: &NetworkPlan) -> Result<NetworkReport, Error> {
        let mut fabric = self.fabric().map_err(|error| failed("The namespace of bridges cannot be made", error))?;
        let report = self.apply_in(&mut fabric, plan);
        self.fabric = Some(fabric);
        report.map_err(|error| failed("The node's networks cannot be made as planned", error))
    }

    fn apply_in(&mut self, fabric: &mut Fabric, plan: &NetworkPlan) -> io::Result<NetworkReport> {
        let mut report = NetworkReport::default();
        let mut links = fabric.space.links()?;
        self.remove_unplanned(&mut fabric.space, &mut links, plan)?;
        let networks: BTreeMap<NetworkId, &NetworkSpec> =
            plan.networks.iter().map(|network| (network.id, network)).collect();
        let mut zones = BTreeMap::new();
        for spec in &plan.networks {
            match network::ensure_bridge(&mut fabric.space, &mut links, spec) {
                Ok(zone) => drop(zones.insert(spec.id, zone)),
                Err(error) => report.networks.push(trouble(spec.id, "The bridge cannot be made", error)),
            }
        }
        let mut ports = vec![];
        for spec in &plan.ports {
            let made = match networks.get(&spec.network) {
                Some(network) => port::ensure(&mut fabric.space, &mut links, spec, network).map(|()| *network),
                None => Err(io::Error::other("the plan does not have the port's network")),
            };
            match made {
                Ok(network) => ports.push((spec, network)),
                Err(error) => report.ports.push(trouble(spec.id, "The port cannot be made", error)),
            }
        }
        // What rules are made of: where that is as it was, and the rules too, nothing has to be thought through again.
        let basis =
            Basis { ports: plan.ports.clone(), groups: plan.security_groups.clone(), zones, served: served(plan) };
        let same = fabric.basis.as_ref() == Some(&basis) && fabric.rules.holds(&mut fabric.space)?;
        if !same {
            fabric.basis = None;
            filter::commit(&mut fabric.space, &self.nft, &mut fabric.rules, filter::guests(plan, &basis.zones))?;
            connections::judge(&mut fabric.space, plan, &basis.zones)?;
            fabric.basis = Some(basis);
        }
        let shaping = fabric.space.shaping()?;
        for (spec, network) in ports {
            let joined = limits::ensure(&mut fabric.space, &mut links, &shaping, spec, network.mtu)
                .and_then(|()| port::join(&mut fabric.space, &mut links, spec, network, &self.changes));
            if let Err(error) = joined {
                report.ports.push(trouble(spec.id, "The port cannot be joined to its network", error));
            }
        }
        for spec in &plan.networks {
            let served = network::ensure_service(&mut fabric.space, &mut links, &self.places, spec, &self.changes);
            let joined =
                network::ensure_segment(&mut self.machine, &mut fabric.space, &mut links, &self.settings, spec);
            if let Err(error) = served {
                report.networks.push(trouble(spec.id, "The network's services cannot be reached", error));
            } else if let Err(error) = joined {
                report.networks.push(trouble(spec.id, "The network cannot be joined to what is outside", error));
            }
        }
        if let Err(error) = self.gateway.ensure(&mut self.machine, &self.nft, &self.places.name, plan) {
            let behind = plan.networks.iter().find(|network| network.segment == Segment::Host);
            let Some(spec) = behind else { return Err(error) };
            report.networks.push(trouble(spec.id, "The machine cannot be the network's gateway", error));
        }
        for spec in &plan.routers {
            let made = self.routers.ensure(&mut fabric.space, &mut links, &self.places, &self.nft, &networks, spec);
            if let Err(error) = made {
                report.routers.push(trouble(spec.id, "The router cannot be made", error));
            }
        }
        for (device, error) in forwarding::ensure(&mut fabric.space, &links, plan)? {
            let bridge = links.values().find(|link| link.index == device).map(|link| link.master.unwrap_or(device));
            let of = |spec: &&NetworkSpec| links.get(&names::bridge(spec.id)).map(|link| link.index) == bridge;
            if let Some(spec) = plan.networks.iter().find(of) {
                report.networks.push(trouble(
                    spec.id,
                    "The network's ports on other nodes cannot be written down",
                    error,
                ));
            }
        }
        Ok(report)
    }

    /// Removes devices and namespaces that no plan names any more.
    fn remove_unplanned(&mut self, fabric: &mut Space, links: &mut Links, plan: &NetworkPlan) -> io::Result<()> {
        let mut planned: BTreeSet<String> = plan.networks.iter().flat_map(network::devices).collect();
        planned.extend(plan.ports.iter().flat_map(|spec| {
            let detour = spec.send_limit.map(|_| names::detour(spec.id));
            [Some(names::port(spec.id)), detour].into_iter().flatten()
        }));
        planned.extend(
            plan.routers.iter().flat_map(router::interfaces).map(|interface| names::router_port(interface.port)),
        );
        let gone: Vec<String> =
            links.keys().filter(|name| *name != "lo" && !planned.contains(*name)).cloned().collect();
        for name in gone {
            let Some(link) = links.remove(&name) else { continue };
            if link.name.starts_with(names::TAKEN) {
                network::give_back(&mut self.machine, fabric, &link)?;
            } else if link.name.starts_with('i') {
                // What goes round by it has to stop first.
                if let Some(port) = links.get(&link.name.replacen('i', "p", 1)) {
                    fabric.undivert(port.index)?;
                }
                fabric.delete_link(link.index)?;
            } else {
                port::remove(fabric, &link)?;
            }
        }
        let networks: BTreeSet<String> = plan.networks.iter().map(|network| short(network.id)).collect();
        let routers: BTreeSet<String> = plan.routers.iter().map(|router| short(router.id)).collect();
        for (kind, planned) in [('s', networks), ('r', routers)] {
            for (short, path) in self.places.found(kind)? {
                if !planned.contains(&short) {
                    self.changes.one();
                    netns::remove(&path)?;
                }
            }
        }
        self.routers.keep(&plan.routers.iter().map(|router| router.id).collect());
        Ok(())
    }

    pub(crate) fn traffic(&mut self, port: PortId) -> Result<PortTraffic, Error> {
        let not_found = || Error::not_found("port", port);
        let fabric = self.fabric.as_mut().ok_or_else(not_found)?;
        let link =
            fabric.space.link(&names::port(port)).map_err(|error| failed("The port cannot be looked at", error))?;
        let traffic = link.and_then(|link| link.traffic).ok_or_else(not_found)?;
        // What the bridge receives from the port, the server has sent.
        Ok(PortTraffic {
            received_bytes: traffic.tx_bytes,
            received_packets: traffic.tx_packets,
            sent_bytes: traffic.rx_bytes,
            sent_packets: traffic.rx_packets,
        })
    }

    pub(crate) fn remove_all(&mut self) -> Result<(), Error> {
        self.remove_everything().map_err(|error| failed("The node's networks cannot be removed", error))
    }

    fn remove_everything(&mut self) -> io::Result<()> {
        let path = self.places.fabric();
        if netns::is_kept(&path) {
            let mut fabric = self.fabric()?;
            for link in fabric.space.links()?.values() {
                if link.name.starts_with(names::TAKEN) {
                    network::give_back(&mut self.machine, &mut fabric.space, link)?;
                } else if link.name.starts_with(names::OUTWARD) {
                    fabric.space.delete_link(link.index)?;
                } else if let Some(path) = port::namespace(link).filter(|_| link.name.starts_with(names::PORT)) {
                    netns::remove(&path)?;
                }
            }
            // What is left ends with its namespace, all at once.
            self.remove_unplanned(&mut fabric.space, &mut Links::new(), &NetworkPlan::default())?;
        }
        self.fabric = None;
        self.gateway.ensure(&mut self.machine, &self.nft, &self.places.name, &NetworkPlan::default())?;
        self.changes.one();
        netns::remove(&path)
    }
}

/// Bridged packets have to be seen where connections are followed; on some kernels that is a module.
fn bridges_are_filtered(machine: &Space) -> Result<(), Error> {
    let there = || machine.inside(|| Ok(Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()));
    let there = || there().unwrap_or(false);
    if !there() {
        // Whether it worked is seen by what is there then.
        Command::new("modprobe").arg("br_netfilter").stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
    }
    if there() { Ok(()) } else { Err(unavailable("the kernel does not have br_netfilter: `modprobe br_netfilter`")) }
}

fn trouble<Id>(id: Id, title: &str, error: io::Error) -> Trouble<Id> {
    Trouble { id, error: failed(title, error) }
}
