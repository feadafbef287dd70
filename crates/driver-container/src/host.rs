//! What all guests of a driver share: the folder, the unpacked images, what of the machine each has for itself, and the
//! guests themselves by id.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nephos_driver::{GuestEvent, refusal};
use nephos_types::{Error, ErrorKind, ServerId};
use tokio::{sync::broadcast, task::spawn_blocking};

use crate::{
    base::Bases,
    folder::Seat,
    guest::{Guest, Watch},
    ids,
    machine::{Machine, Sayings},
    surroundings::Surroundings,
};

/// The surroundings of the guests.
pub(crate) struct Host {
    pub(crate) folder: PathBuf,
    pub(crate) surroundings: Surroundings,
    pub(crate) bases: Bases,
    pub(crate) guests: Mutex<BTreeMap<ServerId, Arc<Guest>>>,
    /// Seats that are being taken, by guest.
    pub(crate) seats: Mutex<BTreeMap<ServerId, Seat>>,
    pub(crate) events: broadcast::Sender<GuestEvent>,
    pub(crate) _lock: File,
}

impl Host {
    pub(crate) fn guests(&self) -> MutexGuard<'_, BTreeMap<ServerId, Arc<Guest>>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn guest(&self, id: ServerId) -> Option<Arc<Guest>> {
        self.guests().get(&id).cloned()
    }

    pub(crate) fn known(&self, id: ServerId) -> Result<Arc<Guest>, Error> {
        self.guest(id).ok_or_else(|| refusal::unknown_guest(id))
    }

    /// Puts a running machine into a guest's hands and watches it.
    pub(crate) fn watch(&self, guest: &Arc<Guest>, machine: Arc<Machine>, sayings: Sayings) {
        let watcher = Watch { guest: guest.clone(), events: self.events.clone() };
        let mut now = guest.now();
        now.machine = Some(machine.clone());
        now.watch = Some(tokio::spawn(machine.watch(sayings, watcher)).abort_handle());
    }

    /// Removes unpacked images that are not needed any more.
    pub(crate) async fn sweep(self: &Arc<Self>) {
        let bases = |guest: &Arc<Guest>| {
            let record = &guest.now().record;
            record.rescue.iter().chain([&record.base]).cloned().collect::<Vec<_>>()
        };
        let used: BTreeSet<String> = self.guests().values().flat_map(bases).collect();
        let host = self.clone();
        let swept = spawn_blocking(move || host.bases.sweep(&used)).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "unpacked images that are not needed cannot be removed");
        }
    }

    /// Takes user ids and CPUs for a guest that starts.
    pub(crate) fn take_seat(&self, id: ServerId, vcpus: u32) -> Result<Seat, Error> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let taken: Vec<Seat> = self
            .guests()
            .values()
            .filter(|guest| guest.id != id)
            .filter_map(|guest| guest.now().record.life.keeper().map(|(_, seat)| seat.clone()))
            .chain(seats.iter().filter(|(other, _)| **other != id).map(|(_, seat)| seat.clone()))
            .collect();
        let used: BTreeSet<u32> = taken.iter().map(|seat| seat.ids).collect();
        let ids = if self.surroundings.mapped {
            ids::free(&used).ok_or_else(|| {
                Error::new(ErrorKind::Capacity, "node_full", "The node has no user ids left for another container")
            })?
        } else {
            ids::STORED
        };
        let seat = Seat { ids, cpus: self.surroundings.choose_cpus(vcpus, taken.iter().flat_map(|seat| &seat.cpus)) };
        seats.insert(id, seat.clone());
        Ok(seat)
    }
}
