//! The engine as its users see it, over the journal in memory.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` functions

mod engine;
mod faults;
mod lifecycle;
mod world;

use std::time::Duration;

/// Prints a figure: `cargo test -p nephos-workflow --release -- --ignored --nocapture durable_steps`.
#[tokio::test]
#[ignore = "a benchmark"]
async fn durable_steps_per_second() {
    let journal = world::Journal::with_latency(world::World::default(), Duration::from_millis(1));
    let figure = nephos_workflow::bench::steps_per_second(journal, 64, Duration::from_secs(3)).await.unwrap();
    println!("{figure}");
    assert!(figure.steps > 0);
}
