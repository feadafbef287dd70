//! Suspending: a guest's memory in a file, and the way back.
//!
//! Invariants: no process runs a guest whose record says that its memory is saved; a memory is used once, and never
//! after its guest has run on. The record is written before each step that the next one relies on:
//!
//! ```text
//! Running -> Suspending -> (memory is on the disk) -> Suspended -> (process ends)
//! Suspended -> Resuming -> (memory is loaded) -> Running -> (goes on; memory is removed)
//! ```
//!
//! What an ending of the agent in between leaves is put in order when the guest is [adopted](crate::adopt).

use std::{fs::File, io, os::fd::AsFd, sync::Arc, time::Duration};

use nephos_driver::{GuestSpec, refusal};
use nephos_host::work::{blocking, unwritable};
use nephos_types::{Error, ErrorKind};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    folder::{Launched, Life, Record},
    guest::Guest,
    host::Host,
    machine::{COMMAND_LIMIT, Machine},
    qmp::QmpError,
};

/// The memory's name among QEMU's open files.
const MEMORY: &str = "memory";
/// How long saving or loading may make no progress.
const STALL_LIMIT: Duration = Duration::from_secs(120);
/// What a disk reads at least, in bytes a second; loading shows no progress.
const SLOWEST: u64 = 8 << 20;
/// How often is looked, at most and at least.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// What is saved besides the memory.
const DEVICES: u64 = 64 << 20;

impl Host {
    pub(crate) async fn suspend(&self, guest: &Arc<Guest>) -> Result<(), Error> {
        guest.must_be_known()?;
        let Some(machine) = guest.machine() else {
            let suspended = guest.now().record.life == Life::Suspended;
            return if suspended { Ok(()) } else { Err(refusal::not_running(guest.id)) };
        };
        let failed = |error| Error::internal("The server's memory could not be saved", error);
        let mut launched = guest.folder.launched().map_err(unwritable)?.ok_or_else(|| {
            Error::conflict("suspend_needs_restart", "The server was started by an earlier version of the agent")
                .next("restart the server once", Some(format!("nephos server reboot --hard {}", guest.id)))
        })?;
        let needed = launched.spec.memory.0.saturating_add(DEVICES);
        if guest.folder.room().map_err(unwritable)? < needed {
            return Err(Error::new(
                ErrorKind::Capacity,
                "node_disk_full",
                "The node's disk has no room for the memory",
            ));
        }
        launched.machine = kind(&machine).await.map_err(failed)?;
        let paused = guest.now().paused;
        let process = machine.process().identity().clone();
        guest.set(|record| record.life = Life::Suspending { process: process.clone(), paused })?;
        let saved = async {
            let memory = guest.folder.create_memory().map_err(unwritable)?;
            save(&machine, &memory).await?;
            let folder = guest.folder.clone();
            blocking(move || {
                let keep = || {
                    memory.sync_all()?;
                    folder.write_launched(&launched)?;
                    folder.sync()
                };
                keep().map_err(unwritable)
            })
            .await?;
            guest.set(|record| *record = Record { life: Life::Suspended, ..Record::off(None) })?;
            guest.folder.sync().map_err(unwritable)
        };
        if let Err(error) = saved.await {
            // The guest goes on, unless its process has ended; then its watch has said so.
            if guest.runs_again(process)? {
                go_on(&machine, paused).await.map_err(failed)?;
            }
            let _ = guest.folder.remove_memory();
            return Err(error);
        }
        machine.quit().await
    }

    /// How a suspended guest was started. Its disk may have got a new place since.
    pub(crate) fn suspended_as(&self, guest: &Guest, spec: &GuestSpec) -> Result<Launched, Error> {
        let lost = || io::Error::new(io::ErrorKind::NotFound, "how the server was started is not known");
        let mut launched =
            guest.folder.launched().and_then(|launched| launched.ok_or_else(lost)).map_err(unwritable)?;
        launched.spec.disk = spec.disk.clone();
        Ok(launched)
    }

