//! `cargo xtask test`: everything the tests need, then all of them.

use crate::{
    process::{Outcome, cargo, run as run_command},
    system,
};

/// Checks the REST front end from its own OpenAPI document; stands in for S3; a WebSocket client that knows nothing of Nephos.
const PYTHON: &[&str] = &["schemathesis>=4,<5", "moto[server]>=5,<6", "websockets>=13,<17"];

/// Runs the tests whose names contain the filter, or all.
pub(crate) fn run(filter: &[String]) -> Outcome {
    system::ensure_tests()?;
    let python = system::python("tests", PYTHON)?;
    run_command(
        cargo()
            .args(["test", "--workspace", "--no-fail-fast"])
            .args(filter)
            .env("NEPHOS_TEST_PYTHON", python.join("bin")),
    )
}
