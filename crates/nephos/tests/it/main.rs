//! The product as its users see it: the real binary, real guests, real clients.

#![allow(clippy::unwrap_used, reason = "in a test an unexpected error is the finding")]

mod actions;
mod backup;
mod bad_input;
mod boot;
mod container;
mod controllers;
mod crash;
mod debian;
mod deleting;
mod first_boot;
mod guest;
mod help;
mod inside;
mod media;
mod networks;
mod nodes;
mod placement;
mod quota;
mod s3;
mod shell;
mod tls;
mod upload;
mod xml_rpc;

/// The binary under test.
const NEPHOS: &str = env!("CARGO_BIN_EXE_nephos");

/// A file that lies beside these tests. As cargo says at run time: checkouts may share a build cache.
fn beside(file: &str) -> String {
    format!("{}/tests/it/{file}", std::env::var("CARGO_MANIFEST_DIR").unwrap())
}
