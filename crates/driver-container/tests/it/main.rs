//! The container driver with real containers. Needs root, crun or runc, and the package mirror for the micro container.
#![allow(clippy::unwrap_used)]

mod confinement;
mod contract;
mod images;
mod life;
mod surroundings;
