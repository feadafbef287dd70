//! The engine as its users see it, over the journal in memory.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` functions

mod engine;
mod faults;
mod lifecycle;
mod together;
mod world;
