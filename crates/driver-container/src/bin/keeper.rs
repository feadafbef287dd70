//! The keeper as a program of its own, for whoever embeds the driver without being the `nephos` binary: tests.

fn main() -> std::process::ExitCode {
    nephos_driver_container::keeper(std::env::args_os().skip(1)).unwrap_or(std::process::ExitCode::FAILURE)
}
