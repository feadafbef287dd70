//! Identity through the core: who may do what, what is refused and how, and what a secret touches.

mod bootstrap;
mod credentials;
mod keys;
mod login;
mod permissions;
mod resources;
pub(crate) mod world;
