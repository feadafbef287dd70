//! A whole cloud for tests: the real binary in a temporary folder on free ports, and typed clients for it.
//!
//! Invariants: what a test started is gone when its [`CloudProcess`] is dropped, guests included; nothing waits for a
//! time, everything for a condition.
//!
//! Must not know: anything inside the product; it sees what a user sees.

mod cloud_process;
mod wait;

pub use cloud_process::{CloudProcess, Settings};
pub use wait::{LIMIT, until};
