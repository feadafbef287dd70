//! A disk copied by QEMU as it is at one moment, while the guest goes on: QEMU saves each piece of the old content
//! before the guest overwrites it.

use std::{fs::File, os::fd::AsFd, time::Duration};

use nephos_types::{Bytes, Error, ErrorKind};
use serde_json::{Value, json};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    command_line::DISK_NODE,
    machine::COMMAND_LIMIT,
    qmp::{Client, QmpError},
};

/// The block nodes and jobs of a copy; there is one at a time for each guest.
const FILE_NODE: &str = "copy-file";
const NODE: &str = "copy";
const CREATE_JOB: &str = "copy-create";
const COPY_JOB: &str = "copy";
/// How long a copy may make no progress.
const STALL_LIMIT: Duration = Duration::from_secs(120);
/// How often its progress is looked at, at most and at least.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));
/// How long a job may take to end after it was cancelled.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);

/// What is done at the moment that is copied: the guest's file systems are held still, and let go again.
pub(crate) trait Moment: Send + Sync {
    /// Holds them still; `false` if nobody can.
    fn hold(&self) -> impl Future<Output = bool> + Send;
    /// Lets them go.
    fn release(&self) -> impl Future<Output = ()> + Send;
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("{0}")]
    Job(String),
    #[error("it made no progress within {STALL_LIMIT:?}")]
    Stalled,
    #[error("nobody waits for it any more")]
    GivenUp,
}

impl From<CopyError> for Error {
    fn from(error: CopyError) -> Self {
        let words = error.to_string();
        if words.contains("No space left on device") {
            return Self::new(ErrorKind::Capacity, "node_disk_full", "The node's disk is full").detail(words);
        }
        Self::new(ErrorKind::Internal, "snapshot_failed", "The server's disk could not be copied").detail(words)
    }
}

/// Copies the root disk of this size into an empty file, as a qcow2 image that stands by itself. Returns whether the
/// file systems were held still. Ends early when `given_up` does; leaves nothing in QEMU, however it ends.
pub(crate) async fn copy_disk(
    qmp: &Client,
    target: &File,
    size: Bytes,
    moment: &impl Moment,
    given_up: oneshot::Receiver<()>,
) -> Result<bool, Error> {
    // An agent that crashed may have left its copy behind.
    clear(qmp).await;
    let outcome = run(qmp, target, size, moment, given_up).await;
    clear(qmp).await;
    Ok(outcome?)
}

async fn run(
    qmp: &Client,
    target: &File,
    size: Bytes,
    moment: &impl Moment,
    mut given_up: oneshot::Receiver<()>,
) -> Result<bool, CopyError> {
    let arguments = json!({ "opaque": NODE });
    let added = qmp.execute_with_file("add-fd", arguments, target.as_fd(), COMMAND_LIMIT).await?;
    let set = added["fdset-id"].as_u64().ok_or_else(|| QmpError::Protocol("no number of a file".to_owned()))?;
    let file = format!("/dev/fdset/{set}");
    execute(qmp, "blockdev-add", json!({ "driver": "file", "node-name": FILE_NODE, "filename": file })).await?;
    let options = json!({ "driver": "qcow2", "file": FILE_NODE, "size": size.0 });
    execute(qmp, "blockdev-create", json!({ "job-id": CREATE_JOB, "options": options })).await?;
    concluded(qmp, CREATE_JOB, &mut given_up).await?;
    execute(qmp, "blockdev-add", json!({ "driver": "qcow2", "node-name": NODE, "file": FILE_NODE })).await?;
    let frozen = moment.hold().await;
    let job = json!({
        "job-id": COPY_JOB, "device": DISK_NODE, "target": NODE, "sync": "full", "auto-dismiss": false,
        "on-target-error": "report", "on-source-error": "report",
    });
    let begun = execute(qmp, "blockdev-backup", job).await;
    if frozen {
        moment.release().await;
    }
    begun?;
    concluded(qmp, COPY_JOB, &mut given_up).await?;
    Ok(frozen)
}

async fn execute(qmp: &Client, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
    qmp.execute(command, arguments, COMMAND_LIMIT).await
}

/// The job of this name.
async fn job(qmp: &Client, id: &str) -> Result<Option<Value>, QmpError> {
    let jobs = execute(qmp, "query-jobs", Value::Null).await?;
    Ok(jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == id).cloned()))
}

/// Waits for a job's end.
async fn concluded(qmp: &Client, id: &str, given_up: &mut oneshot::Receiver<()>) -> Result<(), CopyError> {
    let (mut pause, longest) = LOOK;
    let mut seen = (Value::Null, Instant::now());
    loop {
        let job = job(qmp, id).await?.ok_or_else(|| CopyError::Job("it vanished".to_owned()))?;
        if job["status"] == "concluded" {
            return match job["error"].as_str() {
                Some(why) => Err(CopyError::Job(why.to_owned())),
                None => Ok(()),
            };
        }
        if job["current-progress"] != seen.0 {
            seen = (job["current-progress"].clone(), Instant::now());
        } else if seen.1.elapsed() > STALL_LIMIT {
            return Err(CopyError::Stalled);
        }
        tokio::select! {
            _ = &mut *given_up => return Err(CopyError::GivenUp),
            () = sleep(pause) => pause = (pause * 2).min(longest),
        }
    }
}

/// Removes whatever there is of a copy.
pub(crate) async fn clear(qmp: &Client) {
    for id in [CREATE_JOB, COPY_JOB] {
        let deadline = Instant::now() + CANCEL_LIMIT;
        while let Ok(Some(job)) = job(qmp, id).await {
            if job["status"] == "concluded" {
                let _ = execute(qmp, "job-dismiss", json!({ "id": id })).await;
                break;
            }
            let _ = execute(qmp, "job-cancel", json!({ "id": id })).await;
            if Instant::now() > deadline {
                tracing::warn!(id, "a copy of a disk does not end");
                break;
            }
            sleep(LOOK.0).await;
        }
    }
    for node in [NODE, FILE_NODE] {
        // Refused if there is none.
        let _ = execute(qmp, "blockdev-del", json!({ "node-name": node })).await;
    }
    let sets = execute(qmp, "query-fdsets", Value::Null).await.unwrap_or_default();
    for set in sets.as_array().into_iter().flatten() {
        let ours = set["fds"].as_array().is_some_and(|fds| fds.iter().any(|fd| fd["opaque"] == NODE));
        if ours {
            let _ = execute(qmp, "remove-fd", json!({ "fdset-id": set["fdset-id"] })).await;
        }
    }
}
