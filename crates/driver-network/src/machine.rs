//! The machine as the gateway of networks: the little that is done outside the namespaces of ours.
//!
//! An end of a pair with the gateway's address, a table of the packet filter under this cloud's name, and forwarding. If
//! forwarding was off, the table says so, forwards nothing but this, and it is turned off again in the end.

use std::{collections::BTreeSet, io, path::Path};

use ipnet::IpNet;
use nephos_driver::network::{NetworkPlan, NetworkSpec, Segment};
use serde_json::json;

use crate::{
    filter::{
        Chain, Family, Hook, Ruleset, Table,
        expression::{drop, is, is_not, meta, payload, range},
        run,
    },
    names,
    netlink::{Address, Space},
};

/// What the comment of a rule says if forwarding was off before.
const WAS_OFF: &str = "forwarding was off";

/// What this process knows of the machine's table.
#[derive(Default)]
pub(crate) struct Machine {
    /// Generation of the machine's packet filter, the rules then, whether forwarding was off before.
    known: Option<(u32, String, bool)>,
}

fn table(name: &str) -> Table {
    Table { family: Family::Inet, name: name.to_owned() }
}

/// Ranges behind the machine.
fn ranges(plan: &NetworkPlan) -> BTreeSet<IpNet> {
    let behind = plan.networks.iter().filter(|network| network.segment == Segment::Host);
    behind.flat_map(|network| network.subnets.iter().map(|subnet| subnet.cidr.net())).collect()
}

fn rules(name: &str, ranges: &BTreeSet<IpNet>, was_off: bool) -> Ruleset {
    let table = table(name);
    let ours = || json!("nh*");
    let masquerade = ranges
        .iter()
        .filter(|net| matches!(net, IpNet::V4(_)))
        .map(|net| {
            json!([
                is(payload("ip", "saddr"), range(*net)),
                is_not(payload("ip", "daddr"), range(*net)),
                is_not(meta("oifname"), ours()),
                { "masquerade": null },
            ])
        })
        .collect();
    let forward = if was_off {
        vec![json!([is_not(meta("iifname"), ours()), is_not(meta("oifname"), ours()), drop()])]
    } else {
        vec![]
    };
    let chain = |kind, hook, priority, rules| Chain { hook: Some(Hook { kind, hook, priority }), rules };
    let chains =
        [("out", chain("nat", "postrouting", 100, masquerade)), ("forward", chain("filter", "forward", 0, forward))];
    Ruleset {
        tables: vec![table.clone()],
        chains: chains.into_iter().map(|(name, chain)| ((table.clone(), name.to_owned()), chain)).collect(),
        ..Ruleset::default()
    }
}

/// The comments in our table, by which what is there is known again; `None` if there is no table.
fn comments(space: &Space, nft: &Path, name: &str) -> io::Result<Option<Vec<String>>> {
    let text = space.inside(|| {
        nftables::helper::get_current_ruleset_raw(Some(nft), ["list", "ruleset", "inet"]).map_err(io::Error::other)
    })?;
    // Others' rules may hold what only they understand, so nothing is read but what is looked for.
    let found: serde_json::Value = serde_json::from_str(&text)?;
    let mut comments = None;
    for object in found.get("nftables").and_then(|list| list.as_array()).into_iter().flatten() {
        if object.pointer("/table/name").is_some_and(|found| found == name) {
            comments.get_or_insert_with(Vec::new);
        }
        if object.pointer("/rule/table").is_some_and(|found| found == name)
            && let Some(comment) = object.pointer("/rule/comment").and_then(|comment| comment.as_str())
        {
            comments.get_or_insert_with(Vec::new).push(comment.to_owned());
        }
    }
    Ok(comments)
}

const FORWARDING: &str = "ipv4/ip_forward";

fn forwards(space: &Space) -> io::Result<bool> {
    space.inside(|| Ok(std::fs::read_to_string(Path::new("/proc/sys/net").join(FORWARDING))?.trim() == "1"))
}

impl Machine {
    /// Makes the machine forward for the plan's networks, or no longer.
    pub(crate) fn ensure(&mut self, space: &mut Space, nft: &Path, name: &str, plan: &NetworkPlan) -> io::Result<()> {
        let ranges = ranges(plan);
        let generation = space.generation()?;
        let forwarding = forwards(space)?;
        let fingerprint = |was_off| rules(name, &ranges, was_off).fingerprint();
        if let Some((of, is, was_off)) = &self.known
            && *of == generation
            && (is.is_empty() == ranges.is_empty())
            && (ranges.is_empty() || (forwarding && *is == fingerprint(*was_off)))
        {
            return Ok(());
        }
        let found = comments(space, nft, name)?;
        let was_off = found.iter().flatten().any(|comment| comment == WAS_OFF);
        if ranges.is_empty() {
            if found.is_some() {
                space.changes().one();
                run(space, nft, &[json!({ "delete": { "table": table(name) } })])?;
                if was_off {
                    space.sysctl(&[(FORWARDING.into(), "0")])?;
                }
            }
            self.known = Some((space.generation()?, String::new(), false));
            return Ok(());
        }
        let was_off = was_off || !forwarding;
        let wanted = fingerprint(was_off);
        if !found.iter().flatten().any(|comment| *comment == wanted) {
            let mut commands = rules(name, &ranges, was_off).commands(None);
            let notes = [Some(wanted.clone()), was_off.then(|| WAS_OFF.to_owned())];
            commands.extend(notes.into_iter().flatten().map(|comment| {
                let rule = json!({ "family": "inet", "table": name, "chain": "forward", "comment": comment,
                    "expr": [{ "counter": null }] });
                json!({ "add": { "rule": rule } })
            }));
            space.changes().one();
            run(space, nft, &commands)?;
        }
        space.sysctl(&[(FORWARDING.into(), "1")])?;
        self.known = Some((space.generation()?, wanted, was_off));
        Ok(())
    }
}

/// Gives the machine its addresses on a network.
pub(crate) fn address(space: &mut Space, network: &NetworkSpec) -> io::Result<()> {
    let name = names::machine(network.id);
    let link = space.link(&name)?.ok_or_else(|| io::Error::other("the machine's end of the link is not there"))?;
    let wanted: BTreeSet<Address> = network
        .subnets
        .iter()
        .filter_map(|subnet| IpNet::new(subnet.gateway?, subnet.cidr.net().prefix_len()).ok())
        .map(|address| Address { device: link.index, address })
        .collect();
    let present: BTreeSet<Address> =
        space.addresses()?.into_iter().filter(|address| address.device == link.index).collect();
    for gone in present.difference(&wanted) {
        space.delete_address(gone)?;
    }
    for come in wanted.difference(&present) {
        space.add_address(come)?;
    }
    if link.mtu != network.mtu {
        space.set_mtu(link.index, network.mtu)?;
    }
    if !link.up {
        space.set_up(link.index, true)?;
    }
    Ok(())
}
