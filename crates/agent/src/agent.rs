//! The agent: says hello, polls for what should be, reports what is.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use nephos_driver::Capabilities;
use nephos_node_api::{
    Client, Connector, HELLO_FIRST, Hello, Inventory, NODE_REMOVED, PROTOCOL_VERSION, WantedInterface, WantedPower,
};
use nephos_types::{Error, NodeId, PortId, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config, drivers::Drivers, health::Health, images::Images, inventory, records::Records, reporter::Reporter,
    servers::Servers, snapshots::Snapshots, streams::Streams, upgrade::Upgrades, usage::Rings,
};

/// Why an agent has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// Another program has taken the place of this process's own: it is to be run instead.
    Replaced,
}

/// One node.
pub struct Agent {
    config: Arc<Config>,
    client: Client,
    servers: Arc<Servers>,
    streams: Arc<Streams>,
    upgrades: Arc<Upgrades>,
    health: Health,
    reporter: Arc<Reporter>,
    report_every_ms: AtomicU64,
    /// Zero: nothing is measured.
    usage_every_ms: AtomicU64,
    /// What the control plane was last told that the drivers can do.
    told: Mutex<Option<Vec<Capabilities>>>,
    shutdown: CancellationToken,
}

impl Agent {
    /// Runs a node until `shutdown`, or until another program has taken this one's place; its guests go on running.
    ///
    /// # Errors
    /// When the agent's folder cannot be used, and with code `node_removed` when the control plane does not know the
    /// node (any more). Whatever else goes wrong is tried again.
    pub async fn run(
        config: Config,
        connector: Arc<dyn Connector>,
        drivers: impl Into<Drivers>,
        shutdown: CancellationToken,
    ) -> Result<Ended> {
        let drivers = drivers.into();
        // Whatever this run has started ends with it.
        let shutdown = shutdown.child_token();
        let _end = shutdown.clone().drop_guard();
        let config = Arc::new(config);
        let client = Client::new(connector);
        let reporter = Arc::new(Reporter::default());
        let records = Records::open(config.data.as_deref())?;
        let images = Images::open(config.data.as_deref(), config.image_cache, client.clone())?;
        let snapshots = Snapshots::open(config.data.as_deref(), config.retry, client.clone(), reporter.clone())?;
        let usage = Rings::open(config.data.as_deref(), config.usage_samples)?;
        let servers = Servers::new(config.clone(), drivers, images, snapshots, records, reporter.clone(), usage);
        let streams = Streams::new(servers.clone(), client.clone(), shutdown.clone());
        let upgrades = Upgrades::new(config.program.clone(), client.clone(), config.retry, reporter.clone());
        let health = Health::new(config.data.clone());
        let agent = Self {
            config,
            client,
            servers,
            streams,
            upgrades,
            health,
            reporter,
            report_every_ms: AtomicU64::new(3000),
            usage_every_ms: AtomicU64::new(0),
            told: Mutex::default(),
            shutdown,
        };
        let ended = tokio::select! {
            broken = agent.live() => broken.map(|()| Ended::Stopped),
            () = agent.shutdown.cancelled() => Ok(Ended::Stopped),
            () = agent.upgrades.replaced.cancelled() => Ok(Ended::Replaced),
        }?;
        agent.servers.records.flush().await?;
        Ok(ended)
    }

    async fn live(&self) -> Result<()> {
        // Listening begins before looking, so that nothing happens unseen in between.
        let events = self.servers.drivers.events();
        self.servers.adopt().await?;
        self.reporter.demand_full();
        tokio::try_join!(
            self.converse(),
            self.lose_patience(),
            self.watch(events),
            self.look_after(),
            self.measure(),
            self.keep_networks()
        )?;
        Ok(())
    }

    /// All that is said to the control plane and heard from it.
    async fn converse(&self) -> Result<()> {
        let node = self.hello().await?;
        tracing::info!(%node, "the control plane knows this node");
        tokio::try_join!(self.poll(), self.report())?;
        Ok(())
    }

    /// Says hello until it is answered.
    async fn hello(&self) -> Result<NodeId> {
        let mut failures = 0;
        loop {
            let capabilities = self.servers.drivers.capabilities();
            let hello = Hello {
                protocol: PROTOCOL_VERSION,
                agent_version: self.config.version.clone(),
                inventory: Inventory {
                    network: self.servers.networks.capabilities(),
                    ..inventory::read(&self.config, capabilities.clone(), self.servers.drivers.missing())?
                },
                program: self.config.program.as_ref().map(|program| program.sha256().to_owned()),
            };
            match self.client.hello(&hello).await {
                Ok(answer) => {
                    *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(capabilities);
                    self.report_every_ms.store(answer.report_every_ms.clamp(100, 60_000), Ordering::Relaxed);
                    self.usage_every_ms.store(answer.usage_every_ms, Ordering::Relaxed);
                    return Ok(answer.node);
                }
                Err(error) => self.after_failure(error, &mut failures, "hello").await?,
            }
        }
    }

