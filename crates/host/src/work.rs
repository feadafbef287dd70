//! How work on guests is run.

use std::io;

use nephos_types::{Error, ErrorKind};
use tokio::task::spawn_blocking;

/// Runs something to its end even if nobody waits for it any more.
pub async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work).await.map_err(|error| Error::internal("The work on a server was cut short", error))?
}

/// Runs file work where it may block.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|error| Error::internal("The work on a server was cut short", error))?
}

/// What to say of a guest's files that cannot be used.
#[must_use]
pub fn unwritable(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::StorageFull {
        return Error::new(ErrorKind::Capacity, "node_disk_full", "The node's disk is full").source(error);
    }
    Error::internal("The server's files cannot be used", error)
}
