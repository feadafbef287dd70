//! The client of the native API: a typed client, and the command line derived from the operation table.

pub mod client;
