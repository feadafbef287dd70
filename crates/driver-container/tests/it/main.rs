//! The container driver with real containers. Needs root, crun or runc, and the package mirror for the micro container.
#![allow(clippy::unwrap_used)]

mod contract;
mod surroundings;
