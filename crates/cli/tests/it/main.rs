//! The client and the command line against a scripted HTTP server.

mod client;
mod commands;
mod console;
mod examples;
mod fake;
mod output;
mod workflows;
