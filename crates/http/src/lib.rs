//! The HTTP server that all front ends mount on: one port, shared by path prefix.
//!
//! A [`FrontEnd`] names its prefixes and answers one request at a time; the [`Server`] owns everything around that:
//! connections (HTTP/1.1 with keep-alive, HTTP/2 with prior knowledge or by ALPN), TLS, limits, request ids, the access
//! log, metrics, panics, and stopping in good order.
//!
//! Invariants: every answer carries `x-nephos-request-id`; no caller can hold memory or a connection without bound; an
//! address other than loopback is served in plain text only when that is asked for by name.
//!
//! Must not know: operations, identities, or any front end.

mod answer;
mod body;
mod front_end;
mod guard;
mod metrics;
pub mod rate;
mod server;
mod status;

pub use answer::{ErrorBody, ErrorDocument, error, json};
pub use body::{Body, collect, empty, full, into_stream, stream};
pub use front_end::{BoxFuture, Exchange, FrontEnd, Peer, Running, Seen};
pub use metrics::{Metrics, Observer, Record};
pub use server::{Server, Settings};
pub use status::{Health, Status};

/// The header that names the request in every answer, in the log and in the audit trail.
pub const REQUEST_ID: &str = "x-nephos-request-id";
