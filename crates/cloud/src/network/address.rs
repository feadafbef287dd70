//! Addresses of ports: which are free, and who has them.
//!
//! The claim `ip/<network>/<address>` is what makes an address one port's. Free ones are found by going round from where the
//! last one was found, so that callers at the same time look at different ones, and an address that was given back is not
//! given out again at once.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;
use nephos_ops::network::{AddressRange, Ipv6Mode, PortAddress};
use nephos_store::{Bound, Record, Store, Transaction};
use nephos_types::{Error, ErrorKind, MacAddress, NetworkId, Result, SubnetId};

use super::kinds::{Fixed, Network, Subnet};

/// How many addresses are looked at in search of a free one.
const MOST_LOOKS: u128 = 1 << 17;

/// Where the search for a free address of a subnet goes on.
#[derive(Default)]
pub(super) struct Cursors(Mutex<HashMap<SubnetId, u128>>);

/// The claim that makes an address somebody's.
pub(crate) fn claim(network: NetworkId, address: IpAddr) -> String {
    format!("ip/{network}/{address}")
}

/// The counter of a subnet's addresses that are in use.
pub(super) fn used(subnet: SubnetId) -> String {
    format!("subnet/{subnet}/addresses")
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

/// How many addresses are in a range, but not more than 2^127.
fn length(range: AddressRange) -> u128 {
    (number(range.last()) - number(range.first())).min(u128::MAX >> 1) + 1
}

/// Whether a host may have this address in this range: not the network's own, and for IPv4 not that for all hosts.
pub(super) fn is_for_hosts(net: IpNet, address: IpAddr) -> bool {
    let few = net.max_prefix_len() - net.prefix_len() <= 1;
    net.contains(&address)
        && (few || (address != net.network() && (net.network().is_ipv6() || address != net.broadcast())))
}

/// The address that a host makes up by itself from its MAC address (RFC 4291, appendix A).
pub(super) fn by_mac(net: IpNet, mac: MacAddress) -> IpAddr {
    let [a, b, c, d, e, f] = mac.bytes();
    let host = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(number(net.network()) | u128::from(host)).into()
}

impl Cursors {
    /// A free address of the subnet's pools.
    fn free(&self, store: &Store, network: NetworkId, subnet: &Record<Subnet>) -> Option<IpAddr> {
        let pools = &subnet.body.pools;
        let all: u128 = pools.iter().map(|pool| length(*pool)).fold(0, u128::saturating_add);
        let mut cursors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cursor = cursors.entry(subnet.meta.id).or_default();
        for _ in 0..all.min(MOST_LOOKS) {
            let mut place = *cursor % all;
            *cursor = (place + 1) % all;
            let pool = pools.iter().find(|pool| match place.checked_sub(length(**pool)) {
                Some(further) => {
                    place = further;
                    false
                }
                None => true,
            })?;
            let found = address(number(pool.first()) + place, pool.first());
            if store.owner(&claim(network, found)).is_none() {
                return Some(found);
            }
        }
        None
    }
}

/// Addresses that were chosen for a port, with the claims on them.
pub(super) struct Assigned {
    pub(super) addresses: Vec<Fixed>,
    pub(super) transaction: Transaction,
}

/// Chooses addresses of a network for a port and claims them for `owner`: those that are `wanted`, or one of each version.
/// Whoever finds that a claim is taken decides again, unless it is one that was wanted.
pub(super) fn assign(
    cursors: &Cursors,
    store: &Store,
    mut transaction: Transaction,
    network: &Record<Network>,
    wanted: Option<&[PortAddress]>,
    (owner, mac): (&str, MacAddress),
) -> Result<Assigned> {
    let subnets: Vec<Arc<Record<Subnet>>> = network.body.subnets.iter().filter_map(|id| store.get(*id)).collect();
    let mut addresses: Vec<Fixed> = vec![];
    match wanted {
        Some(wanted) => {
            for wish in wanted {
                addresses.push(wished(cursors, store, network.meta.id, &subnets, *wish, mac)?);
            }
        }
        None => {
            for ipv6 in [false, true] {
                addresses.extend(any(cursors, store, network.meta.id, &subnets, ipv6, mac)?);
            }
        }
    }
    for (place, fixed) in addresses.iter().enumerate() {
        if addresses[..place].iter().any(|other| other.address == fixed.address) {
            return Err(
                Error::invalid("address_twice", "A port has an address only once").detail(fixed.address.to_string())
            );
        }
        transaction =
            transaction.claim(claim(network.meta.id, fixed.address), owner).add(used(fixed.subnet), 1, Bound::Any);
    }
    Ok(Assigned { addresses, transaction })
}

/// Gives addresses back.
pub(super) fn release(
    mut transaction: Transaction,
    network: NetworkId,
    owner: &str,
    addresses: &[Fixed],
) -> Transaction {
    for fixed in addresses {
        transaction = transaction.release(claim(network, fixed.address), owner).add(used(fixed.subnet), -1, Bound::Any);
    }
    transaction
}

fn by_itself(subnet: &Subnet) -> bool {
    matches!(subnet.ipv6_mode, Some(Ipv6Mode::Slaac | Ipv6Mode::DhcpStateless))
}

/// One address of this version, and those that the server would make up by itself anyway.
fn any(
    cursors: &Cursors,
    store: &Store,
    network: NetworkId,
    subnets: &[Arc<Record<Subnet>>],
    ipv6: bool,
    mac: MacAddress,
) -> Result<Vec<Fixed>> {
    let (own, given): (Vec<_>, Vec<_>) =
        subnets.iter().filter(|subnet| subnet.body.cidr.is_ipv6() == ipv6).partition(|subnet| by_itself(&subnet.body));
    let mut addresses: Vec<Fixed> = own
        .iter()
        .map(|subnet| Fixed { subnet: subnet.meta.id, address: by_mac(subnet.body.cidr.net(), mac) })
        .collect();
    if !given.is_empty() {
        let found = given.iter().find_map(|subnet| {
            let address = cursors.free(store, network, subnet)?;
            Some(Fixed { subnet: subnet.meta.id, address })
        });
        addresses.push(found.ok_or_else(|| exhausted(&given))?);
    }
    Ok(addresses)
}

fn wished(
    cursors: &Cursors,
    store: &Store,
    network: NetworkId,
    subnets: &[Arc<Record<Subnet>>],
    wish: PortAddress,
    mac: MacAddress,
) -> Result<Fixed> {
    let within = |subnet: &&Arc<Record<Subnet>>| match (wish.subnet, wish.address) {
        (Some(id), _) => subnet.meta.id == id,
        (None, Some(address)) => subnet.body.cidr.contains(address),
        (None, None) => true,
    };
    let subnet = subnets.iter().find(within).ok_or_else(|| {
        Error::invalid("address_not_in_network", "The network has no such subnet")
            .detail(format!("`{wish}` is not of any of its subnets"))
            .next("see what it has", Some(format!("nephos subnet list --network {network}")))
    })?;
    let id = subnet.meta.id;
    let Some(address) = wish.address else {
        if by_itself(&subnet.body) {
            return Ok(Fixed { subnet: id, address: by_mac(subnet.body.cidr.net(), mac) });
        }
        let address = cursors.free(store, network, subnet).ok_or_else(|| exhausted(&[subnet]))?;
        return Ok(Fixed { subnet: id, address });
    };
    if !is_for_hosts(subnet.body.cidr.net(), address) {
        return Err(Error::invalid("address_not_in_network", "The address cannot be a host's")
            .detail(format!("{address} is not one of the hosts of {}", subnet.body.cidr)));
    }
    if let Some(holder) = store.owner(&claim(network, address)) {
        return Err(taken(address, &holder));
    }
    Ok(Fixed { subnet: id, address })
}

/// The refusal of an address that somebody has.
pub(super) fn taken(address: impl std::fmt::Display, holder: &str) -> Error {
    Error::conflict("address_taken", "The address is in use")
        .detail(format!("{address} is that of {holder}"))
        .next("choose another one, or none to get any", None)
}

fn exhausted(subnets: &[&Arc<Record<Subnet>>]) -> Error {
    let names: Vec<String> = subnets.iter().map(|subnet| subnet.body.cidr.to_string()).collect();
    Error::new(ErrorKind::Capacity, "addresses_exhausted", "The network has no free address")
        .detail(format!("all addresses that {} gives out are in use", names.join(" and ")))
        .next("add a subnet", Some("nephos subnet create NAME --network NETWORK --cidr RANGE".to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_have_neither_the_first_nor_the_last_address() {
        let is = |net: &str, address: &str| is_for_hosts(net.parse().unwrap(), address.parse().unwrap());
        assert!(!is("10.0.0.0/24", "10.0.0.0") && !is("10.0.0.0/24", "10.0.0.255") && is("10.0.0.0/24", "10.0.0.1"));
        assert!(is("10.0.0.0/31", "10.0.0.0") && is("10.0.0.0/31", "10.0.0.1") && is("10.0.0.9/32", "10.0.0.9"));
        assert!(!is("fd00::/64", "fd00::") && is("fd00::/64", "fd00::ffff:ffff:ffff:ffff"));
        assert!(!is("10.0.0.0/24", "10.0.1.1") && !is("10.0.0.0/24", "fd00::1"));
    }

    #[test]
    fn an_address_by_the_mac_address() {
        let address = by_mac("fd00:1::/64".parse().unwrap(), "fa:16:3e:00:01:02".parse().unwrap());
        assert_eq!(address.to_string(), "fd00:1::f816:3eff:fe00:102");
    }

    proptest! {
        #[test]
        fn addresses_and_numbers_are_the_same(given: IpAddr) {
            prop_assert_eq!(address(number(given), given), given);
        }
    }
}
