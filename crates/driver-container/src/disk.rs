//! The file with a guest's own file system: what it has written, no larger than its disk may be.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use nephos_driver::Disk;
use nephos_host::files::gone;
use nephos_types::{Bytes, Error, ErrorKind};
use tokio::{process::Command, task::spawn_blocking, time::timeout};

use crate::folder::Folder;

/// What makes the file system.
pub(crate) const MAKER: &str = "mkfs.ext4";
/// What a disk without a size of its own has room for, besides the image.
pub(crate) const DEFAULT: Bytes = Bytes::mib(1024);
/// The least that a file system fits into.
const LEAST: Bytes = Bytes::mib(16);
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// How much a guest may write. The image is not counted: it is shared.
pub(crate) fn wanted_size(disk: &Disk) -> Result<Bytes, Error> {
    if disk.size.0 == 0 {
        return Ok(DEFAULT);
    }
    if disk.size < LEAST {
        return Err(Error::invalid("disk_too_small", "The disk is too small for a file system")
            .detail(format!("a container needs {LEAST}, the disk has {}", disk.size)));
    }
    Ok(Bytes(disk.size.0.next_multiple_of(4096)))
}

/// The size that the guest's disk has now; `None` if it has none yet.
pub(crate) fn current_size(folder: &Folder) -> io::Result<Option<Bytes>> {
    match fs::metadata(folder.disk()) {
        Ok(metadata) => Ok(Some(Bytes(metadata.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a disk, empty.
pub(crate) async fn create(path: &Path, size: Bytes) -> Result<(), Error> {
    // Made under another name and renamed when complete, so that a disk is never half made.
    let fresh = path.with_extension("new");
    let file = |path: &Path| -> io::Result<()> {
        gone(fs::remove_file(path))?;
        File::options().write(true).create_new(true).open(path)?.set_len(size.0)
    };
    file(&fresh).map_err(|error| failed(error.to_string()))?;
    let options = ["-q", "-F", "-m", "0", "-b", "4096", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"];
    run(tool(MAKER).args(options).arg(&fresh), &[0]).await?;
    fs::rename(&fresh, path).map_err(|error| failed(error.to_string()))
}

/// Makes the guest's disk larger; nothing happens if it is large enough. The guest is off.
pub(crate) async fn grow(folder: &Folder, size: Bytes) -> Result<(), Error> {
    let path = folder.disk();
    let grown = spawn_blocking(move || -> io::Result<Option<(PathBuf, File)>> {
        let file = File::options().read(true).write(true).open(&path)?;
        if file_system_size(&file)? >= size.0 {
            return Ok(None);
        }
        lock(&file, Instant::now() + TIME_LIMIT)?;
        if file.metadata()?.len() < size.0 {
            file.set_len(size.0)?;
        }
        Ok(Some((path, file)))
    });
    let grown = grown.await.map_err(io::Error::other).flatten();
    let Some((path, _lock)) = grown.map_err(|error| failed(error.to_string()))? else { return Ok(()) };
    // The kernel could do it while it is mounted, but only for holders of `CAP_SYS_RESOURCE`. The check, without which
    // the tool refuses, ends with 1 if it has corrected something.
    run(tool("e2fsck").args(["-f", "-p"]).arg(&path), &[0, 1]).await?;
    run(tool("resize2fs").arg(&path), &[0]).await
}

/// The size of the file system on a disk, from its superblock.
fn file_system_size(file: &File) -> io::Result<u64> {
    let mut block = [0; 1024];
    file.read_exact_at(&mut block, 1024)?;
    let number = |at: usize| {
        block
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, |bytes| u64::from(u32::from_le_bytes(bytes)))
    };
    // s_blocks_count, s_log_block_size.
    Ok(number(4).saturating_mul(1024 << number(24).min(6)))
}

/// Waits until nobody else has the disk: not even the kernel, writing back what an ended guest has left.
pub(crate) fn lock(file: &File, deadline: Instant) -> io::Result<()> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                let _ = rustix::thread::nanosleep(&rustix::thread::Timespec { tv_sec: 0, tv_nsec: 2_000_000 });
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "it is still in use"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn failed(why: String) -> Error {
    Error::new(ErrorKind::Internal, "disk_failed", "The server's disk could not be made").detail(why)
}

/// Runs a tool to an end with one of these codes.
async fn run(command: &mut Command, codes: &[i32]) -> Result<(), Error> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = match timeout(TIME_LIMIT, command.output()).await {
        Ok(output) => output.map_err(|error| failed(format!("{command:?}: {error}")))?,
        Err(_) => return Err(failed(format!("{command:?} did not end within {TIME_LIMIT:?}"))),
    };
    if output.status.code().is_some_and(|code| codes.contains(&code)) {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(failed(String::from_utf8_lossy(&text).trim().chars().take(2000).collect()))
}

/// One of the tools for the file system.
pub(crate) fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env_clear().env("PATH", crate::surroundings::PATH);
    command
}
