//! A question of DNS, on any bytes.
#![no_main]

mod network;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nephos_network_services::{
    dns::{self, Answer, Transport},
    view::NetworkView,
};

static VIEW: LazyLock<NetworkView> = LazyLock::new(network::view);

fuzz_target!(|bytes: &[u8]| {
    for transport in [Transport::Udp, Transport::Tcp] {
        if let Some(Answer::Message(reply)) = dns::answer(VIEW.zone(), bytes, transport) {
            assert!(transport == Transport::Tcp || reply.len() <= 1232);
        }
    }
});
