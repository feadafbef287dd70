//! Servers as QEMU virtual machines.
//!
//! Each guest is one QEMU process, started detached and confined: it outlives the agent, runs under a user id of its
//! own where the agent is root, may start no programs, and can open only what lies in its working folder or was handed
//! to it open. A new [`QemuDriver`] over the same folder adopts what runs.
//!
//! Invariants: one driver per state folder at a time (a lock file sees to it); what is recorded on disk is enough to
//! find every process after a crash at any point; a guest reported as stopped or gone has no process.
//!
//! Must not know: images' origin, networks beyond the interfaces in a definition, restart policy.

mod accelerator;
mod adopt;
mod agent;
mod command_line;
mod config;
mod config_drive;
mod console;
mod copy;
mod define;
mod disk;
mod driver;
mod firmware;
mod folder;
mod freeze;
mod guest;
mod host;
mod inside;
mod launch;
mod machine;
mod pause;
mod prepare;
mod programs;
mod qmp;
mod rights;
mod screen;
mod snapshot;
mod start;
mod stop;
mod suspend;

pub use config::{Acceleration, Config};
pub use driver::QemuDriver;
