//! A message of DHCP, on any bytes.
#![no_main]

mod network;

use std::{sync::LazyLock, time::Duration};

use libfuzzer_sys::fuzz_target;
use nephos_network_services::{dhcp4, view::NetworkView};

static VIEW: LazyLock<NetworkView> = LazyLock::new(network::view);

fuzz_target!(|bytes: &[u8]| {
    if let Some(reply) = dhcp4::answer(&VIEW, Duration::from_secs(3600), bytes) {
        assert!(reply.message.len() <= 1200);
    }
});
