//! `cargo xtask bench`: builds with optimisation and prints the figures of the design, each with its target.

use std::process::Command;

use crate::{
    process::{Outcome, cargo, run as run_command, target_folder},
    system,
};

/// Runs some benchmarks, or all.
pub(crate) fn run(names: &[String]) -> Outcome {
    system::ensure_running()?;
    // In one go, so that what they share is built once.
    let packages = ["--package", "nephos", "--package", "nephos-testkit", "--package", "nephos-store"];
    run_command(cargo().args(["build", "--release", "--bins", "--example", "bench"]).args(packages))?;
    let built = target_folder().join("release");
    let (store, others): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| *name == "store");
    if names.is_empty() || !others.is_empty() {
        run_command(Command::new(built.join("bench")).args(others))?;
    }
    if names.is_empty() || !store.is_empty() {
        run_command(&mut Command::new(built.join("examples/bench")))?;
    }
    Ok(())
}
