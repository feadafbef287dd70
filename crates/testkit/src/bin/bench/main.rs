//! Prints the figures that the design names, each beside its target: `cargo xtask bench [NAME…]`.
//!
//! Figures only: nothing here or anywhere asserts a time. Data is kept in `TMPDIR`, which should be on a real disk.

mod booting;
mod connection;
mod containers;
mod creating;
mod deciding;
mod figure;
mod listing;
mod reading;
mod scale;
mod starting;
mod steps;

use std::{future::Future, path::PathBuf, pin::Pin, process::ExitCode};

use figure::Figure;

/// What ends a benchmark.
type Outcome<T = Vec<Figure>> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Bench = fn() -> Pin<Box<dyn Future<Output = Outcome>>>;

/// By name, in the order in which they run.
const BENCHES: [(&str, Bench); 7] = [
    ("start", || Box::pin(starting::run())),
    ("read", || Box::pin(reading::run())),
    ("steps", || Box::pin(steps::run())),
    ("create", || Box::pin(creating::run())),
    ("place", || Box::pin(deciding::run())),
    ("boot", || Box::pin(booting::run())),
    ("list", || Box::pin(listing::run())),
];

/// Those that take a quarter of an hour, and run only when they are named.
const LONG: [(&str, Bench); 1] = [("scale", || Box::pin(scale::run()))];

/// The `nephos` binary: `NEPHOS_BINARY`, or the one beside this.
fn nephos() -> Outcome<PathBuf> {
    match std::env::var_os("NEPHOS_BINARY") {
        Some(path) => Ok(path.into()),
        None => Ok(std::env::current_exe()?.with_file_name("nephos")),
    }
}

/// Settings of a cloud that logs as much as one in use does.
fn settings(simulated_nodes: u32) -> nephos_testkit::Settings {
    let environment = vec![("NEPHOS_LOG".to_owned(), "info".to_owned())];
    nephos_testkit::Settings { simulated_nodes, environment, ..Default::default() }
}

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let all = || BENCHES.iter().chain(&LONG);
    if let Some(unknown) = wanted.iter().find(|name| all().all(|(known, _)| known != name)) {
        let known: Vec<&str> = all().map(|(name, _)| *name).collect();
        eprintln!("there is no benchmark `{unknown}`; there are: store {}", known.join(" "));
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    figure::header();
    let mut failed = false;
    for (place, (name, bench)) in all().enumerate() {
        let asked = wanted.iter().any(|wanted| wanted == name) || (wanted.is_empty() && place < BENCHES.len());
        if !asked {
            continue;
        }
        match runtime.block_on(bench()) {
            Ok(figures) => figures.iter().for_each(|figure| println!("{figure}")),
            Err(error) => {
                println!("| {name} | failed: {error} | | |");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
