//! Guests that exist only in memory: thousands of machines in one process, with delays and faults to order.
//!
//! Invariants: a call that fails, hangs or is dropped before it returns has changed nothing; what happens depends only
//! on the seed, the script, the calls and the clock (tokio's, so a paused one works).

mod host;
mod line;
mod script;
mod shell;

use std::{
    future::{Future, pending},
    pin::Pin,
};

use futures_util::{Stream, future::BoxFuture, stream};
use nephos_types::{Error, ServerId};
use tokio::time::{sleep, sleep_until};

pub use host::SimulatedHost;
pub use script::{Behaviour, Effect, Rule, Verb};

use self::{host::Verdict, line::LineConsole};
use crate::{
    Accelerator, Capabilities, ComputeDriver, Console, DiskFormat, GuestEvent, GuestSpec, Presence, StopMode, Usage,
    refusal,
};

/// User name and password at the login prompt of a simulated guest.
pub const LOGIN: (&str, &str) = ("root", "nephos");

/// The driver of one [`SimulatedHost`].
pub struct SimulatedDriver {
    host: SimulatedHost,
}

impl SimulatedDriver {
    pub(crate) fn new(host: SimulatedHost) -> Self {
        Self { host }
    }

    /// Counts the call and lives through what is ordered for it.
    async fn pass(&self, verb: Verb, guest: Option<ServerId>) -> Result<Verdict, Error> {
        let mut verdict = self.host.inner.lock().judge(verb, guest);
        if verdict.hang {
            pending::<()>().await;
        }
        if !verdict.delay.is_zero() {
            sleep(verdict.delay).await;
        }
        verdict.fail.take().map_or(Ok(verdict), Err)
    }

    fn runs(&self, id: ServerId) -> Result<bool, Error> {
        let state = self.host.inner.lock();
        state.guests.get(&id).map(|guest| guest.run.is_some()).ok_or_else(|| refusal::unknown_guest(id))
    }

    /// Lets a soft stop's grace pass if the guest does not react.
    async fn grace(&self, id: ServerId, mode: StopMode, deaf: bool) {
        if let StopMode::Soft(grace) = mode
            && deaf
            && self.runs(id).unwrap_or(false)
        {
            sleep(grace).await;
        }
    }
}

impl ComputeDriver for SimulatedDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            driver: "simulated".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            accelerator: Accelerator::None,
            disk_formats: vec![DiskFormat::Qcow2, DiskFormat::Raw, DiskFormat::Iso],
            console: true,
            soft_stop: true,
        }
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ServerId>, Error>> {
        Box::pin(async move {
            self.pass(Verb::List, None).await?;
            Ok(self.host.inner.lock().guests.keys().copied().collect())
        })
    }

    fn observe(&self, id: ServerId) -> BoxFuture<'_, Presence> {
        Box::pin(async move {
            match self.pass(Verb::Observe, Some(id)).await {
                Ok(Verdict { unknown: Some(reason), .. }) => Presence::Unknown { reason },
                Ok(_) => self.host.inner.lock().observe(id),
                Err(error) => Presence::Unknown { reason: error.to_string() },
            }
        })
    }

    fn define<'a>(&'a self, spec: &'a GuestSpec) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            spec.check()?;
            self.pass(Verb::Define, Some(spec.id)).await?;
            self.host.inner.lock().define(spec);
            Ok(())
        })
    }

    fn start(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let verdict = self.pass(Verb::Start, Some(id)).await?;
            if !self.host.inner.lock().start(id, verdict.crash_after) {
                return Err(refusal::unknown_guest(id));
            }
            self.host.inner.changed.notify_waiters();
            Ok(())
        })
    }

    fn stop(&self, id: ServerId, mode: StopMode) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let verdict = self.pass(Verb::Stop, Some(id)).await?;
            self.grace(id, mode, verdict.deaf).await;
            self.host.inner.lock().end(id, None, None);
            Ok(())
        })
    }

    fn reboot(&self, id: ServerId, mode: StopMode) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let verdict = self.pass(Verb::Reboot, Some(id)).await?;
            if !self.runs(id)? {
                return Err(refusal::not_running(id));
            }
            self.grace(id, mode, verdict.deaf).await;
            let mut state = self.host.inner.lock();
            match mode {
                StopMode::Hard => state.reset(id),
                StopMode::Soft(_) => {
                    state.end(id, None, None);
                    state.start(id, None);
                }
            }
            drop(state);
            self.host.inner.changed.notify_waiters();
            Ok(())
        })
    }

    fn remove(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.pass(Verb::Remove, Some(id)).await?;
            let mut state = self.host.inner.lock();
            state.end(id, None, None);
            state.guests.remove(&id);
            Ok(())
        })
    }

    fn console(&self, id: ServerId) -> BoxFuture<'_, Result<Box<dyn Console>, Error>> {
        Box::pin(async move {
            self.pass(Verb::Console, Some(id)).await?;
            let state = self.host.inner.lock();
            let guest = state.guests.get(&id).ok_or_else(|| refusal::unknown_guest(id))?;
            let run = guest.run.as_ref().ok_or_else(|| refusal::not_running(id))?;
            let console = LineConsole::new(self.host.inner.clone(), id, run.serial, guest.line.end());
            Ok(Box::new(console) as Box<dyn Console>)
        })
    }

    fn console_log(&self, id: ServerId, max: usize) -> BoxFuture<'_, Result<Vec<u8>, Error>> {
        Box::pin(async move {
            self.pass(Verb::ConsoleLog, Some(id)).await?;
            let state = self.host.inner.lock();
            state.guests.get(&id).map(|guest| guest.line.tail(max)).ok_or_else(|| refusal::unknown_guest(id))
        })
    }

    fn usage(&self, id: ServerId) -> BoxFuture<'_, Result<Usage, Error>> {
        Box::pin(async move {
            self.pass(Verb::Usage, Some(id)).await?;
            self.host.inner.lock().usage(id).ok_or_else(|| refusal::unknown_guest(id))
        })
    }

    fn events(&self) -> Pin<Box<dyn Stream<Item = GuestEvent> + Send>> {
        let inner = self.host.inner.clone();
        let next = inner.lock().next_event();
        Box::pin(stream::unfold((inner, next), |(inner, next)| async move {
            loop {
                // Listening begins before looking, so that nothing is missed in between.
                let changed = inner.changed.notified();
                let due = {
                    let state = inner.lock();
                    if let Some((event, following)) = state.event(next) {
                        drop(state);
                        return Some((event, (inner.clone(), following)));
                    }
                    state.next_due()
                };
                let due: Pin<Box<dyn Future<Output = ()> + Send>> = match due {
                    Some(due) => Box::pin(sleep_until(due)),
                    None => Box::pin(pending()),
                };
                tokio::select! {
                    () = changed => {}
                    () = due => {}
                }
            }
        }))
    }
}
