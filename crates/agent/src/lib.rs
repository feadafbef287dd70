//! The node: connection, reconcile, image cache, drivers.
//!
//! An [`Agent`] dials the control plane, hears what its machine should run, makes it so through a
//! [`ComputeDriver`](nephos_driver::ComputeDriver) (or several), and reports what is so.
//!
//! Invariants: what should be is remembered across restarts of the agent and absences of the control plane; guests
//! outlive the agent; a guest that the control plane did not name is never touched; calls on one guest are serialised.
//!
//! Must not know: the store, operations, projects, users; how a driver works.

mod agent;
mod config;
mod drivers;
mod fleet;
mod health;
mod identity;
mod images;
mod inventory;
mod networks;
mod reconcile;
mod records;
mod reporter;
mod servers;
mod snapshots;
mod streams;
mod told;
mod upgrade;
mod usage;

pub use agent::{Agent, Ended};
pub use config::{Backoff, Config};
pub use drivers::Drivers;
pub use fleet::{Fleet, simulated_config};
pub use identity::{Join, RemoteNode};
pub use upgrade::Program;
