//! What all guests of a driver share: the folder, the rights, the accelerator, and the guests themselves by id.

use std::{
    collections::BTreeMap,
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nephos_driver::{Accelerator, GuestEvent};
use nephos_types::ServerId;
use tokio::sync::{broadcast, mpsc, watch};

use crate::{
    accelerator::Probe,
    config::Config,
    firmware::Uefi,
    guest::{Guest, Watch},
    machine::Machine,
    qmp::Event,
    rights::Users,
};

/// The surroundings of the guests.
pub(crate) struct Host {
    pub(crate) config: Config,
    pub(crate) folder: PathBuf,
    pub(crate) version: String,
    pub(crate) users: Users,
    pub(crate) uefi: Option<Uefi>,
    /// `None` while the probe runs.
    pub(crate) accelerator: watch::Sender<Option<Accelerator>>,
    pub(crate) guests: Mutex<BTreeMap<ServerId, Arc<Guest>>>,
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

    pub(crate) async fn probe(&self, kernels: &[PathBuf]) -> Accelerator {
        let probe = Probe {
            qemu: &self.config.qemu,
            version: &self.version,
            state: &self.config.state,
            users: self.users,
            kernels,
        };
        let accelerator = probe.run().await;
        tracing::info!(?accelerator, "accelerator");
        self.accelerator.send_replace(Some(accelerator.clone()));
        accelerator
    }

    /// What guests are run with; waits for the probe.
    pub(crate) async fn accelerator(&self) -> Accelerator {
        match self.accelerator.subscribe().wait_for(Option::is_some).await.map(|known| known.clone()) {
            Ok(Some(accelerator)) => accelerator,
            Ok(None) | Err(_) => Accelerator::Tcg { reason: "the probe was given up".to_owned() },
        }
    }

    /// Puts a running machine into a guest's hands and watches it.
    pub(crate) fn watch(&self, guest: &Arc<Guest>, machine: Arc<Machine>, events: mpsc::Receiver<Event>) {
        let watcher = Watch { guest: guest.clone(), events: self.events.clone() };
        let mut now = guest.now();
        now.machine = Some(machine.clone());
        now.watch = Some(tokio::spawn(machine.watch(events, watcher)).abort_handle());
    }
}
