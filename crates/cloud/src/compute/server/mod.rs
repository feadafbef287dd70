//! Servers: the record, what people may ask of it, and the workflows that do it.

mod actions;
pub mod config_drive;
mod deadlines;
mod handlers;
pub mod record;
mod reports;
pub mod workflows;

pub use record::{BY_NODE, Server};

pub(super) use deadlines::keep_deadlines;
pub(super) use handlers::register;
pub(super) use reports::tell_nodes;
