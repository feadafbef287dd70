//! The `nephos` binary: one program that is the cloud (`up`), a node of it (`agent`), and its command line.
//!
//! Only this crate reads configuration, environment and arguments of the server, and only here parts are wired
//! together.

mod agent;
mod backup;
mod config;
mod controller;
mod drivers;
mod image_build;
mod kill_point;
mod logging;
mod migrate;
mod observe;
mod reach;
mod restore;
mod standby;
mod up;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Containers are looked after by this program, started again.
    if let Some(code) = nephos_driver_container::keeper(std::env::args_os().skip(1)) {
        return code;
    }
    nephos_cli::App::new("nephos", env!("CARGO_PKG_VERSION"))
        .with(up::command())
        .with(controller::command())
        .with(agent::command())
        .with(backup::command())
        .with(restore::command())
        .with(migrate::command())
        .with(image_build::command())
        .run(std::env::args_os())
}
