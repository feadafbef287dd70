//! The cloud's handlers, called as front ends call them, on a database in a temporary folder.

#![allow(clippy::unwrap_used)]

mod core;
mod identity;
mod node;
