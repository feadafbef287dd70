//! Credentials, tokens, policy: pure mechanisms, without a store.
//!
//! Invariants: what is compared with a secret is compared in constant time; whatever a caller repeats at will (hashing,
//! failures remembered) is bounded; a file with keys is replaced whole and readable by its owner only.
//!
//! Must not know: where users, roles or revocations are kept; any front end's protocol.

mod authority;
mod keyring;
pub mod password;
mod policy;
pub mod throttle;
pub mod token;
mod vault;

pub use authority::{Authority, ServerCertificate};
pub use keyring::{Key, KeyRing, write_private};
pub use policy::{Allowed, Policy, not_logged_in};
pub use vault::Vault;
