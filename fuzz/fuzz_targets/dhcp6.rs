//! A message of DHCPv6, on any bytes.
#![no_main]

mod network;

use std::{net::Ipv6Addr, sync::LazyLock, time::Duration};

use libfuzzer_sys::fuzz_target;
use nephos_network_services::{dhcp6, view::NetworkView};

static VIEW: LazyLock<NetworkView> = LazyLock::new(network::view);
/// The guest's own.
const SOURCE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xf816, 0x3eff, 0xfe00, 1);

fuzz_target!(|bytes: &[u8]| {
    if let Some(reply) = dhcp6::answer(&VIEW, Duration::from_secs(3600), bytes, SOURCE) {
        assert!(reply.len() <= 3000);
    }
});
