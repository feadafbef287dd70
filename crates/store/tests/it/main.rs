//! The store as its users see it, and its backend against the contract.
#![allow(clippy::unwrap_used, reason = "tests")]

mod commit;
mod contract;
mod crash;
mod feed;
mod file;
mod fixture;
mod log;
mod model;
mod postgres;
mod reading;
