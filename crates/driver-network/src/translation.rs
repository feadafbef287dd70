//! Addresses that routers translate: what leaves bears the router's, what is for a floating IP goes to its server.

use std::net::IpAddr;

use ipnet::IpNet;
use nephos_driver::{
    Protocol,
    network::{FloatingIp, Forwarding, RouterSpec},
};
use serde_json::{Value, json};

use crate::{
    filter::{
        Chain, Family, Hook, Ruleset, Table,
        expression::{any_of, ct, has, header, is, is_not, meta, payload, range, set},
    },
    names,
    netlink::Flow,
};

fn rule(expressions: impl IntoIterator<Item = Value>) -> Value {
    expressions.into_iter().collect::<Vec<_>>().into()
}

fn to(kind: &str, address: IpAddr, port: Option<Value>) -> Value {
    let mut fields = serde_json::Map::new();
    fields.insert("family".into(), header(address).into());
    fields.insert("addr".into(), address.to_string().into());
    fields.extend(port.map(|port| ("port".to_owned(), port)));
    json!({ kind: fields })
}

fn protocol(of: Protocol) -> (&'static str, u8) {
    match of {
        Protocol::Tcp => ("tcp", 6),
        Protocol::Udp => ("udp", 17),
    }
}

/// The rule for ports of a floating IP.
fn forward(floating: &FloatingIp, forwarding: &Forwarding) -> Value {
    let (name, _) = protocol(forwarding.protocol);
    let (first, last) = forwarding.external_ports;
    let ports = if first == last { json!(first) } else { json!({ "range": [first, last] }) };
    let port = if forwarding.external_ports == forwarding.fixed_ports {
        None
    } else if first == last {
        Some(json!(forwarding.fixed_ports.0))
    } else {
        // A range as it is would mean: any of them.
        let pairs = (first..=last).zip(forwarding.fixed_ports.0..=forwarding.fixed_ports.1);
        let pairs = pairs.map(|(outside, inside)| json!([outside, inside])).collect();
        Some(json!({ "map": { "key": payload(name, "dport"), "data": set(pairs) } }))
    };
    rule([
        is(payload(header(floating.external), "daddr"), floating.external.to_string()),
        is(payload(name, "dport"), ports),
        to("dnat", forwarding.fixed, port),
    ])
}

/// The server's address that all of a floating IP leads to.
fn leads(floating: &FloatingIp) -> Option<IpAddr> {
    floating.fixed.filter(|fixed| fixed.is_ipv4() == floating.external.is_ipv4())
}

/// The rules of a router.
pub(crate) fn rules(router: &RouterSpec) -> Ruleset {
    let table = Table { family: Family::Inet, name: "nephos".into() };
    let (mut into, mut out) = (vec![], vec![]);
    for floating in &router.floating_ips {
        let sound = |forwarding: &&Forwarding| {
            let ((first, last), (inner, end)) = (forwarding.external_ports, forwarding.fixed_ports);
            forwarding.fixed.is_ipv4() == floating.external.is_ipv4()
                && last.checked_sub(first).is_some_and(|length| end.checked_sub(inner) == Some(length))
        };
        into.extend(floating.forwardings.iter().filter(sound).map(|forwarding| forward(floating, forwarding)));
        if let Some(fixed) = leads(floating) {
            let destination = is(payload(header(floating.external), "daddr"), floating.external.to_string());
            into.push(rule([destination, to("dnat", fixed, None)]));
        }
    }
    // A server that calls a floating IP of its own network would get its answer from a stranger.
    for interface in &router.interfaces {
        for address in &interface.addresses {
            out.push(rule([
                is(payload(header(address.addr()), "saddr"), range(*address)),
                is(meta("oifname"), names::router_interface(interface.port)),
                has(ct("status"), "dnat".into()),
                to("snat", address.addr(), None),
            ]));
        }
    }
    if let Some(gateway) = &router.gateway {
        let outside = names::router_interface(gateway.interface.port);
        for floating in &router.floating_ips {
            if let Some(fixed) = leads(floating) {
                out.push(rule([
                    is(meta("oifname"), outside.clone()),
                    is(payload(header(fixed), "saddr"), fixed.to_string()),
                    to("snat", floating.external, None),
                ]));
            }
        }
        let own = gateway.interface.addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4);
        if let Some(own) = own.filter(|_| gateway.snat) {
            let ranges: Vec<Value> = gateway
                .interface
                .addresses
                .iter()
                .filter(|address| address.addr().is_ipv4())
                .map(|address| range(*address))
                .collect();
            out.push(rule([
                is(meta("oifname"), outside),
                is(meta("nfproto"), "ipv4"),
                is_not(payload("ip", "saddr"), any_of(ranges)),
                to("snat", own, None),
            ]));
        }
    }
    let nat = |hook, priority, rules| Chain { hook: Some(Hook { kind: "nat", hook, priority }), rules };
    let chains = [("into", nat("prerouting", -100, into)), ("out", nat("postrouting", 100, out))];
    Ruleset {
        tables: vec![table.clone()],
        chains: chains.into_iter().map(|(name, chain)| ((table.clone(), name.to_owned()), chain)).collect(),
        ..Ruleset::default()
    }
}

/// Where a packet from outside goes, if its address is translated.
fn destination(router: &RouterSpec, address: IpAddr, number: u8, port: u16) -> Option<(IpAddr, u16)> {
    let floating = router.floating_ips.iter().find(|floating| floating.external == address)?;
    let forwarded = floating.forwardings.iter().find(|forwarding| {
        let (first, last) = forwarding.external_ports;
        protocol(forwarding.protocol).1 == number && (first..=last).contains(&port)
    });
    match forwarded {
        Some(forwarding) => {
            let offset = port - forwarding.external_ports.0;
            Some((forwarding.fixed, forwarding.fixed_ports.0.saturating_add(offset)))
        }
        None => floating.fixed.map(|fixed| (fixed, port)),
    }
}

/// Whether a connection goes by a translation that the router does not make any more.
pub(crate) fn is_stale(router: &RouterSpec, flow: &Flow) -> bool {
    let (original, reply) = (&flow.original, &flow.reply);
    let led = reply.source != original.destination || reply.source_port != original.destination_port;
    if led {
        let now = destination(router, original.destination, original.protocol, original.destination_port);
        if now != Some((reply.source, reply.source_port)) {
            return true;
        }
    }
    if reply.destination == original.source {
        return false;
    }
    let own = |interfaces: &[IpNet]| interfaces.iter().any(|address| address.addr() == reply.destination);
    let by_interface = led && router.interfaces.iter().any(|interface| own(&interface.addresses));
    let by_gateway = router.gateway.as_ref().is_some_and(|gateway| gateway.snat && own(&gateway.interface.addresses));
    let by_floating = router
        .floating_ips
        .iter()
        .any(|floating| floating.external == reply.destination && floating.fixed == Some(original.source));
    !by_interface && !by_gateway && !by_floating
}
