//! What a hypervisor or container runtime must do, as one small trait, plus the data it is asked with.
//!
//! Invariants: every call is an idempotent "ensure"; a driver decides no policy (when to restart, what to place where);
//! guests outlive the process that started them, and a new process finds them again by [`ComputeDriver::list`].
//!
//! Must not know: the control plane, the store, projects, users.

mod check;
mod compute;
pub mod contract;
pub mod refusal;
pub mod simulated;

pub use compute::{
    Accelerator, Boot, Capabilities, ComputeDriver, ConfigFile, Console, Disk, DiskFormat, GuestEvent, GuestSpec,
    Interface, Observation, PortForward, Power, Presence, Protocol, StopMode, Usage,
};