    /// Loads the saved memory into a QEMU that waits for it.
    pub(crate) async fn load_memory(&self, guest: &Guest, machine: &Machine) -> Result<(), Error> {
        let memory = guest.folder.open_memory().map_err(unwritable)?;
        let size = memory.metadata().map_err(unwritable)?.len();
        let deadline = Instant::now() + STALL_LIMIT + Duration::from_secs(size / SLOWEST);
        let load = async {
            let qmp = machine.qmp()?;
            qmp.execute_with_file("getfd", json!({ "fdname": MEMORY }), memory.as_fd(), COMMAND_LIMIT).await?;
            machine.execute("migrate-incoming", json!({ "uri": format!("fd:{MEMORY}") })).await?;
            let (mut pause, longest) = LOOK;
            loop {
                let state = machine.execute("query-migrate", Value::Null).await?;
                match state["status"].as_str() {
                    Some("completed") => return Ok(()),
                    Some("failed") => return Err(QmpError::Protocol("the memory cannot be loaded".to_owned())),
                    _ if Instant::now() > deadline => return Err(QmpError::Silent("migrate-incoming")),
                    _ => sleep(pause).await,
                }
                pause = (pause * 2).min(longest);
            }
        };
        load.await.map_err(|error: QmpError| {
            let words = machine.last_words();
            Error::new(ErrorKind::Internal, "resume_failed", "The server could not go on from its saved memory")
                .detail(if words.is_empty() { error.to_string() } else { words })
                .next(
                    "try again, or give up the memory and start anew: stop the server, then start it",
                    Some(format!("nephos server stop {}", guest.id)),
                )
        })
    }
}

/// Lets a guest go on whose memory was, or was to be, saved.
pub(crate) async fn go_on(machine: &Machine, paused: bool) -> Result<(), QmpError> {
    // Refused if nothing is being saved.
    let _ = machine.execute("migrate_cancel", Value::Null).await;
    let deadline = Instant::now() + COMMAND_LIMIT;
    loop {
        let state = machine.execute("query-migrate", Value::Null).await?;
        if !matches!(state["status"].as_str(), Some("setup" | "active" | "cancelling" | "device")) {
            break;
        }
        if Instant::now() > deadline {
            return Err(QmpError::Silent("migrate_cancel"));
        }
        sleep(LOOK.0).await;
    }
    // Also takes the disks back, which were given away with the memory.
    machine.go().await?;
    if paused { machine.pause().await } else { Ok(()) }
}

/// Writes the memory into a file. The guest stands still when this returns.
async fn save(machine: &Machine, memory: &File) -> Result<(), Error> {
    let save = async {
        machine.pause().await?;
        // As fast as the disk takes it.
        machine.execute("migrate-set-parameters", json!({ "max-bandwidth": 1_u64 << 40 })).await?;
        let qmp = machine.qmp()?;
        qmp.execute_with_file("getfd", json!({ "fdname": MEMORY }), memory.as_fd(), COMMAND_LIMIT).await?;
        machine.execute("migrate", json!({ "uri": format!("fd:{MEMORY}") })).await?;
        let (mut pause, longest) = LOOK;
        let mut seen = (Value::Null, Instant::now());
        loop {
            let state = machine.execute("query-migrate", Value::Null).await?;
            match state["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    let why = state["error-desc"].as_str().unwrap_or("the memory could not be written");
                    return Err(QmpError::Protocol(why.to_owned()));
                }
                _ => {}
            }
            let done = &state["ram"]["transferred"];
            if *done != seen.0 {
                seen = (done.clone(), Instant::now());
            } else if seen.1.elapsed() > STALL_LIMIT {
                return Err(QmpError::Silent("migrate"));
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    };
    save.await.map_err(|error| {
        let words = error.to_string();
        if words.contains("No space left on device") {
            return Error::new(ErrorKind::Capacity, "node_disk_full", "The node's disk is full").detail(words);
        }
        Error::internal("The server's memory could not be saved", error)
    })
}

/// The machine's kind with its version, e.g. `pc-q35-7.2`: a later QEMU's newest would not take its memory.
async fn kind(machine: &Machine) -> Result<String, QmpError> {
    let answer = machine.execute("qom-get", json!({ "path": "/machine", "property": "type" })).await?;
    let name = answer.as_str().and_then(|name| name.strip_suffix("-machine")).unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    if name.is_empty() || name.len() > 64 || name.starts_with('-') || !name.chars().all(plain) {
        return Err(QmpError::Protocol("the machine has no kind".to_owned()));
    }
    Ok(name.to_owned())
}
