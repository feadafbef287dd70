//! Rules in nftables' JSON (libnftables-json(5)).

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::netlink::Mac;

pub(crate) fn accept() -> Value {
    json!({ "accept": null })
}

pub(crate) fn drop() -> Value {
    json!({ "drop": null })
}

pub(crate) fn jump(chain: &str) -> Value {
    json!({ "jump": { "target": chain } })
}

pub(crate) fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

/// Bits behind the beginning of the transport protocol's header.
pub(crate) fn transport(offset: u32, length: u32) -> Value {
    json!({ "payload": { "base": "th", "offset": offset, "len": length } })
}

pub(crate) fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

pub(crate) fn ct(key: &str) -> Value {
    json!({ "ct": { "key": key } })
}

pub(crate) fn is(left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right.into() } })
}

pub(crate) fn is_not(left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": "!=", "left": left, "right": right.into() } })
}

/// Whether flags are among those of the left side.
pub(crate) fn has(left: Value, flags: Value) -> Value {
    json!({ "match": { "op": "in", "left": left, "right": flags } })
}

/// Whether the bits of the packet's mark under a mask are these.
pub(crate) fn marked(mask: u32, bits: u32) -> Value {
    is(json!({ "&": [meta("mark"), mask] }), bits)
}

/// Sets bits of the packet's mark.
pub(crate) fn mark(bits: u32) -> Value {
    json!({ "mangle": { "key": meta("mark"), "value": { "|": [meta("mark"), bits] } } })
}

pub(crate) fn mangle(key: Value, value: impl Into<Value>) -> Value {
    json!({ "mangle": { "key": key, "value": value.into() } })
}

pub(crate) fn set(values: Vec<Value>) -> Value {
    json!({ "set": values })
}

/// One of these: as a set, or alone.
pub(crate) fn any_of(mut values: Vec<Value>) -> Value {
    match values.len() {
        1 => values.remove(0),
        _ => set(values),
    }
}

pub(crate) fn verdict_by(key: Value, map: &str) -> Value {
    json!({ "vmap": { "key": key, "data": format!("@{map}") } })
}

pub(crate) fn range(net: IpNet) -> Value {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string().into()
    } else {
        json!({ "prefix": { "addr": net.network().to_string(), "len": net.prefix_len() } })
    }
}

/// The numbers that a range of IPv6 consists of, for where nftables does not know that it is one.
pub(crate) fn number_range(net: ipnet::Ipv6Net) -> Value {
    let [first, last] = [net.network(), net.broadcast()].map(|address| format!("{:#034x}", u128::from(address)));
    if first == last { first.into() } else { json!({ "range": [first, last] }) }
}

pub(crate) fn mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// `ip` or `ip6`, as headers are called.
pub(crate) fn header(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}
