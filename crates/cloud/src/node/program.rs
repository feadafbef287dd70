//! This process's own program, as agents can take it up.

use std::{io::Read, sync::Arc};

use nephos_node_api::Content;
use nephos_types::{Error, ErrorKind, Result};
use ring::digest;
use tokio::sync::OnceCell;
use tokio_util::io::ReaderStream;

/// What runs, even after its file was replaced by another one.
const OWN: &str = "/proc/self/exe";
/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

static OWN_PROGRAM: OnceCell<Arc<Program>> = OnceCell::const_new();

/// A program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// SHA-256 of its file, in hexadecimal.
    pub(super) sha256: String,
    /// Size of its file.
    pub(super) size: u64,
}

impl Program {
    /// The one of this process, if it was read already.
    pub(super) fn known() -> Option<&'static Arc<Self>> {
        OWN_PROGRAM.get()
    }

    /// The one of this process; read once.
    pub(super) async fn own() -> Result<Arc<Self>> {
        let read = || async {
            let read = tokio::task::spawn_blocking(read).await;
            read.map_err(|error| Error::internal("The control plane's own program could not be read", error))?
        };
        OWN_PROGRAM.get_or_try_init(read).await.cloned()
    }

    /// Its bytes, if it is the one that is wanted.
    pub(super) async fn open(&self, sha256: &str) -> Result<Content> {
        if self.sha256 != sha256 {
            // Tried again, it may reach the process that has it.
            return Err(Error::new(ErrorKind::Unavailable, "program_elsewhere", "Another controller has this program"));
        }
        let file = tokio::fs::File::open(OWN).await.map_err(unreadable)?;
        Ok(Content { length: self.size, body: Box::pin(ReaderStream::with_capacity(file, CHUNK)) })
    }
}

fn unreadable(error: std::io::Error) -> Error {
    Error::internal("The control plane's own program cannot be read", error)
}

fn read() -> Result<Arc<Program>> {
    let mut file = std::fs::File::open(OWN).map_err(unreadable)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer).map_err(unreadable)?;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else { break };
        context.update(chunk);
        size += chunk.len() as u64;
    }
    Ok(Arc::new(Program { sha256: hex::encode(context.finish()), size }))
}
