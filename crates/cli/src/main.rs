//! The command line alone, for machines that are no part of a cloud. `nephos` holds the same commands.

use std::process::ExitCode;

fn main() -> ExitCode {
    nephos_cli::App::new("nephos", env!("CARGO_PKG_VERSION")).run(std::env::args_os())
}
