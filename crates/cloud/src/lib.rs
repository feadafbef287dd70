//! Decides: the handlers of the operations, the workflows, the reconcilers, the scheduler.
//!
//! [`core`](CloudCore) is what front ends call; each family (identity, compute, …) registers its handlers with
//! [`Handlers`] and sees a call as a [`Session`].
//!
//! Must not know: any front end's protocol, any driver, SQL.

mod core;
pub mod idempotency;
pub mod identity;
mod resolve;
mod session;

pub use self::{
    core::{BoxFuture, CloudCore, Handlers, Identify},
    resolve::{CLOUD, Named, name_claim},
    session::{Session, Visible},
};
