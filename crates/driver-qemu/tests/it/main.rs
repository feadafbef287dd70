//! The QEMU driver with real guests.

mod contract;
mod machine;
mod surroundings;
