//! The developer's commands: `cargo xtask up`, `test`, `tidy`, `bench`. Plain standard library, so that the first
//! command after a clone starts at once.
//!
//! Must not know: the product's crates. It runs cargo and the binary as a person would.

mod bench;
mod process;
mod system;
mod test;
mod tidy;
mod up;

use std::process::ExitCode;

const HELP: &str = "\
The developer's commands:

  cargo xtask up [NEPHOS UP FLAGS]   install what is missing, build, start the cloud, boot a first server
  cargo xtask down                   stop the cloud that `up` started; servers keep running
  cargo xtask test [FILTER]          install what the tests need, and run them all
  cargo xtask tidy                   check the rules of ARCHITECTURE.md and CONTRIBUTING.md
  cargo xtask bench [NAME]           print the figures that the design names, with their targets
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((command, rest)) => match command.as_str() {
            "up" => up::up(rest),
            "down" => up::down(),
            "test" => test::run(rest),
            "tidy" => tidy::run(),
            "bench" => bench::run(rest),
            "help" | "-h" | "--help" => {
                print!("{HELP}");
                Ok(())
            }
            other => Err(format!("there is no command `{other}`\n\n{HELP}")),
        },
        None => Err(HELP.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
