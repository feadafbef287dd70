//! Copies of root disks: made once, kept in a file until the control plane has them, sent however often it takes.
//!
//! Beside each copy lies a note that it is whole, and later that it has arrived; so an agent that was killed goes on
//! where it stood. What the control plane does not name any more is removed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::BytesMut;
use futures_util::stream;
use nephos_driver::{ComputeDriver, SnapshotRequest};
use nephos_node_api::{Client, Content, SnapshotHeader, SnapshotReport, SnapshotState, SnapshotTask};
use nephos_types::{Error, ImageId, Result, ServerId};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    config::Backoff,
    records::{private_folder, replace},
    reporter::Reporter,
};

/// Bytes read at a time.
const READ: usize = 256 << 10;

pub(crate) struct Snapshots {
    folder: Folder,
    client: Client,
    reporter: Arc<Reporter>,
    retry: Backoff,
    copies: Mutex<HashMap<ServerId, BTreeMap<ImageId, Copy>>>,
}

/// Where copies are kept.
enum Folder {
    Kept(PathBuf),
    /// For nodes that keep nothing; made when it is first needed.
    Passing(Mutex<Option<tempfile::TempDir>>),
}

struct Copy {
    state: SnapshotState,
    /// Ends with the entry.
    _upload: Option<AbortOnDropHandle<()>>,
}

/// What is known of a copy that is whole.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    header: SnapshotHeader,
    /// The control plane has it; the file is gone.
    arrived: bool,
}

/// What is to be done about the copies of one server.
pub(crate) enum Outcome {
    /// Nothing more by this turn.
    Settled,
    /// Some copy failed; try again.
    Again,
}

impl Snapshots {
    pub(crate) fn open(
        data: Option<&Path>,
        retry: Backoff,
        client: Client,
        reporter: Arc<Reporter>,
    ) -> Result<Arc<Self>> {
        let folder = match data.map(|data| data.join("snapshots")) {
            Some(folder) => {
                private_folder(&folder)?;
                Folder::Kept(folder)
            }
            None => Folder::Passing(Mutex::default()),
        };
        Ok(Arc::new(Self { folder, client, reporter, retry, copies: Mutex::default() }))
    }

