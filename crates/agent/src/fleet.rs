//! Many simulated nodes in one process, for benchmarks and tests: each speaks the node protocol over in-process
//! streams, none has a thread, a file or a timer beyond its heartbeat of its own.

use std::{sync::Arc, time::Duration};

use nephos_driver::ComputeDriver;
use nephos_node_api::{ControlPlane, Hardware, Inventory, PortRange, client::Local};
use nephos_types::{Bytes, NodeId};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{agent::Agent, config::Config};

/// Settings of a simulated node with this much of everything.
#[must_use]
pub fn simulated_config(hostname: String, cpus: u32, memory: Bytes, disk: Bytes) -> Config {
    let defaults = Config::default();
    Config {
        inventory: Some(Inventory {
            hostname,
            kernel: "simulated".to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            cpu_model: "simulated".to_owned(),
            cpus,
            memory,
            disk,
            forward_ports: PortRange { first: 20_000, last: 29_999 },
            // Replaced by what the driver says.
            compute: vec![],
            missing: vec![],
            hardware: Hardware::default(),
            network: None,
        }),
        // Its guests cannot change unseen, so looking at all of them is only a safeguard.
        sweep: Duration::from_secs(600),
        full_report: Duration::from_secs(600),
        ..defaults
    }
}

/// Simulated nodes, until dropped or stopped.
pub struct Fleet {
    agents: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Fleet {
    /// Starts an agent for each node; `driver` makes the driver of the n-th one, `config` its settings.
    #[must_use]
    pub fn start(
        control: Arc<dyn ControlPlane>,
        nodes: impl IntoIterator<Item = NodeId>,
        mut driver: impl FnMut(usize) -> Arc<dyn ComputeDriver>,
        mut config: impl FnMut(usize) -> Config,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let mut agents = JoinSet::new();
        for (index, node) in nodes.into_iter().enumerate() {
            let connector = Arc::new(Local::new(node, control.clone(), shutdown.clone()));
            let run = Agent::run(config(index), connector, driver(index), shutdown.clone());
            agents.spawn(async move {
                if let Err(error) = run.await {
                    tracing::error!(%node, error = %error.chain(), "a simulated node has ended");
                }
            });
        }
        Self { agents, shutdown }
    }

    /// Ends all agents and waits for them.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        while self.agents.join_next().await.is_some() {}
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
