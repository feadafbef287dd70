//! The client and the command line against a scripted HTTP server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod client;
mod commands;
mod console;
mod examples;
mod fake;
mod output;
mod plan;
mod workflows;