    fn copies(&self) -> MutexGuard<'_, HashMap<ServerId, BTreeMap<ImageId, Copy>>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, image: ImageId) -> Result<PathBuf> {
        Ok(match &self.folder {
            Folder::Kept(folder) => folder.join(image.to_string()),
            Folder::Passing(folder) => {
                let mut folder = folder.lock().unwrap_or_else(PoisonError::into_inner);
                let folder = match &*folder {
                    Some(folder) => folder,
                    None => folder.insert(tempfile::tempdir().map_err(disk)?),
                };
                folder.path().join(image.to_string())
            }
        })
    }

    /// What is to be said about the copies of a server.
    pub(crate) fn reports(&self, server: ServerId) -> Vec<SnapshotReport> {
        let copies = self.copies();
        let report = |(image, copy): (&ImageId, &Copy)| SnapshotReport { image: *image, state: copy.state.clone() };
        copies.get(&server).map(|copies| copies.iter().map(report).collect()).unwrap_or_default()
    }

    /// Notes how far a copy is, and says it. `false` if nobody wants it any more.
    fn state(&self, server: ServerId, image: ImageId, state: SnapshotState) -> bool {
        let known = match self.copies().get_mut(&server).and_then(|copies| copies.get_mut(&image)) {
            Some(copy) => {
                copy.state = state;
                true
            }
            None => false,
        };
        self.reporter.amend(server, |report| report.snapshots = self.reports(server));
        known
    }

    /// Forgets, and removes, what is not wanted any more.
    pub(crate) async fn keep_only(&self, wanted: &HashMap<ServerId, Vec<ImageId>>) {
        let mut unwanted = vec![];
        self.copies().retain(|server, copies| {
            copies.retain(|image, _| {
                let keep = wanted.get(server).is_some_and(|images| images.contains(image));
                if !keep {
                    unwanted.push((*server, *image));
                }
                keep
            });
            !copies.is_empty()
        });
        for (server, _) in &unwanted {
            self.reporter.amend(*server, |report| report.snapshots = self.reports(*server));
        }
        let all: HashSet<String> = wanted.values().flatten().map(ToString::to_string).collect();
        let folder = match &self.folder {
            Folder::Kept(folder) => folder.clone(),
            Folder::Passing(folder) => match &*folder.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(folder) => folder.path().to_owned(),
                None => return,
            },
        };
        let Ok(mut entries) = tokio::fs::read_dir(&folder).await else { return };
        while let Ok(Some(entry)) = entries.next_entry().await {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // A driver may write beside the file that it will replace.
            if all.iter().any(|image| name.contains(image.as_str())) || self.copying() {
                continue;
            }
            if let Err(error) = tokio::fs::remove_file(entry.path()).await {
                tracing::warn!(file = %entry.path().display(), %error, "a copy that nobody wants could not be removed");
            }
        }
    }

    fn copying(&self) -> bool {
        self.copies().values().flat_map(BTreeMap::values).any(|copy| copy.state == SnapshotState::Copying)
    }

    /// Does what is left to do for these tasks. The caller serialises calls on one server.
    pub(crate) async fn make(
        self: &Arc<Self>,
        server: ServerId,
        tasks: &[SnapshotTask],
        driver: &Arc<dyn ComputeDriver>,
    ) -> Outcome {
        let mut outcome = Outcome::Settled;
        for task in tasks {
            let begun = match self.copies().get(&server).and_then(|copies| copies.get(&task.image)) {
                None => false,
                Some(Copy { state: SnapshotState::Failed { error }, _upload: None }) => !error.retryable(),
                Some(_) => true,
            };
            if begun {
                continue;
            }
            let copy = Copy { state: SnapshotState::Copying, _upload: None };
            self.copies().entry(server).or_default().insert(task.image, copy);
            self.state(server, task.image, SnapshotState::Copying);
            match self.copy(server, task, driver).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%server, image = %task.image, error = %error.chain(), "a disk could not be copied");
                    if error.retryable() {
                        outcome = Outcome::Again;
                    }
                    self.state(server, task.image, SnapshotState::Failed { error });
                }
            }
        }
        outcome
    }

    /// Makes the copy, unless it is there, and lets it be sent.
    async fn copy(
        self: &Arc<Self>,
        server: ServerId,
        task: &SnapshotTask,
        driver: &Arc<dyn ComputeDriver>,
    ) -> Result<()> {
        let file = self.file(task.image)?;
        let note = note_of(&file).await;
        let note = match note {
            Some(note) => note,
            None => {
                let request = SnapshotRequest { file: file.clone(), freeze: task.freeze };
                let made = driver.snapshot(server, &request).await?;
                let header = SnapshotHeader { format: made.format, frozen: made.frozen };
                let note = Note { header, arrived: false };
                keep(&file, note).await?;
                note
            }
        };
        if note.arrived {
            self.state(server, task.image, SnapshotState::Done);
            return Ok(());
        }
        let (snapshots, image) = (Arc::clone(self), task.image);
        let mut copies = self.copies();
        // Not wanted any more; the next look at the folder removes it.
        let Some(copy) = copies.get_mut(&server).and_then(|copies| copies.get_mut(&image)) else { return Ok(()) };
        copy.state = SnapshotState::Uploading { percent: 0 };
        copy._upload = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            snapshots.send(server, image, &file, note.header).await;
        })));
        drop(copies);
        self.reporter.amend(server, |report| report.snapshots = self.reports(server));
        Ok(())
    }

    /// Sends a copy until the control plane has it, or says that it does not want it.
    async fn send(self: Arc<Self>, server: ServerId, image: ImageId, file: &Path, header: SnapshotHeader) {
        let mut failures = 0u32;
        loop {
            let error = match self.send_once(server, image, file, header).await {
                Ok(()) => {
                    if let Err(error) = keep(file, Note { header, arrived: true }).await {
                        tracing::warn!(%image, error = %error.chain(), "that a copy has arrived could not be noted");
                    }
                    let _ = tokio::fs::remove_file(file).await;
                    self.state(server, image, SnapshotState::Done);
                    return;
                }
                Err(error) => error,
            };
            let again = error.retryable();
            tracing::warn!(%server, %image, error = %error.chain(), again, "a copy of a disk could not be sent");
            self.state(server, image, SnapshotState::Failed { error });
            if !again {
                return;
            }
            failures = failures.saturating_add(1);
            tokio::time::sleep(self.retry.after(failures)).await;
        }
    }

    async fn send_once(
        self: &Arc<Self>,
        server: ServerId,
        image: ImageId,
        file: &Path,
        header: SnapshotHeader,
    ) -> Result<()> {
        let opened = tokio::fs::File::open(file).await.map_err(disk)?;
        let length = opened.metadata().await.map_err(disk)?.len();
        let snapshots = Arc::clone(self);
        let start = (opened, 0u64, u8::MAX);
        let body = stream::try_unfold(start, move |(mut file, sent, said)| {
            let snapshots = Arc::clone(&snapshots);
            async move {
                let percent = u8::try_from(sent.saturating_mul(100) / length.max(1)).unwrap_or(100) / 10 * 10;
                if percent != said {
                    snapshots.state(server, image, SnapshotState::Uploading { percent });
                }
                let mut chunk = BytesMut::with_capacity(READ);
                let read = file.read_buf(&mut chunk).await?;
                Ok((read > 0).then(|| (chunk.freeze(), (file, sent.saturating_add(read as u64), percent))))
            }
        });
        self.client.send_snapshot(image, header, Content { length, body: Box::pin(body) }).await
    }
}

fn note_file(file: &Path) -> PathBuf {
    file.with_extension("json")
}

async fn note_of(file: &Path) -> Option<Note> {
    let note: Note = serde_json::from_slice(&tokio::fs::read(note_file(file)).await.ok()?).ok()?;
    // A copy that lost power before it was on the disk is made again.
    let there = note.arrived || tokio::fs::try_exists(file).await.unwrap_or(false);
    there.then_some(note)
}

async fn keep(file: &Path, note: Note) -> Result<()> {
    let path = note_file(file);
    let written = tokio::task::spawn_blocking(move || {
        replace(&path, &serde_json::to_vec(&note).map_err(std::io::Error::other)?, true)
    });
    written.await.map_err(|error| Error::internal("The agent's disk work was given up", error))?.map_err(disk)
}

fn disk(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::StorageFull {
        return Error::new(nephos_types::ErrorKind::Capacity, "node_disk_full", "The node's disk is full")
            .detail(error.to_string())
            .next("free room on the node, or delete servers there", None);
    }
    Error::internal("The node's folder of disk copies cannot be used", error)
}
