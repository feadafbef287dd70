//! Where built images are kept: a folder per version of the guest, which appears whole or not at all, and is built by
//! one process while others wait.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use nephos_types::{Error, Result};
use sha2::{Digest, Sha256};

use crate::{MicroImage, command::io_error, packages::Resolved, tree};

/// Part of every name: to be raised when a change of this crate's code, rather than of `guest/`, changes what it builds.
const BUILDER: &str = "3";

const DISK: &str = "micro.qcow2";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd";

/// The folder of built images.
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens (and makes) it.
    pub(crate) fn open(folder: Option<&Path>) -> Result<Self> {
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None => default_folder()?,
        };
        fs::create_dir_all(&folder).map_err(|error| io_error("making", &folder, error))?;
        Ok(Self { folder })
    }

    /// Waits until no other process builds a thing of this kind, and removes what one that was killed has left of it. The
    /// lock ends with the value, also when the process is killed.
    pub(crate) fn lock(&self, kind: &str) -> Result<File> {
        let path = self.folder.join(format!("{kind}.lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .and_then(|file| file.lock().map(|()| file));
        let file = file.map_err(|error| io_error("locking", &path, error))?;
        for left in self.named(&scratch_prefix(kind)) {
            let _ = fs::remove_dir_all(self.folder.join(left));
        }
        Ok(file)
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The image of this name, if it is there.
    pub(crate) fn get(&self, name: &str) -> Option<MicroImage> {
        let image = files(&self.folder.join(name));
        image.disk.is_file().then_some(image)
    }

    /// The newest image that this program built, from whatever packages there were then.
    pub(crate) fn newest(&self) -> Option<MicroImage> {
        let prefix = name_prefix();
        fs::read_dir(&self.folder)
            .ok()?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.file_name().into_string().ok()?)))
            .max()
            .and_then(|(_, name)| self.get(&name))
    }

    /// Removes all but the newest few files whose names begin so. Failing costs room only.
    pub(crate) fn keep_newest(&self, prefix: &str, count: usize) {
        let changed = |name: &String| fs::metadata(self.folder.join(name)).and_then(|about| about.modified()).ok();
        let mut names = self.named(prefix);
        names.sort_by_key(|name| std::cmp::Reverse(changed(name)));
        for old in names.iter().skip(count) {
            let _ = fs::remove_file(self.folder.join(old));
        }
    }

    fn named(&self, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    /// A scratch folder on the same file system, so that what is built there can be moved into place. For who has the lock.
    pub(crate) fn scratch(&self, kind: &str) -> Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix(&scratch_prefix(kind))
            .tempdir_in(&self.folder)
            .map_err(|error| io_error("making a folder in", &self.folder, error))
    }

    /// Moves a built folder into place.
    pub(crate) fn publish(&self, built: &Path, name: &str) -> Result<MicroImage> {
        let target = self.folder.join(name);
        for path in [&built.join(DISK), &built.join(KERNEL), &built.join(INITRD), built] {
            File::open(path).and_then(|file| file.sync_all()).map_err(|error| io_error("writing", path, error))?;
        }
        fs::rename(built, &target).map_err(|error| io_error("moving into place", &target, error))?;
        Ok(files(&target))
    }

    /// What the packages resolved to when the package lists were in this state, so that asking for an image that is
    /// there does not take apt two seconds.
    pub(crate) fn remembered(&self, lists: &str) -> Option<String> {
        fs::read_to_string(self.note(lists)).ok()
    }

    /// Remembers it. Failing costs time only.
    pub(crate) fn remember(&self, lists: &str, name: &str) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("resolved-") {
                let _ = fs::remove_file(entry.path());
            }
        }
        let _ = fs::write(self.note(lists), name);
    }

    fn note(&self, lists: &str) -> PathBuf {
        self.folder.join(format!("resolved-{lists}"))
    }
}

/// Ends in what no kind has in its name.
fn scratch_prefix(kind: &str) -> String {
    format!(".building-{kind}.")
}

/// The files of an image in its folder.
pub(crate) fn files(folder: &Path) -> MicroImage {
    MicroImage { disk: folder.join(DISK), kernel: folder.join(KERNEL), initrd: folder.join(INITRD) }
}

/// `micro-<what this program puts in>-<packages>`.
pub(crate) fn name(resolved: &Resolved) -> String {
    format!("{}{}", name_prefix(), digest(resolved.files.iter().map(String::as_str)))
}

fn name_prefix() -> String {
    format!("micro-{}-", digest(tree::inputs().chain([BUILDER])))
}

/// A word for the state of apt's package lists: they are replaced, never edited.
pub(crate) fn lists_state() -> String {
    let stamp = |path: &str| {
        let changed = fs::metadata(path).ok()?.modified().ok()?;
        Some(changed.duration_since(UNIX_EPOCH).ok()?.as_nanos().to_string())
    };
    let stamps = ["/var/lib/apt/lists", "/etc/apt", "/etc/apt/sources.list", "/etc/apt/sources.list.d"]
        .map(|path| stamp(path).unwrap_or_default());
    digest(stamps.iter().map(String::as_str).chain([name_prefix().as_str()]))
}

pub(crate) fn digest<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..6])
}

fn default_folder() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("nephos/images"))
        .ok_or_else(|| {
            Error::invalid("no_cache_folder", "Neither HOME nor XDG_CACHE_HOME is set")
                .next("set XDG_CACHE_HOME to a folder for built images, or name an output folder", None)
        })
}
