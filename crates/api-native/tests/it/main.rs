//! The native front end over real connections, in front of a fake core.

mod bad_input;
mod fake;
mod rest;
