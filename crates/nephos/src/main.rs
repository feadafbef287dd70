//! The `nephos` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    nephos_cli::App::new("nephos", env!("CARGO_PKG_VERSION")).run(std::env::args_os())
}
