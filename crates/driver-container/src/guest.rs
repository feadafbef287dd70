//! A guest while the driver runs: what it should be, what it is, and the machine that runs it.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nephos_driver::{GuestEvent, GuestSpec, Observation, Power, Presence, refusal};
use nephos_host::work::unwritable;
use nephos_types::{Error, ErrorKind, ServerId};
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
    pub(crate) watch: Option<AbortHandle>,
    /// Why nothing certain is known.
    pub(crate) unknown: Option<String>,
}

impl Guest {
    pub(crate) fn new(id: ServerId, folder: Folder, spec: Option<GuestSpec>, record: Record) -> Self {
        let now = Now { spec: spec.map(Arc::new), record, machine: None, watch: None, unknown: None };
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

    /// Refuses what needs a guest that is off, and known to be.
    pub(crate) fn must_be_off(&self) -> Result<(), Error> {
        let now = self.now();
        if now.machine.is_some() || now.unknown.is_some() { Err(refusal::running(self.id)) } else { Ok(()) }
    }

    /// Records that the end of the running machine is no crash; `None` if nothing runs.
    pub(crate) fn end_is_wanted(&self) -> Result<Option<Arc<Machine>>, Error> {
        if let Some(reason) = &self.now().unknown {
            return Err(unknown(reason));
        }
        let Some(machine) = self.machine() else { return Ok(None) };
        self.set(|record| {
            if let Some((keeper, seat)) = record.life.keeper() {
                record.life = Life::Stopping { keeper: keeper.clone(), seat: seat.clone() };
            }
        })?;
        Ok(Some(machine))
    }

    pub(crate) fn observe(&self) -> Presence {
        let now = self.now();
        if let Some(reason) = &now.unknown {
            return Presence::Unknown { reason: reason.clone() };
        }
        let power = match &now.machine {
            None => Power::Off,
            Some(machine) => match machine.group.is_frozen() {
                Ok(true) => Power::Paused,
                // While it restarts it has no group.
                Ok(false) => Power::On,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Power::On,
                Err(error) => return Presence::Unknown { reason: format!("its control group: {error}") },
            },
        };
        Presence::Present(Observation {
            power,
            since: now.record.since,
            ended: now.record.ended.clone(),
            pid: now.machine.as_ref().and_then(|machine| machine.init()).map(|init| init.pid),
        })
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
        let by_itself = !matches!(now.record.life, Life::Stopping { .. });
        now.record = Record::off(&now.record.base, by_itself.then(|| how(shut_down, &why)));
        now.machine = None;
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

/// How an end that nobody asked for is recorded.
pub(crate) fn how(shut_down: bool, why: &str) -> String {
    if shut_down { "shutdown".to_owned() } else { format!("crashed: {why}") }
}

/// The refusal of what needs to know whether a guest runs.
pub(crate) fn unknown(reason: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "guest_unknown", "It is not known whether the server runs").detail(reason)
}
