//! A whole cloud for tests: the real binary in a temporary folder on free ports, typed clients for it, and
//! other machines as network namespaces.
//!
//! Invariants: what a test started is gone when its [`CloudProcess`] or [`Machine`] is dropped, guests included; nothing waits for a
//! time, everything for a condition.
//!
//! Must not know: anything inside the product; it sees what a user sees.

mod cloud_process;
mod machine;
mod processes;
mod wait;

pub use cloud_process::{CloudProcess, PASSWORD, Settings};
pub use machine::Machine;
pub use wait::{LIMIT, until, until_within};
