//! The waist of Nephos: what can be done, as data.
//!
//! An [`Operation`] is a type: its fields are the input, its [`Spec`] says name, route, permission and help, its
//! `Output` is what comes back. [`table`] lists them all; REST routes, the OpenAPI document, XML-RPC methods, CLI
//! commands and the typed client are derived from it. Front ends hold a [`Cloud`] and make a [`Context`] per request.
//!
//! Invariants: an operation cannot be written without route, permission and help; inputs refuse unknown fields; every
//! input is bounded by its types.
//!
//! Must not know: how anything is done. No store, no driver, no HTTP library; front ends and the core meet here only.

mod call;
mod operation;
pub mod schema;

pub mod compute;
pub mod identity;
pub mod image;
pub mod network;
pub mod node;
pub mod placement;
pub mod system;
pub mod workflow;

pub use call::{
    Answer, AnswerKind, ByteStream, Caller, Cloud, Context, Core, Credentials, Download, Duplex, Event, EventStream,
    Identity, Login, Reply, Scope, Started, Tunnel, View,
};
pub use operation::{Effect, Entry, Example, Grant, Method, Operation, Permission, Role, Spec, table};
