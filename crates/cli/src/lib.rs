//! The client of the native API: a typed client, and the command line derived from the operation table.
//!
//! [`client::Client`] is for programs. [`App`] is for people: `nephos <noun> <verb>` for every operation, plus the
//! commands that the program around it adds ([`LocalCommand`]).
//!
//! Invariants: standard output carries data only; everything a person needs beside it goes to standard error; exit
//! codes are those of [`exit`]; help never uses the network, completion for a moment; secrets are never printed.
//!
//! Must not know: how the cloud does anything. What it knows of operations it reads from `nephos_ops::table()`.

mod app;
pub mod client;
mod command;
mod completion;
mod console;
mod execute;
pub mod exit;
mod failure;
mod in_parts;
mod local;
mod output;
mod perform;
mod plan;
mod progress;
mod session;
mod terminal;
mod trace;
mod transfer;

pub use app::{App, Invocation};
pub use command::tree::LocalCommand;
