//! The QEMU driver with real guests.
#![allow(clippy::unwrap_used)]

mod contract;
mod disks;
mod guest;
mod images;
mod machine;
mod surroundings;
mod suspension;
