//! `cargo xtask bench`: builds with optimisation and prints the figures of the design, each with its target.

use crate::{
    process::{Outcome, cargo, run as run_command},
    system,
};

/// Runs some benchmarks, or all.
pub(crate) fn run(names: &[String]) -> Outcome {
    system::ensure_running()?;
    if names.is_empty() || names.iter().any(|name| name == "store") {
        run_command(cargo().args(["run", "--release", "--quiet", "--package", "nephos-store", "--example", "bench"]))?;
    }
    if names.len() == 1 && names.iter().all(|name| name == "store") {
        return Ok(());
    }
    run_command(cargo().args(["build", "--release", "--package", "nephos"]))?;
    run_command(
        cargo()
            .args(["run", "--release", "--quiet", "--package", "nephos-testkit", "--bin", "bench", "--"])
            .args(names.iter().filter(|name| *name != "store")),
    )
}
