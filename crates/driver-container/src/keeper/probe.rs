//! Finds out what this machine can do for containers: `container-keeper probe` in the driver's folder.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::mounts;

/// What was found.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    /// Whether mounts can show files under other ids.
    pub(crate) mapped: bool,
}

/// Tries what every start needs; says on standard error what cannot be done.
pub(crate) fn run() -> io::Result<()> {
    let needed = |what: &str, outcome: io::Result<()>| {
        outcome.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
    };
    needed("mounts of its own", mounts::separate(&[]))?;
    needed("user namespaces", mounts::can_make_users())?;
    needed("loop devices", File::open("/dev/loop-control").map(drop))?;
    needed("overlay file systems", overlay_is_known())?;
    let found = Found { mapped: mounts::can_map(Path::new(".")) };
    io::stdout().write_all(&serde_json::to_vec(&found)?)
}

fn overlay_is_known() -> io::Result<()> {
    let known = std::fs::read_to_string("/proc/filesystems")?;
    // A kernel with modules may load it at the first mount.
    if known.contains("\toverlay\n") || Path::new("/lib/modules").exists() {
        Ok(())
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}
