//! Operations on flavors, key pairs, servers and quotas.

mod action;
mod consoles;
mod flavor;
mod inside;
mod keypair;
mod quota;
mod server;
mod usage;

pub use action::*;
pub use consoles::*;
pub use flavor::*;
pub use inside::*;
pub use keypair::*;
pub use quota::*;
pub use server::*;
pub use usage::*;
