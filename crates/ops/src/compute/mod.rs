//! Operations on flavors, key pairs, servers and quotas.

mod flavor;
mod keypair;
mod quota;
mod server;

pub use flavor::*;
pub use keypair::*;
pub use quota::*;
pub use server::*;
