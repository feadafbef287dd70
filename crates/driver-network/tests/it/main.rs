//! The driver on a real kernel. Machines are network namespaces, guests too, and all are gone afterwards.

#![allow(clippy::unwrap_used, reason = "tests")]

mod figures;
mod guests;
mod lab;
mod routers;
mod security;
mod upkeep;
