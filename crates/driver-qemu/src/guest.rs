//! A guest while the driver runs: what it should be, what it is, and the machine that runs it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nephos_driver::{GuestEvent, GuestSpec, Observation, Power, Presence, refusal};
use nephos_host::{process::Identity, work::unwritable};
use nephos_types::{Error, ErrorKind, ServerId, Timestamp};
use tokio::{sync::broadcast, task::AbortHandle};

use crate::{
    folder::{Folder, Life, Record},
    machine::{Machine, Watcher, event_of_end},
};

/// One guest.
pub(crate) struct Guest {
    pub(crate) id: ServerId,
    pub(crate) folder: Folder,
    /// Held by whoever changes something about the guest.
    pub(crate) work: Arc<tokio::sync::Mutex<()>>,
    pub(crate) now: Mutex<Now>,
}

pub(crate) struct Now {
    pub(crate) spec: Option<Arc<GuestSpec>>,
    pub(crate) record: Record,
    pub(crate) machine: Option<Arc<Machine>>,
    /// Whether the machine stands still.
    pub(crate) paused: bool,
    pub(crate) watch: Option<AbortHandle>,
    /// Why nothing certain is known.
    pub(crate) unknown: Option<String>,
}

impl Guest {
    pub(crate) fn new(id: ServerId, folder: Folder, spec: Option<GuestSpec>, record: Record) -> Self {
        let now = Now { spec: spec.map(Arc::new), record, machine: None, paused: false, watch: None, unknown: None };
        Self { id, folder, work: Arc::default(), now: Mutex::new(now) }
    }

    pub(crate) fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn machine(&self) -> Option<Arc<Machine>> {
        self.now().machine.clone()
    }

    /// Changes the record, in memory and on disk.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let mut now = self.now();
        change(&mut now.record);
        self.folder.write_record(&now.record).map_err(unwritable)
    }

    /// Records that the process runs the guest after all, unless it has ended; `true` if it has not.
    pub(crate) fn runs_again(&self, process: Identity) -> Result<bool, Error> {
        let mut now = self.now();
        if now.machine.is_none() {
            return Ok(false);
        }
        now.record.life = Life::Running { process };
        self.folder.write_record(&now.record).map_err(unwritable)?;
        Ok(true)
    }

    /// Records that the machine stands still from now on, or runs again.
    pub(crate) fn set_paused(&self, paused: bool) -> Result<(), Error> {
        let mut now = self.now();
        if now.machine.is_some() && std::mem::replace(&mut now.paused, paused) != paused {
            now.record.since = Timestamp::now();
            self.folder.write_record(&now.record).map_err(unwritable)?;
        }
        Ok(())
    }

    /// Refuses what needs to know whether the guest runs, if that is not known.
    pub(crate) fn must_be_known(&self) -> Result<(), Error> {
        let Some(reason) = self.now().unknown.clone() else { return Ok(()) };
        Err(Error::new(ErrorKind::Unavailable, "guest_unknown", "It is not known whether the server runs")
            .detail(reason))
    }

    /// Refuses what needs a guest that is off, and known to be.
    pub(crate) fn must_be_off(&self) -> Result<(), Error> {
        let now = self.now();
        let off = now.record.life == Life::Off && now.unknown.is_none();
        if off { Ok(()) } else { Err(refusal::running(self.id)) }
    }

    /// Records that the end of the running machine is no crash; `None` if nothing runs.
    pub(crate) fn end_is_wanted(&self) -> Result<Option<Arc<Machine>>, Error> {
        let Some(machine) = self.machine() else { return Ok(None) };
        let process = machine.process().identity().clone();
        self.set(|record| record.life = Life::Stopping { process })?;
        Ok(Some(machine))
    }

    /// Makes the saved memory be gone, if there is one.
    pub(crate) fn forget_memory(&self) -> Result<(), Error> {
        if matches!(self.now().record.life, Life::Suspended | Life::Resuming) {
            self.set(|record| *record = Record::off(None))?;
        }
        self.folder.remove_memory().map_err(unwritable)
    }

    pub(crate) fn observe(&self) -> Presence {
        let now = self.now();
        if let Some(reason) = &now.unknown {
            return Presence::Unknown { reason: reason.clone() };
        }
        Presence::Present(Observation {
            power: now.power(),
            since: now.record.since,
            ended: now.record.ended.clone(),
            pid: now.machine.as_ref().map(|machine| machine.process().identity().pid),
        })
    }

    /// Whether it runs; `None` if that is not known.
    pub(crate) fn power(&self) -> Option<Power> {
        let now = self.now();
        now.unknown.is_none().then(|| now.power())
    }
}

impl Now {
    fn power(&self) -> Power {
        match &self.machine {
            Some(_) if self.paused => Power::Paused,
            Some(_) => Power::On,
            None if matches!(self.record.life, Life::Suspended | Life::Resuming) => Power::Suspended,
            None => Power::Off,
        }
    }
}

/// What a guest's watch does with what it sees.
pub(crate) struct Watch {
    pub(crate) guest: Arc<Guest>,
    pub(crate) events: broadcast::Sender<GuestEvent>,
}

impl Watcher for Watch {
    fn restarted(&self) {
        let _ = self.events.send(GuestEvent::Restarted(self.guest.id));
    }

    fn ended(&self, shut_down: bool, why: String) {
        let mut now = self.guest.now();
        let suspended = now.record.life == Life::Suspended;
        let by_itself = !suspended && !matches!(now.record.life, Life::Stopping { .. });
        let ended = by_itself.then(|| if shut_down { "shutdown".to_owned() } else { format!("crashed: {why}") });
        let off = Record::off(ended);
        now.record = if suspended { Record { life: Life::Suspended, ..off } } else { off };
        now.machine = None;
        now.paused = false;
        now.watch = None;
        if let Err(error) = self.guest.folder.write_record(&now.record) {
            tracing::warn!(id = %self.guest.id, %error, "a server's record cannot be written");
        }
        drop(now);
        if by_itself {
            tracing::info!(id = %self.guest.id, shut_down, why, "a server ended by itself");
            let _ = self.events.send(event_of_end(self.guest.id, shut_down, &why));
        }
    }
}
