//! Protocol tools without domain knowledge: for now the values and messages of XML-RPC.
//!
//! Invariants: arbitrary bytes are parsed without panic and within bounds of depth and size.
//!
//! Must not know: operations, resources, HTTP.

pub mod xmlrpc;
