//! The driver: the verbs of the trait, each passed to the guest that it is about.

use std::{
    collections::BTreeSet,
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures_util::{Stream, future::BoxFuture, stream};
use nephos_driver::{
    Accelerator, Answer, Capabilities, ComputeDriver, Console, DiskFormat, Feature, GuestEvent, GuestSpec, Power,
    Presence, Question, Snapshot, SnapshotRequest, StopMode, Usage, refusal,
};
use nephos_host::{
    lock,
    work::{blocking, finish},
};
use nephos_types::{Error, ErrorKind, ServerId};
use tokio::sync::{broadcast, oneshot, watch};

use crate::{
    agent::AgentError,
    config::{Acceleration, Config},
    firmware::Uefi,
    host::Host,
    inside,
    programs::{version, version_of_disk_tool},
    rights::Users,
    screen,
};

/// Events that a slow listener may be behind.
const EVENTS: usize = 1024;

/// Runs guests as QEMU processes. Dropping it leaves them running.
pub struct QemuDriver {
    host: Arc<Host>,
}

impl QemuDriver {
    /// Takes over a state folder: finds QEMU, adopts the guests that run, and begins to look for hardware
    /// virtualisation if that is not known yet.
    ///
    /// # Errors
    /// `qemu_missing` if QEMU cannot be run; `state_in_use` if another driver has the folder.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let version = version(&config.qemu).await?;
        version_of_disk_tool(&config.qemu_img).await?;
        let folder = config.state.join("guests");
        let unusable = |error| Error::internal("The folder of the node's servers cannot be used", error);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(unusable)?;
        let lock = lock(&config.state).await?;
        let host = Arc::new(Host {
            folder,
            version,
            users: Users::available(),
            uefi: Uefi::find(),
            accelerator: watch::Sender::new(None),
            guests: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            _lock: lock,
            config,
        });
        let driver = Self { host };
        driver.host.adopt_all().await.map_err(unusable)?;
        match &driver.host.config.acceleration {
            Acceleration::Emulate => {
                let reason = "hardware virtualisation is switched off by configuration".to_owned();
                driver.host.accelerator.send_replace(Some(Accelerator::Tcg { reason }));
            }
            Acceleration::Probe { kernels } => {
                let (host, kernels) = (Arc::downgrade(&driver.host), kernels.clone());
                tokio::spawn(async move {
                    if let Some(host) = host.upgrade() {
                        host.probe(&kernels).await;
                    }
                });
            }
        }
        Ok(driver)
    }

    /// Looks for hardware virtualisation again, e.g. when a kernel to try it with has become available. Guests that
    /// run stay as they are.
    pub async fn probe(&self, kernels: &[PathBuf]) -> Accelerator {
        self.host.probe(kernels).await
    }
}

impl Drop for QemuDriver {
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

impl ComputeDriver for QemuDriver {
    fn capabilities(&self) -> Capabilities {
        let known = self.host.accelerator.borrow().clone();
        let mut features = BTreeSet::from([
            Feature::Pause,
            Feature::Suspend,
            Feature::Snapshot,
            Feature::Rescue,
            Feature::GrowLive,
            Feature::Kernel,
            Feature::Ask,
            Feature::Display,
            Feature::Network,
        ]);
        if self.host.uefi.is_some() {
            features.insert(Feature::Uefi);
        }
        let probing = || Accelerator::Tcg { reason: "hardware virtualisation is still being tried".to_owned() };
        Capabilities {
            driver: "qemu".to_owned(),
            version: self.host.version.clone(),
            accelerator: known.unwrap_or_else(probing),
            disk_formats: vec![DiskFormat::Qcow2, DiskFormat::Raw, DiskFormat::Iso],
            console: true,
            soft_stop: true,
            features,
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
            let guest = self.host.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            let work = guest.work.clone().lock_owned().await;
            let host = self.host.clone();
            // A task of its own: whoever waits may give up, but a process that was started must get its watch.
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
            let guest = self.host.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
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
            let guest = self.host.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            let _work = guest.work.lock().await;
            self.host.pause(&guest).await
        })
    }

    fn suspend(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let guest = self.host.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            let work = guest.work.clone().lock_owned().await;
            let host = self.host.clone();
            finish(async move {
                let _work = work;
                host.suspend(&guest).await
            })
            .await
        })
    }

    fn snapshot<'a>(&'a self, id: ServerId, request: &'a SnapshotRequest) -> BoxFuture<'a, Result<Snapshot, Error>> {
        Box::pin(async move {
            let guest = self.host.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            let work = guest.work.clone().lock_owned().await;
            let (host, request) = (self.host.clone(), request.clone());
            // When this call is dropped, so is the sender, and the task puts everything in order by itself.
            let (_waiting, given_up) = oneshot::channel();
            finish(async move {
                let _work = work;
                host.snapshot(&guest, request, given_up).await
            })
            .await
        })
    }

    fn ask<'a>(&'a self, id: ServerId, question: &'a Question) -> BoxFuture<'a, Result<Answer, Error>> {
        Box::pin(async move {
            question.check()?;
            let guest = self.host.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            let machine = guest.machine().filter(|_| guest.power() == Some(Power::On));
            let machine = machine.ok_or_else(|| refusal::not_running(id))?;
            if !machine.agent_listens().await {
                return Err(AgentError::Missing("no program has opened the agent's line".to_owned()).about(id));
            }
            inside::ask(&machine.agent, question).await
        })
    }

    fn display(&self, id: ServerId) -> BoxFuture<'_, Result<Box<dyn Console>, Error>> {
        Box::pin(async move {
            let guest = self.host.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            screen::open(&guest).await
        })
    }

    fn screenshot(&self, id: ServerId) -> BoxFuture<'_, Result<Vec<u8>, Error>> {
        Box::pin(async move {
            let guest = self.host.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            screen::picture(&guest).await
        })
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
            let guest = self.host.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            let machine = guest.machine().ok_or_else(|| refusal::not_running(id))?;
            machine.consoles.open().await.map_err(|error| {
                Error::new(ErrorKind::Unavailable, "console_unavailable", "The console cannot be opened").source(error)
            })
        })
    }

    fn console_log(&self, id: ServerId, max: usize) -> BoxFuture<'_, Result<Vec<u8>, Error>> {
        Box::pin(async move {
            let guest = self.host.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            let read = move || guest.folder.console_log(max);
            blocking(move || read().map_err(|error| Error::internal("The console log cannot be read", error))).await
        })
    }

    fn usage(&self, id: ServerId) -> BoxFuture<'_, Result<Usage, Error>> {
        Box::pin(async move {
            let guest = self.host.guest(id).ok_or_else(|| refusal::unknown_guest(id))?;
            match guest.machine() {
                Some(machine) => machine.usage().await,
                None => Ok(Usage::default()),
            }
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
