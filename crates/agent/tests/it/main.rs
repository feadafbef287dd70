//! The agent against a fake control plane and the simulated driver over the in-process transport, and against the
//! real one over TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod fake;
mod images;
mod join;
mod life;
mod namespaces;
mod snapshots;
mod stillness;
mod streams;
mod upgrade;

use std::{path::Path, sync::Arc, time::Duration};

use nephos_agent::{Agent, Backoff, Config, Ended};
use nephos_driver::simulated::SimulatedHost;
use nephos_node_api::client::Local;
use nephos_types::Result;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use fake::Fake;

/// An agent that runs until dropped, as if killed.
struct Running {
    task: JoinHandle<Result<Ended>>,
    connections: CancellationToken,
}

impl Running {
    fn start(control: &Arc<Fake>, host: &SimulatedHost, data: Option<&Path>) -> Self {
        Self::with(control, host, Config { data: data.map(Path::to_owned), ..quick() })
    }

    fn with(control: &Arc<Fake>, host: &SimulatedHost, config: Config) -> Self {
        let connections = CancellationToken::new();
        let connector = Arc::new(Local::new(control.node, control.clone(), connections.clone()));
        let task = tokio::spawn(Agent::run(config, connector, Arc::new(host.driver()), CancellationToken::new()));
        Self { task, connections }
    }

    /// Ends it in the middle of whatever it does.
    async fn kill(self) {
        self.task.abort();
        let _ = (&mut { self }.task).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
        self.connections.cancel();
    }
}

/// Settings that keep tests short.
fn quick() -> Config {
    Config {
        retry: Backoff { first: Duration::from_millis(10), most: Duration::from_millis(100) },
        patience: Duration::from_millis(200),
        sweep: Duration::from_secs(3600),
        ..Config::default()
    }
}
