//! One holder of a folder at a time.

use std::{
    fs::{File, TryLockError},
    path::Path,
    time::Duration,
};

use nephos_types::Error;
use tokio::time::{Instant, sleep};

/// How long to wait for an earlier holder to let go.
const LIMIT: Duration = Duration::from_secs(5);

/// Takes a driver's folder: two drivers would run its guests twice. It is held as long as the file is.
///
/// # Errors
/// `state_in_use` if another process has it, and keeps it for some seconds.
pub async fn lock(state: &Path) -> Result<File, Error> {
    let path = state.join("driver.lock");
    let failed = |error| Error::internal("The lock of the node's servers cannot be taken", error);
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    let deadline = Instant::now() + LIMIT;
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
