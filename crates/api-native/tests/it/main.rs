//! The native front end over real connections, in front of a fake core.

#![allow(clippy::unwrap_used)] // helpers of tests are not seen as tests

mod bad_input;
mod fake;
mod openapi;
mod rest;
mod streams;
mod xmlrpc;
