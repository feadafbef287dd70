//! Identity: who exists, who they prove to be, and what they may do.

pub mod kinds;
mod names;
mod roles;
