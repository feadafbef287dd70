//! Sends a large file in parts, and goes on by itself where a connection broke: also in a later run of the program,
//! because what has arrived is kept in the cloud.

use std::{
    io::SeekFrom,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use nephos_ops::Entry;
use nephos_types::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::{
    client::Upload,
    command::{global::Globals, leaf},
    session::Session,
    terminal::Terminal,
    transfer::{CHUNK, Meter, unreadable},
};

/// Files from this size on are sent in parts.
const LARGE: u64 = 32 << 20;
/// Bytes in a part: what arrived is on the cloud's disk after each.
const PART: u64 = 256 << 20;
/// How long is paused after attempts in a row that got nowhere; after the last one it is given up.
const PAUSES: [Duration; 7] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(20),
];

/// The operations by which something is sent in parts.
pub(crate) struct InParts {
    start: &'static Entry,
    part: &'static Entry,
    show: &'static Entry,
    finish: &'static Entry,
    /// The field that names what is sent into.
    field: &'static str,
}

impl InParts {
    /// Those beside an operation that sends a file at once, if there are any.
    pub(crate) fn beside(upload: &Entry) -> Option<Self> {
        let beside = |more: &str| leaf::entry(&format!("{}-{more}", upload.spec.name));
        Some(Self {
            start: beside("start")?,
            part: beside("part")?,
            show: beside("show")?,
            finish: beside("finish")?,
            field: upload.spec.path_fields().next()?,
        })
    }

    /// Whether a file is large enough; a pipe has no size, and cannot be read twice.
    pub(crate) async fn suit(path: &str) -> bool {
        path != "-" && tokio::fs::metadata(path).await.is_ok_and(|about| about.is_file() && about.len() >= LARGE)
    }

    /// Sends a file, and answers what finishing it started.
    pub(crate) async fn send(
        &self,
        session: &mut Session,
        target: &Value,
        path: &str,
        globals: &Globals,
        terminal: &Terminal,
    ) -> Result<Value> {
        let size = tokio::fs::metadata(path).await.map_err(|error| unreadable(path, &error))?.len();
        // Meanwhile: it is needed at the end only.
        let file = PathBuf::from(path);
        let sum = tokio::task::spawn_blocking(move || sum(&file));
        let mut offset = self.begin(session, target, size).await?;
        if offset > 0 && !globals.quiet {
            eprintln!("going on from {}", nephos_types::Bytes(offset));
        }
        let meter = Arc::new(Mutex::new(Meter::from("sent", offset, Some(size), globals, terminal)));
        let mut pauses = PAUSES.iter();
        while offset < size {
            let upload = part_of(path, offset, PART.min(size - offset), &meter).await?;
            let input = json!({ self.field: target, "offset": offset });
            let sent = session.client().await?.upload_json(&self.part.spec, &input, upload).await;
            let now = match sent {
                Ok(answer) => answer,
                Err(error) if goes_on(&error) => {
                    let Some(pause) = pauses.next() else {
                        return Err(
                            error.next("what has arrived is kept for a day; send the same file again to go on", None)
                        );
                    };
                    if !globals.quiet {
                        eprintln!("{error}; trying to go on");
                    }
                    tokio::time::sleep(*pause).await;
                    match session.call(&self.show.spec, &json!({ self.field: target })).await {
                        Ok(answer) => answer,
                        Err(error) if goes_on(&error) => continue,
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            };
            let reached = offset_of(&now)?;
            if reached > offset {
                pauses = PAUSES.iter();
            }
            offset = reached;
            meter.lock().unwrap_or_else(PoisonError::into_inner).at(offset);
        }
        let sum = sum.await.map_err(|error| Error::internal("The file was not read", error))?;
        let sum = sum.map_err(|error| unreadable(path, &error))?;
        session.call(&self.finish.spec, &json!({ self.field: target, "sha256": sum })).await
    }

    /// Takes up an upload of that size, or begins one; answers where it stands.
    async fn begin(&self, session: &mut Session, target: &Value, size: u64) -> Result<u64> {
        let found = session.call(&self.show.spec, &json!({ self.field: target })).await;
        match found {
            Ok(upload) if upload.get("size").and_then(Value::as_u64) == Some(size) => return offset_of(&upload),
            Ok(_) => {
                let error = Error::conflict("another_upload", "Another file is being uploaded there already");
                let name = target.as_str().unwrap_or_default();
                return Err(error
                    .detail("it has another size than this one")
                    .next("give that up first", Some(format!("nephos image upload-cancel {name}"))));
            }
            Err(error) if error.code == "no_upload" => {}
            Err(error) => return Err(error),
        }
        let begun = session.call(&self.start.spec, &json!({ self.field: target, "size": size })).await?;
        offset_of(&begun)
    }
}

/// Whether asking where the upload stands, and going on from there, may help.
fn goes_on(error: &Error) -> bool {
    let stands_elsewhere = ["upload_broken_off", "upload_offset_wrong", "upload_part_goes_on"];
    error.kind == ErrorKind::Unavailable || stands_elsewhere.contains(&error.code.as_ref())
}

fn offset_of(upload: &Value) -> Result<u64> {
    upload
        .get("offset")
        .and_then(Value::as_u64)
        .ok_or_else(|| Error::bug("The cloud does not say where the upload stands"))
}

fn sum(path: &std::path::Path) -> std::io::Result<String> {
    let (mut file, mut sum) = (std::fs::File::open(path)?, Sha256::new());
    let mut buffer = vec![0; CHUNK];
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => sum.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

/// A part of a file as a stream.
async fn part_of(path: &str, offset: u64, length: u64, meter: &Arc<Mutex<Meter>>) -> Result<Upload> {
    let mut file = tokio::fs::File::open(path).await.map_err(|error| unreadable(path, &error))?;
    file.seek(SeekFrom::Start(offset)).await.map_err(|error| unreadable(path, &error))?;
    let meter = Arc::clone(meter);
    let body = ReaderStream::with_capacity(file.take(length), CHUNK).inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            meter.lock().unwrap_or_else(PoisonError::into_inner).add(chunk.len());
        }
    });
    Ok(Upload { body: Box::pin(body), length: Some(length) })
}
