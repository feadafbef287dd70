//! A configuration drive as a folder of files.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use nephos_driver::GuestSpec;

use crate::{folder::Folder, ids};
use nephos_host::files;

/// Writes the configuration drive's files for the container's root only.
pub(crate) fn write(folder: &Folder, spec: &GuestSpec) -> io::Result<()> {
    let root = folder.config();
    files::gone(fs::remove_dir_all(&root))?;
    if spec.config_drive.is_empty() {
        return Ok(());
    }
    let make = |path: &Path| -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)?;
        std::os::unix::fs::chown(path, Some(ids::STORED), Some(ids::STORED))
    };
    make(&root)?;
    for file in &spec.config_drive {
        let mut path = root.clone();
        let mut names = file.path.split('/').peekable();
        while let Some(name) = names.next() {
            path.push(name);
            if names.peek().is_some() && !path.is_dir() {
                make(&path)?;
            }
        }
        let mut made = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        made.write_all(file.content.as_bytes())?;
        std::os::unix::fs::fchown(&made, Some(ids::STORED), Some(ids::STORED))?;
    }
    Ok(())
}
