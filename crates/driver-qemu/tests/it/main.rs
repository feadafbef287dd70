//! The QEMU driver with real guests.
#![allow(clippy::unwrap_used)]

mod contract;
mod disks;
mod guest;
mod machine;
mod surroundings;
mod suspension;
