//! Bringing one server to what it should be: look, do the next thing, look again.

use std::{
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use nephos_driver::{Boot, ComputeDriver, Disk, DiskFormat, GuestSpec, Observation, Power, Presence, StopMode};
use nephos_node_api::{BootSource, FETCHING_IMAGE, ImageSource, ServerState, WantedPower};
use nephos_types::{Error, ErrorKind, Result};
use tokio::sync::Notify;

use crate::{
    records::Record,
    servers::{Servers, Trouble, Turn, Work},
    snapshots::Outcome,
};

/// Why a turn ended before its end.
enum Stopped {
    /// There is a newer wish.
    Superseded,
    /// It failed; try again later.
    Failed(Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What to do with a guest that should run.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It runs, as it should.
    Nothing,
    /// It does not run and was asked to.
    Start,
    /// It runs and was asked to reboot.
    Reboot,
    /// It stands still or is suspended, and is to go on.
    Resume,
    /// It stands still or is suspended, and was asked to reboot.
    Renew,
    /// It ended without being asked to, and is to be started again.
    Restart,
    /// It ended, and stays so until somebody asks.
    LeaveOff,
}

/// Decides it. `reached` tells an old wish that a guest has fallen away from (a crash, a power cut) from a new one.
fn next_of(record: &Record, observation: Option<&Observation>, restart: bool) -> Next {
    let asked = record.reached != record.desired.generation;
    match observation {
        Some(observation) if observation.power == Power::On => {
            if record.desired.reboots > record.reboots {
                Next::Reboot
            } else {
                Next::Nothing
            }
        }
        Some(observation) if matches!(observation.power, Power::Paused | Power::Suspended) => {
            if record.desired.reboots > record.reboots { Next::Renew } else { Next::Resume }
        }
        _ if asked => Next::Start,
        observation => {
            let by_itself = observation.and_then(|observation| observation.ended.as_deref());
            if record.left_off || by_itself == Some("shutdown") || !restart { Next::LeaveOff } else { Next::Restart }
        }
    }
}

impl Servers {
    /// One turn of a server's worker.
    pub(crate) async fn reconcile(&self, work: &mut Work) -> Turn {
        match self.bring_about(&mut work.record, &work.wake, &mut work.trouble).await {
            Ok(()) => match self.copy_disk(&work.record).await {
                Outcome::Settled => {
                    work.trouble.failures = 0;
                    Turn::Settled
                }
                Outcome::Again => {
                    work.trouble.failures = work.trouble.failures.saturating_add(1);
                    Turn::Again(self.config.retry.after(work.trouble.failures))
                }
            },
            Err(Stopped::Superseded) => Turn::Again(Duration::ZERO),
            Err(Stopped::Failed(error)) => {
                work.trouble.failures = work.trouble.failures.saturating_add(1);
                tracing::warn!(server = %work.record.desired.id, error = %error.chain(), failures = work.trouble.failures, "a server could not be brought to what it should be");
                let presence = self.observe(&work.record.desired).await;
                self.report(&work.record, presence, Some(error));
                Turn::Again(self.config.retry.after(work.trouble.failures))
            }
        }
    }

    async fn bring_about(&self, record: &mut Record, wake: &Notify, trouble: &mut Trouble) -> Result<(), Stopped> {
        let id = record.desired.id;
        let driver = Arc::clone(self.drivers.named(&record.desired.driver)?);
        let mut presence = driver.observe(id).await;
        if record.reached == 0 && matches!(presence, Presence::Present(_)) {
            // Its record was lost, but the guest is here: the reboots asked for so far have been done or forgotten.
            record.reboots = record.reboots.max(record.desired.reboots);
        }
        record.reboots = record.reboots.min(record.desired.reboots);
        self.keep(record).await?;
        match record.desired.power {
            WantedPower::Absent => {
                if !matches!(presence, Presence::Gone) {
                    self.doing(record, "removing");
                }
                // Asked for even if nothing is seen: a half-made guest may not show.
                let _slot = self.slots.acquire().await;
                driver.remove(id).await?;
                presence = driver.observe(id).await;
                return match presence {
                    Presence::Gone => {
                        self.usage.forget(id).await;
                        self.reached(record, Presence::Gone).await
                    }
                    _ => {
                        Err(Error::new(ErrorKind::Unavailable, "not_removed", "Something of the server is left").into())
                    }
                };
            }
            WantedPower::Off { grace_ms } => {
                if !is_off(&presence) {
                    self.doing(record, "stopping");
                    let mode = mode_of(grace_ms);
                    self.interruptible(mode, driver.stop(id, mode), wake).await?;
                }
                if record.reached != record.desired.generation || matches!(presence, Presence::Gone) {
                    self.define(record, wake).await?;
                }
                record.left_off = false;
                record.reboots = record.desired.reboots;
                trouble.crashes = 0;
            }
            WantedPower::On { restart } => {
                if let Presence::Unknown { reason } = presence {
                    return Err(guest_unknown(&reason).into());
                }
                self.run(record, &*driver, &presence, restart, wake, trouble).await?;
            }
            WantedPower::Paused | WantedPower::Suspended => self.hold_still(record, &*driver, &presence).await?,
        }
        presence = driver.observe(id).await;
        self.reached(record, presence).await
    }

    /// Makes a guest stand still in memory or on the disk. One that is off is left off.
    async fn hold_still(
        &self,
        record: &mut Record,
        driver: &dyn ComputeDriver,
        presence: &Presence,
    ) -> Result<(), Stopped> {
        let id = record.desired.id;
        let power = match presence {
            Presence::Present(observation) => observation.power,
            Presence::Gone => Power::Off,
            Presence::Unknown { reason } => return Err(guest_unknown(reason).into()),
        };
        record.reboots = record.desired.reboots;
        match (record.desired.power, power) {
            (_, Power::Off) | (WantedPower::Paused, Power::Paused) | (WantedPower::Suspended, Power::Suspended) => {}
            (WantedPower::Suspended, _) => {
                self.doing(record, "suspending");
                let _slot = self.slots.acquire().await;
                driver.suspend(id).await?;
            }
            (_, power) => {
                self.doing(record, "pausing");
                let _slot = self.slots.acquire().await;
                if power == Power::Suspended {
                    driver.start(id).await?;
                }
                driver.pause(id).await?;
            }
        }
        Ok(())
    }

    /// Makes a guest run.
    async fn run(
        &self,
        record: &mut Record,
        driver: &dyn ComputeDriver,
        presence: &Presence,
        restart: bool,
        wake: &Notify,
        trouble: &mut Trouble,
    ) -> Result<(), Stopped> {
        let id = record.desired.id;
        let observation = match presence {
            Presence::Present(observation) => Some(observation),
            _ => None,
        };
        let next = next_of(record, observation, restart);
        if next == Next::Restart {
            if trouble.started.is_none_or(|started| started.elapsed() > self.config.stable_after) {
                trouble.crashes = 0;
            }
            trouble.crashes = trouble.crashes.saturating_add(1);
            let delay = self.config.retry.after(trouble.crashes);
            let why =
                observation.and_then(|observation| observation.ended.as_deref()).unwrap_or("it does not run any more");
            let waiting =
                Error::new(ErrorKind::Unavailable, "guest_crashed", "The guest has crashed; it is started again")
                    .detail(format!("{why}; next attempt in {} ms", delay.as_millis()));
            self.report(record, presence.clone(), Some(waiting));
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = wake.notified() => return Err(Stopped::Superseded),
            }
        }
        if record.reached != record.desired.generation || !matches!(next, Next::Nothing | Next::LeaveOff) {
            self.define(record, wake).await?;
        }
        match next {
            Next::Nothing | Next::LeaveOff => {}
            Next::Resume => {
                self.doing(record, "resuming");
                let _slot = self.slots.acquire().await;
                driver.start(id).await?;
            }
            Next::Renew => {
                self.doing(record, "rebooting");
                let _slot = self.slots.acquire().await;
                driver.stop(id, StopMode::Hard).await?;
                driver.start(id).await?;
                record.reboots = record.desired.reboots;
                self.keep(record).await?;
            }
            Next::Reboot => {
                self.doing(record, "rebooting");
                let mode = mode_of(record.desired.reboot_grace_ms);
                self.interruptible(mode, driver.reboot(id, mode), wake).await?;
                record.reboots = record.desired.reboots;
                self.keep(record).await?;
            }
            Next::Start | Next::Restart => {
                self.doing(record, "starting");
                let slot = self.slots.acquire().await;
                driver.start(id).await?;
                drop(slot);
                trouble.started = Some(Instant::now());
                record.reboots = record.desired.reboots;
                record.left_off = false;
                if next == Next::Restart {
                    record.restarts = record.restarts.saturating_add(1);
                    tracing::info!(server = %id, restarts = record.restarts, "the guest was started again");
                }
            }
        }
        if next == Next::LeaveOff {
            record.left_off = true;
        }
        Ok(())
    }

    async fn define(&self, record: &Record, wake: &Notify) -> Result<(), Stopped> {
        let desired = &record.desired;
        let base = self.load(record, desired.image.as_ref(), wake).await?;
        let rescue = self.load(record, desired.rescue.as_ref(), wake).await?;
        let boot = match &desired.boot {
            BootSource::Disk => Boot::Disk,
            BootSource::Kernel { kernel, initrd, command_line } => {
                let Some((kernel, _)) = self.load(record, Some(kernel), wake).await? else { return Ok(()) };
                let initrd = self.load(record, initrd.as_ref(), wake).await?.map(|(initrd, _)| initrd);
                Boot::Kernel { kernel, initrd, command_line: command_line.clone() }
            }
        };
        let in_space = self.drivers.in_namespace(&desired.driver);
        let interfaces = tokio::select! {
            interfaces = self.networks.interfaces(desired.id, &desired.interfaces, in_space) => interfaces?,
            () = wake.notified() => return Err(Stopped::Superseded),
        };
        let spec = GuestSpec {
            id: desired.id,
            name: desired.name.clone(),
            vcpus: desired.vcpus,
            memory: desired.memory,
            disk: Disk { base, size: desired.disk, incarnation: desired.incarnation },
            firmware: desired.firmware,
            boot,
            rescue,
            interfaces,
            config_drive: desired.config_drive.clone(),
        };
        let _slot = self.slots.acquire().await;
        Ok(self.drivers.named(&desired.driver)?.define(&spec).await?)
    }

    /// Brings an image into the cache.
    async fn load(
        &self,
        record: &Record,
        source: Option<&ImageSource>,
        wake: &Notify,
    ) -> Result<Option<(PathBuf, DiskFormat)>, Stopped> {
        let Some(source) = source else { return Ok(None) };
        let last = AtomicU8::new(u8::MAX);
        let progress = |percent: u8| {
            // Ten reports per image are enough.
            let percent = percent / 10 * 10;
            if last.swap(percent, Ordering::Relaxed) != percent {
                self.report_state(
                    record,
                    ServerState::Working { doing: FETCHING_IMAGE.to_owned(), percent: Some(percent) },
                    None,
                );
            }
        };
        let path = tokio::select! {
            path = self.images.ensure(source, progress, || self.images_in_use()) => path?,
            () = wake.notified() => return Err(Stopped::Superseded),
        };
        Ok(Some((path, source.format)))
    }

    /// Makes the copies of the root disk that are asked for.
    async fn copy_disk(&self, record: &Record) -> Outcome {
        let desired = &record.desired;
        if desired.snapshots.is_empty() || desired.power == WantedPower::Absent {
            return Outcome::Settled;
        }
        match self.drivers.named(&desired.driver) {
            Ok(driver) => self.snapshots.make(desired.id, &desired.snapshots, driver).await,
            Err(_) => Outcome::Settled,
        }
    }

    /// Waits for a stop or reboot; a soft one, which may take minutes, gives way to a newer wish.
    async fn interruptible(
        &self,
        mode: StopMode,
        work: impl Future<Output = Result<()>>,
        wake: &Notify,
    ) -> Result<(), Stopped> {
        if mode == StopMode::Hard {
            return Ok(work.await?);
        }
        tokio::select! {
            done = work => Ok(done?),
            () = wake.notified() => Err(Stopped::Superseded),
        }
    }

    fn doing(&self, record: &Record, doing: &str) {
        self.report_state(record, ServerState::Working { doing: doing.to_owned(), percent: None }, None);
    }

    /// All that was asked for is so.
    async fn reached(&self, record: &mut Record, presence: Presence) -> Result<(), Stopped> {
        record.reached = record.desired.generation;
        self.keep(record).await?;
        self.report(record, presence, None);
        Ok(())
    }
}

fn is_off(presence: &Presence) -> bool {
    matches!(presence, Presence::Gone | Presence::Present(Observation { power: Power::Off, .. }))
}

fn guest_unknown(reason: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "guest_unknown", "The node cannot tell what the guest does")
        .detail(reason.to_owned())
}

fn mode_of(grace_ms: u64) -> StopMode {
    if grace_ms == 0 { StopMode::Hard } else { StopMode::Soft(Duration::from_millis(grace_ms)) }
}
