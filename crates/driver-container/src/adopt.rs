//! Taking over what an earlier driver has left in the folder, whatever it was doing when it ended.

use std::{io, sync::Arc};

use futures_util::future::join_all;
use nephos_host::{
    files,
    process::{Identity, Process},
};
use nephos_types::ServerId;
use tokio::task::spawn_blocking;

use crate::{
    bundle,
    cgroup::Group,
    folder::{Folder, Life, Record},
    guest::{Guest, how},
    host::Host,
    keeper::{self, Task},
    machine::{self, Machine},
};

impl Host {
    pub(crate) async fn adopt_all(&self) -> io::Result<()> {
        let ids = files::sweep(&self.folder)?;
        join_all(ids.into_iter().map(|id| self.adopt(id))).await;
        Ok(())
    }

    /// Takes hold of a guest that is on disk, whatever an earlier agent was doing with it when it ended.
    async fn adopt(&self, id: ServerId) {
        let folder = Folder::new(&self.folder, id);
        let spec = folder.spec().unwrap_or_else(|error| {
            tracing::error!(%id, %error, "a server's definition cannot be read; it must be defined again");
            None
        });
        let found = match Group::find(&bundle::name(id)) {
            Ok(group) => find_keeper(&folder, &group).await.map(|(record, keeper)| (record, keeper, group)),
            Err(error) => Err(error),
        };
        let (record, keeper, group) = match found {
            Ok(found) => found,
            Err(error) => {
                let reason = format!("its record cannot be read: {error}");
                tracing::error!(%id, reason, "a server's state is unknown");
                let guest = Guest::new(id, folder, spec, Record::off("", None));
                guest.now().unknown = Some(reason);
                self.guests().insert(id, Arc::new(guest));
                return;
            }
        };
        if spec.is_none() && keeper.is_none() && !folder.has_spec() {
            // Its making was interrupted before it existed.
            if let Err(error) = folder.remove() {
                tracing::warn!(%id, %error, "what is left of a server cannot be removed");
            }
            return;
        }
        if let Err(error) = folder.write_record(&record) {
            tracing::warn!(%id, %error, "a server's record cannot be written");
        }
        let guest = Arc::new(Guest::new(id, folder, spec, record));
        if let Some(keeper) = keeper {
            let (machine, sayings) = Machine::adopted(id, guest.folder.clone(), keeper, group).await;
            self.watch(&guest, Arc::new(machine), sayings);
            tracing::info!(%id, "adopted a running server");
        }
        self.guests().insert(id, guest);
    }
}

/// What keeps a guest now, according to its record and to the machine's processes. What a dead keeper has left is ended.
async fn find_keeper(folder: &Folder, group: &Group) -> io::Result<(Record, Option<Process>)> {
    let record = match folder.record() {
        Ok(record) => record.unwrap_or_else(|| Record::off("", None)),
        // Damaged by a power loss; what runs can be found without it.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Record { life: Life::Starting, ..Record::off("", None) }
        }
        Err(error) => return Err(error),
    };
    let open = |identity: &Identity| Process::open(identity);
    let (keeper, seat) = match &record.life {
        Life::Off => (None, None),
        Life::Running { keeper, seat } | Life::Stopping { keeper, seat } => (open(keeper)?, Some(seat.clone())),
        Life::Starting => {
            let task: Option<Task> = files::read(&folder.run().join(keeper::TASK)).unwrap_or_default();
            let found = match folder.run().canonicalize() {
                Ok(run) => Identity::working_below(&run)?.remove(&run).unwrap_or_default(),
                Err(_) => vec![],
            };
            let keeper = match found.first() {
                Some(identity) => open(identity)?,
                None => None,
            };
            (keeper, task.map(|task| task.seat))
        }
    };
    if let (Some(keeper), Some(seat)) = (keeper, seat) {
        let life = Life::Running { keeper: keeper.identity().clone(), seat };
        return Ok((Record { life, ..record }, Some(keeper)));
    }
    let left = group.clone();
    spawn_blocking(move || left.end()).await.map_err(io::Error::other)??;
    let record = match &record.life {
        Life::Off => record,
        Life::Starting => Record { life: Life::Off, ..record },
        Life::Stopping { .. } => Record::off(&record.base, None),
        Life::Running { keeper, .. } if keeper.is_of_this_boot()? => {
            let (shut_down, why) = machine::ending(folder);
            Record::off(&record.base, Some(how(shut_down, &why)))
        }
        Life::Running { .. } => Record::off(&record.base, Some(how(false, "the machine restarted"))),
    };
    Ok((record, None))
}
