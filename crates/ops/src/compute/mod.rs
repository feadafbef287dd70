//! Operations on flavors, key pairs, servers and quotas.

mod action;
mod flavor;
mod keypair;
mod quota;
mod server;

pub use action::*;
pub use flavor::*;
pub use keypair::*;
pub use quota::*;
pub use server::*;
