//! The refusals that all drivers share, so that callers can tell them apart by code.

use nephos_types::{Error, ErrorKind, ServerId};

/// Nothing has been defined under this id.
#[must_use]
pub fn unknown_guest(id: ServerId) -> Error {
    Error::new(ErrorKind::NotFound, "guest_not_found", "No such guest on this node").detail(format!("{id}"))
}

/// The guest exists, but what was asked for needs it to run.
#[must_use]
pub fn not_running(id: ServerId) -> Error {
    Error::conflict("guest_not_running", "The server does not run")
        .detail(format!("{id} is switched off"))
        .next("start it first", Some(format!("nephos server start {id}")))
}
