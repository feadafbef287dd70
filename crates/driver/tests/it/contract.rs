//! The simulated driver passes the contract, at once and with delays.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use nephos_driver::{
    ComputeDriver, DiskFormat, Observation,
    contract::{self, Subject},
    simulated::{Behaviour, LOGIN, SimulatedHost, Verb},
};
use nephos_types::ServerId;

struct Simulated {
    host: SimulatedHost,
    scratch: tempfile::TempDir,
}

impl Subject for Simulated {
    fn driver(&self) -> BoxFuture<'_, Arc<dyn ComputeDriver>> {
        Box::pin(async { Arc::new(self.host.driver()) as Arc<dyn ComputeDriver> })
    }
    fn base(&self) -> Option<(PathBuf, DiskFormat)> {
        None
    }
    fn login(&self) -> (String, String) {
        (LOGIN.0.to_owned(), LOGIN.1.to_owned())
    }
    fn answers(&self) -> bool {
        true
    }
    fn scratch(&self) -> PathBuf {
        self.scratch.path().to_owned()
    }
    fn kill(&self, id: ServerId, _: &Observation) {
        self.host.crash(id, "killed by signal 9");
    }
    fn leftovers(&self, id: ServerId) -> Vec<String> {
        self.host.spec(id).into_iter().map(|spec| format!("{spec:?}")).collect()
    }
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

#[tokio::test]
async fn at_once() {
    contract::check(Simulated { host: SimulatedHost::new(1), scratch: tempfile::tempdir().unwrap() }).await;
}

#[tokio::test(start_paused = true)]
async fn with_delays() {
    let host = SimulatedHost::new(2);
    host.boot_time(Duration::from_secs(3));
    for verb in [Verb::Define, Verb::Start, Verb::Stop, Verb::Reboot, Verb::Remove, Verb::Observe, Verb::Console] {
        let (latency, jitter) = (Duration::from_millis(50), Duration::from_millis(200));
        host.behave(verb, Behaviour { latency, jitter, failures_per_million: 0 });
    }
    contract::check(Simulated { host, scratch: tempfile::tempdir().unwrap() }).await;
}
