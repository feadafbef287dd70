//! Servers as containers.
//!
//! Each guest is one container of an OCI runtime (crun or runc) on an overlay of an unpacked image and a file system of
//! its own, in namespaces and control groups of its own, looked after by a [`keeper`] that outlives the agent. A new
//! [`ContainerDriver`] over the same folder adopts what runs.
//!
//! Invariants: one driver per state folder at a time (a lock file sees to it); what is recorded on disk is enough to find
//! every process after a crash at any point; a guest reported as stopped or gone has no process, no mount and no control
//! group; nothing of an image is read outside a sandbox.
//!
//! Must not know: images' origin, networks beyond the interfaces in a definition, restart policy.

mod adopt;
mod base;
mod bundle;
mod cgroup;
mod config_drive;
mod define;
mod disk;
mod driver;
mod folder;
mod guest;
mod host;
mod ids;
mod image;
mod inside;
mod keeper;
mod machine;
mod seccomp;
mod snapshot;
mod start;
mod stop;
mod surroundings;

pub use driver::ContainerDriver;
pub use keeper::keeper;
pub use surroundings::Config;
