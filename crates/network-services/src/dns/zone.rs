//! The names of one network, both ways.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use hickory_proto::rr::Name;
use ipnet::IpNet;
use nephos_driver::network::NetworkSpec;

/// The names of one network, both ways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// What all names end with; `None` if the network has none, or none that DNS could carry.
    domain: Option<Name>,
    /// Ranges whose reverse names are this network's.
    ranges: Vec<IpNet>,
    /// By names in lower case.
    forward: HashMap<Name, BTreeSet<IpAddr>>,
    /// Names that are nothing themselves, and that others end with.
    inner: HashSet<Name>,
    reverse: HashMap<IpAddr, Vec<Name>>,
}

/// What a zone knows of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It is a host.
    Host(BTreeSet<IpAddr>),
    /// It is an address, and these are its names.
    Address(Vec<Name>),
    /// It is of this zone, and only leads to others.
    Empty { apex: Name },
    /// It is of this zone, and does not exist.
    Nothing { apex: Name },
    /// It is none of this network's.
    Foreign,
}

impl Zone {
    pub(crate) fn new(network: &NetworkSpec) -> Self {
        let domain = parse(&network.dns_domain).filter(|domain| !domain.is_root());
        let mut forward: HashMap<Name, BTreeSet<IpAddr>> = HashMap::new();
        let mut inner = HashSet::new();
        let mut reverse: HashMap<IpAddr, Vec<Name>> = HashMap::new();
        for host in &network.names {
            let Some(name) = domain.as_ref().and_then(|domain| parse(&host.name)?.append_domain(domain).ok()) else {
                continue;
            };
            let mut above = name.base_name();
            while domain.as_ref().is_some_and(|domain| domain.num_labels() < above.num_labels()) {
                above = inner.replace(above.clone()).unwrap_or(above).base_name();
            }
            forward.entry(name.clone()).or_default().extend(&host.addresses);
            for address in &host.addresses {
                let names = reverse.entry(*address).or_default();
                if !names.contains(&name) {
                    names.push(name.clone());
                }
            }
        }
        let ranges = network.subnets.iter().map(|subnet| subnet.cidr.net()).collect();
        Self { domain, ranges, forward, inner, reverse }
    }

    pub(super) fn look_up(&self, name: &Name) -> Known {
        let name = name.to_lowercase();
        if let Some(addresses) = self.forward.get(&name) {
            return Known::Host(addresses.clone());
        }
        if let Some(apex) = self.domain.clone().filter(|domain| domain.zone_of(&name)) {
            let leads_on = name == apex || self.inner.contains(&name);
            return if leads_on { Known::Empty { apex } } else { Known::Nothing { apex } };
        }
        self.look_up_address(&name)
    }

    fn look_up_address(&self, name: &Name) -> Known {
        let Ok(asked) = name.parse_arpa_name() else { return Known::Foreign };
        let Some(range) = self.ranges.iter().find(|range| range.contains(&asked)) else { return Known::Foreign };
        // The zone ends where a label does, inside the range: it must not speak for its neighbours.
        let bits_a_label = if asked.addr().is_ipv4() { 8 } else { 4 };
        let labels = range.prefix_len().div_ceil(bits_a_label) + 2;
        let apex = name.trim_to(usize::from(labels).min(usize::from(name.num_labels())));
        if asked.prefix_len() < asked.max_prefix_len() {
            return Known::Empty { apex };
        }
        match self.reverse.get(&asked.addr()) {
            Some(names) => Known::Address(names.clone()),
            None => Known::Nothing { apex },
        }
    }
}

/// A name as DNS writes it; `None` if it cannot.
fn parse(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text.trim_matches('.')).ok().filter(|_| !text.is_empty())?;
    name.set_fqdn(true);
    Some(name.to_lowercase())
}
