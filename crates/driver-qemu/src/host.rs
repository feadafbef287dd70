//! What all guests of a driver share: the folder, the rights, the accelerator, and the guests themselves by id.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nephos_driver::{Accelerator, GuestEvent};
use nephos_types::{Error, ServerId};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::{Instant, sleep},
};

use crate::{
    accelerator::Probe,
    config::Config,
    firmware::Uefi,
    guest::{Guest, Watch},
    machine::Machine,
    qmp::Event,
    rights::Users,
};

/// How long to wait for an earlier driver over the same folder to let go of it.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

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

/// One driver per folder: two would run guests twice.
pub(crate) async fn lock(state: &Path) -> Result<File, Error> {
    let path = state.join("driver.lock");
    let failed = |error| Error::internal("The lock of the node's servers cannot be taken", error);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(Duration::from_millis(20)).await,
            Err(TryLockError::WouldBlock) => {
                return Err(Error::conflict("state_in_use", "Another agent runs the servers of this folder")
                    .detail(state.display().to_string())
                    .next("stop the other one, or use another data folder", None));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}
