//! `cargo xtask bench`: builds with optimisation and prints the figures of the design, each with its target.

use crate::{
    process::{Outcome, cargo, run as run_command},
    system,
};

/// Runs one benchmark, or all.
pub(crate) fn run(names: &[String]) -> Outcome {
    system::ensure_running()?;
    run_command(cargo().args(["build", "--release", "--package", "nephos"]))?;
    run_command(
        cargo()
            .args(["run", "--release", "--quiet", "--package", "nephos-testkit", "--bin", "bench", "--"])
            .args(names),
    )
}
