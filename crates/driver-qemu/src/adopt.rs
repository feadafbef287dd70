//! Taking over what an earlier driver has left in the folder, whatever it was doing when it ended.

use std::{io, sync::Arc};

use futures_util::future::join_all;
use nephos_host::{
    files,
    process::{Identity, Process},
};
use nephos_types::ServerId;

use crate::{
    copy,
    folder::{Folder, Life, Record},
    freeze,
    guest::Guest,
    host::Host,
    machine::Machine,
    suspend,
};

impl Host {
    pub(crate) async fn adopt_all(&self) -> io::Result<()> {
        let ids = files::sweep(&self.folder)?;
        let working = Identity::working_below(&self.folder.canonicalize()?)?;
        let adopting = ids.into_iter().map(|id| {
            let folder = Folder::new(&self.folder, id);
            let here = folder.run_path().ok().and_then(|run| working.get(&run));
            self.adopt(id, folder, here.map_or(&[], Vec::as_slice))
        });
        join_all(adopting).await;
        Ok(())
    }

    /// Takes hold of a guest that is on disk, whatever an earlier agent was doing with it when it ended.
    async fn adopt(&self, id: ServerId, folder: Folder, working: &[Identity]) {
        let spec = folder.spec().unwrap_or_else(|error| {
            tracing::error!(%id, %error, "a server's definition cannot be read; it must be defined again");
            None
        });
        let (record, process, was) = match find_process(&folder, working) {
            Ok(found) => found,
            Err(error) => {
                let reason = format!("its record cannot be read: {error}");
                tracing::error!(%id, reason, "a server's state is unknown");
                let guest = Guest::new(id, folder, spec, Record::off(None));
                guest.now().unknown = Some(reason);
                self.guests().insert(id, Arc::new(guest));
                return;
            }
        };
        end_others(id, working, process.as_ref()).await;
        if spec.is_none() && process.is_none() && !folder.has_spec() {
            // Its making was interrupted before it existed.
            if let Err(error) = folder.remove() {
                tracing::warn!(%id, %error, "what is left of a server cannot be removed");
            }
            return;
        }
        if let Err(error) = folder.write_record(&record) {
            tracing::warn!(%id, %error, "a server's record cannot be written");
        }
        if let Some(spec) = &spec
            && let Err(error) = folder.keep_only_disk(spec.disk.incarnation)
        {
            tracing::warn!(%id, %error, "a disk that was thrown away is still there");
        }
        if !matches!(record.life, Life::Running { .. } | Life::Suspended)
            && let Err(error) = folder.remove_memory()
        {
            tracing::warn!(%id, %error, "a memory that is of no use any more is still there");
        }
        let guest = Arc::new(Guest::new(id, folder, spec, record));
        if let Some(process) = process {
            self.adopt_running(&guest, process, was).await;
        }
        self.guests().insert(id, guest);
    }

    /// Takes hold of a process that runs a guest, or was to run it or saved its memory when the agent ended.
    async fn adopt_running(&self, guest: &Arc<Guest>, process: Process, was: Life) {
        let id = guest.id;
        let (machine, events) = Machine::adopted(id, guest.folder.clone(), process).await;
        let status = machine.status().await;
        // Its start was interrupted before the first instruction.
        if status == "prelaunch" && machine.process().kill().is_ok() {
            machine.process().ended().await;
            if let Err(error) = guest.set(|record| *record = Record::off(None)) {
                tracing::warn!(%id, %error, "a server's record cannot be written");
            }
            return;
        }
        if let Ok(qmp) = machine.qmp() {
            copy::clear(qmp).await;
        }
        guest.now().paused = status == "paused";
        // It was being suspended, or was about to go on from its memory.
        let interrupted = match was {
            Life::Suspending { paused, .. } => Some(paused),
            _ if guest.folder.has_memory() => Some(false),
            _ => None,
        };
        if let Some(paused) = interrupted {
            match suspend::go_on(&machine, paused).await {
                Ok(()) => guest.now().paused = paused,
                Err(error) => tracing::warn!(%id, %error, "a server that was being suspended does not go on"),
            }
            if let Err(error) = guest.folder.remove_memory() {
                tracing::warn!(%id, %error, "a memory that is of no use any more is still there");
            }
        }
        let machine = Arc::new(machine);
        self.watch(guest, machine.clone(), events);
        tracing::info!(%id, "adopted a running server");
        if guest.now().record.frozen {
            let guest = guest.clone();
            tokio::spawn(async move { freeze::thaw(&guest, &machine.agent).await });
        }
    }
}

/// Ends what works in a guest's folder besides the guest, or instead of it: what an earlier agent has left of its work.
async fn end_others(id: ServerId, working: &[Identity], guest: Option<&Process>) {
    for identity in working.iter().filter(|identity| guest.is_none_or(|guest| guest.identity() != *identity)) {
        match Process::open(identity) {
            Ok(Some(process)) => {
                tracing::info!(%id, pid = identity.pid, "ending a process that an earlier agent has left");
                if process.kill().is_ok() {
                    process.ended().await;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%id, %error, "a process that an earlier agent has left cannot be ended"),
        }
    }
}

/// What runs a guest now, according to its record and to the processes that work in its folder.
fn find_process(folder: &Folder, working: &[Identity]) -> io::Result<(Record, Option<Process>, Life)> {
    let record = match folder.record() {
        Ok(record) => record.unwrap_or_else(|| Record::off(None)),
        // Damaged by a power loss; what runs can be found without it.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Record { life: Life::Starting, ..Record::off(None) }
        }
        Err(error) => return Err(error),
    };
    let crash = |why: &str| Record::off(Some(format!("crashed: {why}")));
    let was = record.life.clone();
    let (record, process) = match &was {
        // What works in the folder of one that is suspended has not run it, or has ended running it.
        Life::Off | Life::Suspended => (record, None),
        Life::Resuming => (Record { life: Life::Suspended, ..record }, None),
        Life::Running { process: identity }
        | Life::Stopping { process: identity }
        | Life::Suspending { process: identity, .. } => match Process::open(identity)? {
            Some(process) => {
                let life = Life::Running { process: identity.clone() };
                (Record { life, ..record }, Some(process))
            }
            None if matches!(record.life, Life::Stopping { .. }) => (Record::off(None), None),
            None if identity.is_of_this_boot()? => (crash("its process ended while the agent was away"), None),
            None => (crash("the machine restarted"), None),
        },
        Life::Starting => {
            let process = match working.first() {
                Some(identity) => Process::open(identity)?,
                None => None,
            };
            match process {
                Some(process) => {
                    let life = Life::Running { process: process.identity().clone() };
                    (Record { life, ..record }, Some(process))
                }
                None => (Record { life: Life::Off, ..record }, None),
            }
        }
    };
    Ok((record, process, was))
}
