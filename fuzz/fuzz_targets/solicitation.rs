//! An ICMPv6 message, on any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nephos_network_services::advertise::is_solicitation;

fuzz_target!(|bytes: &[u8]| {
    let _ = is_solicitation(bytes);
});
