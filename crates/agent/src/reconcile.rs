//! Bringing one server to what it should be: look, do the next thing, look again.

use std::{
    future::Future,
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use nephos_driver::{Boot, Disk, Firmware, GuestSpec, Observation, Power, Presence, StopMode};
use nephos_node_api::{FETCHING_IMAGE, ServerState, WantedPower};
use nephos_types::{Error, ErrorKind, Result};
use tokio::sync::Notify;

use crate::{
    records::Record,
    servers::{Servers, Trouble, Turn, Work},
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
            Ok(()) => {
                work.trouble.failures = 0;
                Turn::Settled
            }
            Err(Stopped::Superseded) => Turn::Again(Duration::ZERO),
            Err(Stopped::Failed(error)) => {
                work.trouble.failures = work.trouble.failures.saturating_add(1);
                tracing::warn!(server = %work.record.desired.id, error = %error.chain(), failures = work.trouble.failures, "a server could not be brought to what it should be");
                let presence = self.driver.observe(work.record.desired.id).await;
                self.report(&work.record, presence, Some(error));
                Turn::Again(self.config.retry.after(work.trouble.failures))
            }
        }
    }

    async fn bring_about(&self, record: &mut Record, wake: &Notify, trouble: &mut Trouble) -> Result<(), Stopped> {
        let id = record.desired.id;
        let mut presence = self.driver.observe(id).await;
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
                self.driver.remove(id).await?;
                presence = self.driver.observe(id).await;
                return match presence {
                    Presence::Gone => self.reached(record, Presence::Gone).await,
                    _ => {
                        Err(Error::new(ErrorKind::Unavailable, "not_removed", "Something of the server is left").into())
                    }
                };
            }
            WantedPower::Off { grace_ms } => {
                if running(&presence) {
                    self.doing(record, "stopping");
                    self.stop(record, mode_of(grace_ms), wake).await?;
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
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "guest_unknown",
                        "The node cannot tell what the guest does",
                    )
                    .detail(reason)
                    .into());
                }
                self.run(record, &presence, restart, wake, trouble).await?;
            }
        }
        presence = self.driver.observe(id).await;
        self.reached(record, presence).await
    }

    /// Makes a guest run.
    async fn run(
        &self,
        record: &mut Record,
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
            Next::Reboot => {
                self.doing(record, "rebooting");
                let mode = mode_of(record.desired.reboot_grace_ms);
                self.interruptible(mode, self.driver.reboot(id, mode), wake).await?;
                record.reboots = record.desired.reboots;
                self.keep(record).await?;
            }
            Next::Start | Next::Restart => {
                self.doing(record, "starting");
                let slot = self.slots.acquire().await;
                self.driver.start(id).await?;
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
        let base = match &desired.image {
            None => None,
            Some(source) => {
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
                Some((path, source.format))
            }
        };
        let spec = GuestSpec {
            id: desired.id,
            name: desired.name.clone(),
            vcpus: desired.vcpus,
            memory: desired.memory,
            disk: Disk { base, size: desired.disk, incarnation: 0 },
            firmware: Firmware::Bios,
            boot: Boot::Disk,
            rescue: None,
            interfaces: desired.interfaces.clone(),
            config_drive: desired.config_drive.clone(),
        };
        let _slot = self.slots.acquire().await;
        Ok(self.driver.define(&spec).await?)
    }

    async fn stop(&self, record: &Record, mode: StopMode, wake: &Notify) -> Result<(), Stopped> {
        self.interruptible(mode, self.driver.stop(record.desired.id, mode), wake).await
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

fn running(presence: &Presence) -> bool {
    matches!(presence, Presence::Present(Observation { power: Power::On, .. }) | Presence::Unknown { .. })
}

fn mode_of(grace_ms: u64) -> StopMode {
    if grace_ms == 0 { StopMode::Hard } else { StopMode::Soft(Duration::from_millis(grace_ms)) }
}
