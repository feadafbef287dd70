//! Servers: the record, what people may ask of it, and the workflows that do it.

pub(crate) mod actions;
pub mod config_drive;
pub(crate) mod consoles;
mod deadlines;
mod handlers;
mod inside;
pub mod record;
mod reports;
#[cfg(test)]
mod rules;
mod usage;
pub mod workflows;

pub(crate) use inside::Questions;
pub use record::{BY_GROUP, BY_NODE, Server};

pub(super) use deadlines::keep_deadlines;
pub(super) use handlers::register;
pub(super) use reports::tell_nodes;
