//! Runs the runtime where a keeper runs it: `container-keeper execute`, with the runtime's command as the arguments.

use std::{fs::File, io, os::unix::process::CommandExt, process::Command};

use nephos_host::process::Identity;
use nix::sched::{CloneFlags, setns};

/// Becomes the runtime, among the mounts of this keeper.
pub(crate) fn run(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> io::Result<()> {
    let keeper = arguments.next().unwrap_or_default();
    let keeper: Identity = serde_json::from_str(&keeper.to_string_lossy())?;
    let program = arguments.next().ok_or(io::ErrorKind::InvalidInput)?;
    let here = std::env::current_dir()?;
    let namespace = File::open(format!("/proc/{}/ns/mnt", keeper.pid))?;
    if Identity::of(keeper.pid)? != keeper {
        return Err(io::ErrorKind::NotFound.into());
    }
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    Err(Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", crate::surroundings::PATH)
        .current_dir(here)
        .exec())
}
