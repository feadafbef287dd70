//! What an earlier agent has left: which keeper keeps a guest, and how it ended if none does.

use std::io;

use tokio::task::spawn_blocking;

use crate::{
    cgroup::Group,
    driver::how,
    guest::{self, Folder, Life, Record},
    keeper::{self, Task},
    machine,
    process::{Identity, Process},
};

/// What keeps a guest now, according to its record and to the machine's processes. What a dead keeper has left is ended.
pub(crate) async fn find_keeper(folder: &Folder, group: &Group) -> io::Result<(Record, Option<Process>)> {
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
            let task: Option<Task> = guest::read(&folder.run().join(keeper::TASK)).unwrap_or_default();
            let found = match folder.run().canonicalize() {
                Ok(run) => Identity::working_in(&run)?,
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