    /// Whether the drivers can do something else than the control plane was told.
    fn has_news(&self) -> bool {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).as_ref() != Some(&self.servers.drivers.capabilities())
    }

    /// Logs a failed call and waits; gives up only if this node is none any more.
    async fn after_failure(&self, error: Error, failures: &mut u32, call: &str) -> Result<()> {
        if error.code == NODE_REMOVED {
            tracing::error!("this node has been removed from its cloud; its guests are left as they are");
            return Err(error);
        }
        *failures = failures.saturating_add(1);
        if *failures == 1 {
            tracing::warn!(call, error = %error.chain(), "the control plane does not take a call; trying again");
        } else {
            tracing::debug!(call, error = %error.chain(), failures, "the control plane still does not take a call");
        }
        if error.code == "certificate_expired" {
            self.client.redial();
        }
        // A control plane that restarts is back within seconds; more than 10 s between attempts would be seen as
        // an outage of the node.
        let mut delay = self.config.retry.after(*failures);
        delay = delay.min(Duration::from_secs(5));
        tokio::time::sleep(delay).await;
        Ok(())
    }

    async fn poll(&self) -> Result<()> {
        let mut revision = None;
        let mut failures = 0;
        loop {
            match self.client.desired(revision, self.config.poll).await {
                Ok(desired) => {
                    failures = 0;
                    if revision == Some(desired.revision) {
                        continue;
                    }
                    revision = Some(desired.revision);
                    self.upgrades.apply(desired.program);
                    self.streams.apply(desired.streams);
                    self.servers.apply(desired.servers).await;
                    self.servers.wish_networks(desired.networks);
                    self.servers.start();
                }
                Err(error) => self.after_failure(error, &mut failures, "desired").await?,
            }
        }
    }

    async fn report(&self) -> Result<()> {
        let mut failures = 0;
        let mut full_due = Instant::now() + self.config.full_report;
        loop {
            let every = Duration::from_millis(self.report_every_ms.load(Ordering::Relaxed));
            tokio::select! {
                () = self.reporter.something() => {}
                () = tokio::time::sleep(every) => {}
            }
            // A driver may still be finding out what the machine can do when the agent first says hello.
            if self.has_news() {
                self.hello().await?;
            }
            if Instant::now() >= full_due {
                self.reporter.demand_full();
                full_due = Instant::now() + self.config.full_report;
            }
            let mut sending = self.reporter.next();
            sending.report.health = self.health.look();
            sending.report.health.extend(self.upgrades.condition());
            match self.client.report(&sending.report).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    self.reporter.lost(sending);
                    if error.code == HELLO_FIRST {
                        self.reporter.demand_full();
                        self.hello().await?;
                    } else {
                        self.after_failure(error, &mut failures, "report").await?;
                    }
                }
            }
        }
    }

    /// Goes by what is remembered if the control plane is not there in time.
    async fn lose_patience(&self) -> Result<()> {
        tokio::time::sleep(self.config.patience).await;
        self.servers.start();
        Ok(())
    }

    async fn watch(
        &self,
        mut events: std::pin::Pin<Box<dyn futures_util::Stream<Item = nephos_driver::GuestEvent> + Send>>,
    ) -> Result<()> {
        while let Some(event) = events.next().await {
            self.servers.happened(event);
        }
        // A driver without events is looked at by the sweep alone.
        Ok(())
    }

    /// Makes networks be as they should, and looks again at the servers whose ports have become something else.
    async fn keep_networks(&self) -> Result<()> {
        let servers = &self.servers;
        let concerned = |ports: &BTreeSet<PortId>| {
            let of =
                |wish: &WantedInterface| matches!(wish, WantedInterface::Port { port, .. } if ports.contains(port));
            servers.wake_all(|record| record.desired.interfaces.iter().any(of));
        };
        servers.networks.keep(self.config.sweep, concerned).await;
        Ok(())
    }

    /// Measures what running servers use, as often as the control plane wishes.
    async fn measure(&self) -> Result<()> {
        /// How often it is looked whether the control plane wishes it by now.
        const IDLE: Duration = Duration::from_millis(500);
        if self.config.usage_samples == 0 {
            return std::future::pending().await;
        }
        let mut next = Instant::now();
        loop {
            let every = self.usage_every_ms.load(Ordering::Relaxed);
            if every == 0 {
                tokio::time::sleep(IDLE).await;
                continue;
            }
            next = (next + Duration::from_millis(every.clamp(100, 3_600_000))).max(Instant::now());
            tokio::time::sleep_until(next).await;
            self.servers.measure().await;
        }
    }

    /// Looks at everything now and then, in case an event was missed; brings records to the disk.
    async fn look_after(&self) -> Result<()> {
        const FLUSH: Duration = Duration::from_secs(1);
        let mut sweep_due = Instant::now() + self.config.sweep;
        loop {
            let flush_due = if self.config.data.is_some() { Instant::now() + FLUSH } else { sweep_due };
            tokio::time::sleep_until(flush_due.min(sweep_due)).await;
            if let Err(error) = self.servers.records.flush().await {
                tracing::warn!(error = %error.chain(), "records could not be brought to the disk");
            }
            if Instant::now() >= sweep_due {
                self.servers.wake_all(|record| !matches!(record.desired.power, WantedPower::Absent));
                self.servers.look_for_strangers().await;
                sweep_due = Instant::now() + self.config.sweep;
            }
        }
    }
}
