//! Guests that exist only in memory: thousands of machines in one process, with delays and faults to order.
//!
//! Invariants: a call that fails, hangs or is dropped before it returns has changed nothing; what happens depends only
//! on the seed, the script, the calls and the clock (tokio's, so a paused one works).

mod disk;
mod host;
mod line;
mod networks;
mod script;
mod shell;

use std::{
    future::{Future, pending},
    pin::Pin,
};

use futures_util::{Stream, future::BoxFuture, stream};
use nephos_types::{Error, ErrorKind, ServerId};
use tokio::time::{sleep, sleep_until};

pub use host::SimulatedHost;
pub use networks::SimulatedNetworks;
pub use script::{Behaviour, Effect, Rule, Verb};

use self::{
    host::{Guest, Verdict},
    line::LineConsole,
};
use crate::{
    Accelerator, Answer, Capabilities, ComputeDriver, Console, DiskFormat, Feature, GuestEvent, GuestInfo, GuestSpec,
    Power, Presence, Question, Snapshot, SnapshotRequest, StopMode, Usage, refusal,
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
            features: [Feature::Pause, Feature::Suspend, Feature::Snapshot, Feature::Ask, Feature::Network].into(),
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
            let mut state = self.host.inner.lock();
            if state.guests.get(&spec.id).is_some_and(|guest| {
                guest.power() != Power::Off && guest.spec.disk.incarnation != spec.disk.incarnation
            }) {
                return Err(refusal::running(spec.id));
            }
            state.define(spec);
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

    fn pause(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.pass(Verb::Pause, Some(id)).await?;
            let mut state = self.host.inner.lock();
            let there = state.guests.contains_key(&id);
            if state.pause(id) { Ok(()) } else { Err(absent_or_off(id, there)) }
        })
    }

    fn suspend(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.pass(Verb::Suspend, Some(id)).await?;
            let mut state = self.host.inner.lock();
            let there = state.guests.contains_key(&id);
            if state.suspend(id) { Ok(()) } else { Err(absent_or_off(id, there)) }
        })
    }

    fn snapshot<'a>(&'a self, id: ServerId, request: &'a SnapshotRequest) -> BoxFuture<'a, Result<Snapshot, Error>> {
        Box::pin(async move {
            self.pass(Verb::Snapshot, Some(id)).await?;
            let (files, frozen) = {
                let state = self.host.inner.lock();
                let guest = state.guests.get(&id).ok_or_else(|| refusal::unknown_guest(id))?;
                (guest.files.clone(), request.freeze && guest.power() == Power::On)
            };
            files.save(&request.file).map_err(|error| Error::internal("The snapshot cannot be written", error))?;
            Ok(Snapshot { format: DiskFormat::Raw, frozen })
        })
    }

    fn ask<'a>(&'a self, id: ServerId, question: &'a Question) -> BoxFuture<'a, Result<Answer, Error>> {
        Box::pin(async move {
            question.check()?;
            self.pass(Verb::Ask, Some(id)).await?;
            let mut state = self.host.inner.lock();
            let guest = state.guests.get_mut(&id).ok_or_else(|| refusal::unknown_guest(id))?;
            if guest.power() != Power::On {
                return Err(refusal::not_running(id));
            }
            answer(guest, question)
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

fn absent_or_off(id: ServerId, there: bool) -> Error {
    if there { refusal::not_running(id) } else { refusal::unknown_guest(id) }
}

/// What a simulated guest answers. The programs that it knows are `echo` and `cat`.
fn answer(guest: &mut Guest, question: &Question) -> Result<Answer, Error> {
    let no_file = |path: &str| {
        Error::new(ErrorKind::NotFound, "guest_file_not_found", "No such file in the guest").detail(path.to_owned())
    };
    Ok(match question {
        Question::Info => Answer::Info(GuestInfo {
            host_name: Some(guest.spec.name.clone()),
            system: Some("simulated".to_owned()),
            ..GuestInfo::default()
        }),
        Question::Execute { command, input, max_output, .. } => {
            let (output, code) = match command.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["echo", ref words @ ..] => (format!("{}\n", words.join(" ")).into_bytes(), 0),
                ["cat"] => (input.clone(), 0),
                ["cat", path] => guest.files.read(path).map_or((vec![], 1), |content| (content.to_vec(), 0)),
                _ => (vec![], 127),
            };
            Answer::Ended { code: Some(code), signal: None, output, errors: vec![], truncated: false }.cut(*max_output)
        }
        Question::ReadFile { path, offset, max } => {
            let content = guest.files.read(path).ok_or_else(|| no_file(path))?;
            let start = usize::try_from(*offset).unwrap_or(usize::MAX).min(content.len());
            let end = start.saturating_add(usize::try_from(*max).unwrap_or(usize::MAX)).min(content.len());
            Answer::Content { content: content[start..end].to_vec(), end: end == content.len() }
        }
        Question::WriteFile { path, content, append, .. } => {
            let mut whole = if *append { guest.files.read(path).unwrap_or_default().to_vec() } else { vec![] };
            whole.extend_from_slice(content);
            if !guest.files.write(path, whole) {
                return Err(Error::conflict("guest_refused", "The server refuses").detail("no space left on its disk"));
            }
            Answer::Done
        }
        Question::SetPassword { .. } => Answer::Done,
        Question::SetKeys { user, keys } => {
            let _ = guest.files.write(&format!("/home/{user}/.ssh/authorized_keys"), keys.join("\n").into_bytes());
            Answer::Done
        }
    })
}
