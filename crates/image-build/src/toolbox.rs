//! Programs of the unpacked packages, run with their own libraries instead of the machine's.

use std::{ffi::OsString, path::PathBuf, process::Command};

use nephos_types::{Error, Result};

/// Where programs may be, depending on how far the distribution has merged `/` and `/usr`.
const PROGRAM_FOLDERS: &[&str] = &["usr/sbin", "usr/bin", "sbin", "bin"];
/// Where libraries may be.
const LIBRARY_FOLDERS: &[&str] = &["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib", "lib"];
/// The dynamic loader's file name, fixed by the ABI.
pub(crate) const LOADER: &str = "ld-linux-x86-64.so.2";

/// The folder that the packages were unpacked into.
pub(crate) struct Toolbox {
    tree: PathBuf,
}

impl Toolbox {
    /// Over this folder.
    pub(crate) fn new(tree: PathBuf) -> Self {
        Self { tree }
    }

    /// A path in the folder.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.tree.join(relative)
    }

    /// A program's file.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        self.find(PROGRAM_FOLDERS, name).ok_or_else(|| {
            Error::bug(format!("the packages hold no program `{name}`; the builder does not fit this distribution"))
        })
    }

    /// A library's file, symbolic links followed.
    pub(crate) fn library(&self, name: &str) -> Option<PathBuf> {
        self.find(LIBRARY_FOLDERS, name)
    }

    fn find(&self, folders: &[&str], name: &str) -> Option<PathBuf> {
        folders.iter().map(|folder| self.tree.join(folder).join(name)).find(|path| path.is_file())
    }

    /// A program, to be run on this machine.
    pub(crate) fn command(&self, name: &str) -> Result<Command> {
        let program = self.program(name)?;
        let loader = self.library(LOADER).ok_or_else(|| {
            Error::bug("the packages hold no dynamic loader; the builder does not fit this distribution")
        })?;
        let mut folders = OsString::new();
        for folder in LIBRARY_FOLDERS {
            if !folders.is_empty() {
                folders.push(":");
            }
            folders.push(self.tree.join(folder));
        }
        let mut command = Command::new(loader);
        command.arg("--library-path").arg(folders).arg(program);
        Ok(command)
    }
}
