//! The refusals that all drivers share, so that callers can tell them apart by code.

use nephos_types::{Error, ErrorKind, NetworkId, PortId, ServerId};

/// Nothing has been defined under this id.
#[must_use]
pub fn unknown_guest(id: ServerId) -> Error {
    Error::new(ErrorKind::NotFound, "guest_not_found", "No such guest on this node").detail(format!("{id}"))
}

/// No plan has named this port.
#[must_use]
pub fn unknown_port(id: PortId) -> Error {
    Error::new(ErrorKind::NotFound, "port_not_found", "No such port on this node").detail(format!("{id}"))
}

/// No plan has named this network.
#[must_use]
pub fn unknown_network(id: NetworkId) -> Error {
    Error::new(ErrorKind::NotFound, "network_not_found", "No such network on this node").detail(format!("{id}"))
}

/// The guest exists, but what was asked for needs it to run.
#[must_use]
pub fn not_running(id: ServerId) -> Error {
    Error::conflict("guest_not_running", "The server does not run")
        .detail(format!("{id} is switched off"))
        .next("start it first", Some(format!("nephos server start {id}")))
}

/// The driver cannot do this at all.
#[must_use]
pub fn unsupported(id: ServerId, wish: &str) -> Error {
    Error::conflict("unsupported", format!("A server of this kind cannot {wish}"))
        .detail(format!("the driver that runs {id} does not know how"))
        .next("see what the node's drivers can do", Some("nephos node list -o json".to_owned()))
}

/// The guest is not off, and what was asked for needs it to be.
#[must_use]
pub fn running(id: ServerId) -> Error {
    Error::conflict("guest_running", "The server is not switched off")
        .detail(format!("{id} runs, stands still or is suspended"))
        .next("stop it first", Some(format!("nephos server stop {id}")))
}
