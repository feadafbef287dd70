//! The driver: the verbs of the trait, each passed to the guest that it is about.

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures_util::{Stream, future::BoxFuture, stream};
use nephos_driver::{
    Accelerator, Answer, Capabilities, ComputeDriver, Console, DiskFormat, Feature, GuestEvent, GuestSpec, Presence,
    Question, Snapshot, SnapshotRequest, StopMode, Usage, refusal,
};
use nephos_host::{
    lock,
    work::{blocking, finish},
};
use nephos_types::{Error, ErrorKind, ServerId};
use tokio::sync::broadcast;

use crate::{
    base::Bases,
    host::Host,
    keeper::CONSOLE,
    surroundings::{self, Config, Surroundings},
};

/// Events that a slow listener may be behind.
const EVENTS: usize = 1024;

/// Runs guests as containers. Dropping it leaves them running.
pub struct ContainerDriver {
    host: Arc<Host>,
}

impl ContainerDriver {
    /// Takes over a state folder: finds the runtime, and adopts the guests that run.
    ///
    /// # Errors
    /// `containers_unavailable` if this machine or this user cannot run containers, with what is missing;
    /// `state_in_use` if another driver has the folder.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let unusable = |error| Error::internal("The folder of the node's containers cannot be used", error);
        surroundings::check_user()?;
        let folder = config.state.join("guests");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(unusable)?;
        let folder = folder.canonicalize().map_err(unusable)?;
        let lock = lock(&config.state).await?;
        let surroundings = Surroundings::find(&config).await?;
        let bases = config.state.join("bases");
        let bases = Bases::open(bases, config.keeper.clone(), config.keep_unused, config.limits()).map_err(unusable)?;
        let host = Arc::new(Host {
            folder,
            surroundings,
            bases,
            guests: Mutex::default(),
            seats: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            _lock: lock,
        });
        let driver = Self { host };
        driver.host.adopt_all().await.map_err(unusable)?;
        driver.host.sweep().await;
        Ok(driver)
    }
}

impl Drop for ContainerDriver {
    /// Ends the watching, not the guests.
    fn drop(&mut self) {
        for guest in self.host.guests().values() {
            let mut now = guest.now();
            if let Some(watch) = now.watch.take() {
                watch.abort();
            }
            now.machine = None;
        }
    }
}

impl ComputeDriver for ContainerDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            driver: "container".to_owned(),
            version: self.host.surroundings.version.clone(),
            accelerator: Accelerator::None,
            disk_formats: vec![DiskFormat::Tar, DiskFormat::Oci],
            console: true,
            soft_stop: true,
            features: [
                Feature::Pause,
                Feature::Snapshot,
                Feature::Rescue,
                Feature::Ask,
                Feature::Network,
                Feature::Namespace,
            ]
            .into(),
        }
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ServerId>, Error>> {
        Box::pin(async { Ok(self.host.guests().keys().copied().collect()) })
    }

    fn observe(&self, id: ServerId) -> BoxFuture<'_, Presence> {
        Box::pin(async move { self.host.guest(id).map_or(Presence::Gone, |guest| guest.observe()) })
    }

    fn define<'a>(&'a self, spec: &'a GuestSpec) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.host.define(spec))
    }

    fn start(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let guest = self.host.known(id)?;
            let work = guest.work.clone().lock_owned().await;
            let host = self.host.clone();
            // A task of its own: whoever waits may give up, but a keeper that was started must get its watch.
            finish(async move {
                let _work = work;
                host.start(&guest).await
            })
            .await
        })
    }

    fn stop(&self, id: ServerId, mode: StopMode) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let Some(guest) = self.host.guest(id) else { return Ok(()) };
            let _work = guest.work.lock().await;
            self.host.stop(&guest, mode).await
        })
    }

    fn reboot(&self, id: ServerId, mode: StopMode) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let guest = self.host.known(id)?;
            let work = guest.work.clone().lock_owned().await;
            let host = self.host.clone();
            finish(async move {
                let _work = work;
                host.reboot(&guest, mode).await
            })
            .await
        })
    }

    fn pause(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let guest = self.host.known(id)?;
            let _work = guest.work.lock().await;
            let machine = guest.machine().ok_or_else(|| refusal::not_running(id))?;
            let frozen = machine.group.freeze().await;
            frozen.map_err(|error| Error::internal("The server could not be paused", error))
        })
    }

    fn snapshot<'a>(&'a self, id: ServerId, request: &'a SnapshotRequest) -> BoxFuture<'a, Result<Snapshot, Error>> {
        Box::pin(async move {
            let guest = self.host.known(id)?;
            let work = guest.work.clone().lock_owned().await;
            let (host, request) = (self.host.clone(), request.clone());
            // A task of its own: whoever waits may give up, but a guest that stands still must go on.
            finish(async move {
                let _work = work;
                host.snapshot(&guest, &request).await
            })
            .await
        })
    }

    fn ask<'a>(&'a self, id: ServerId, question: &'a Question) -> BoxFuture<'a, Result<Answer, Error>> {
        Box::pin(self.host.ask(id, question))
    }

    fn remove(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let Some(guest) = self.host.guest(id) else { return Ok(()) };
            let _work = guest.work.lock().await;
            self.host.remove(&guest).await
        })
    }

    fn console(&self, id: ServerId) -> BoxFuture<'_, Result<Box<dyn Console>, Error>> {
        Box::pin(async move {
            let guest = self.host.known(id)?;
            if guest.machine().is_none() {
                return Err(refusal::not_running(id));
            }
            let console = guest.folder.connect(CONSOLE).await;
            console.map(|console| Box::new(console) as Box<dyn Console>).map_err(|error| {
                Error::new(ErrorKind::Unavailable, "console_unavailable", "The console cannot be opened").source(error)
            })
        })
    }

    fn console_log(&self, id: ServerId, max: usize) -> BoxFuture<'_, Result<Vec<u8>, Error>> {
        Box::pin(async move {
            let guest = self.host.known(id)?;
            let read = move || guest.folder.console_log(max);
            blocking(move || read().map_err(|error| Error::internal("The console log cannot be read", error))).await
        })
    }

    fn usage(&self, id: ServerId) -> BoxFuture<'_, Result<Usage, Error>> {
        Box::pin(async move {
            let guest = self.host.known(id)?;
            let Some(machine) = guest.machine() else { return Ok(Usage::default()) };
            let used = machine.usage().await;
            used.map_err(|error| Error::internal("The server's use of the node cannot be read", error))
        })
    }

    fn events(&self) -> Pin<Box<dyn Stream<Item = GuestEvent> + Send>> {
        Box::pin(stream::unfold(self.host.events.subscribe(), |mut events| async move {
            loop {
                match events.recv().await {
                    Ok(event) => return Some((event, events)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        }))
    }
}
