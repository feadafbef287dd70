//! Decides: the handlers of the operations, the workflows, the reconcilers, the scheduler.
//!
//! [`core`](CloudCore) is what front ends call; each family (identity, compute, …) registers its handlers with
//! [`Handlers`] and sees a call as a [`Session`]. [`Control`] wires them all together.
//!
//! Must not know: any front end's protocol, any driver, SQL.

pub mod bench;
pub mod cluster;
pub mod compute;
mod control;
mod core;
pub mod idempotency;
pub mod identity;
pub mod image;
mod journal;
pub mod network;
pub mod node;
pub mod placement;
mod resolve;
mod session;
pub mod system;
pub mod workflow;

pub use self::{
    cluster::{Succession, Successor, migrate},
    control::{Control, DATABASE, Options, Shared},
    core::{BoxFuture, CloudCore, Handlers, Identify},
    resolve::{CLOUD, Named, name_claim},
    session::{Session, Visible},
};
