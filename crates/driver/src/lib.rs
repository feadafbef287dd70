//! What a hypervisor or container runtime must do, as one small trait, plus the data it is asked with; and what a node's
//! networks should be ([`network`]).
//!
//! Invariants: every call is an idempotent "ensure"; a driver decides no policy (when to restart, what to place where);
//! guests outlive the process that started them, and a new process finds them again by [`ComputeDriver::list`].
//!
//! Must not know: the control plane, the store, projects, users.

mod capabilities;
mod check;
mod compute;
pub mod contract;
mod inside;
pub mod network;
mod observation;
pub mod refusal;
pub mod simulated;
mod spec;

pub use capabilities::{Accelerator, Capabilities, Feature, MissingDriver};
pub use compute::{ComputeDriver, Console, Snapshot, SnapshotRequest, StopMode};
pub use inside::{Answer, GuestFileSystem, GuestInfo, GuestInterface, Hidden, MAX_CONTENT, Question};
pub use observation::{GuestEvent, Observation, Power, Presence, Usage};
pub use spec::{
    Boot, ConfigFile, Disk, DiskFormat, Firmware, GuestSpec, Interface, PortForward, Protocol, config_drive_label,
};
