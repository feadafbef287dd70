//! One archive of files onto the tree that is there: a whole root file system, or a layer of one.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown, symlink},
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};
use tar::{Archive, EntryType};

use super::refuse;
use crate::{ids, image::Program, keeper::copy::EXTENSION};

/// What an archive may still use up.
pub(crate) struct Budget {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// Deletes the file whose name follows: image-spec, "Whiteouts".
const WHITEOUT: &[u8] = b".wh.";
/// Deletes everything in its folder that comes from lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// A path longer than this cannot be used anyway.
const MAX_PATH: usize = 4096;
/// How many links one path may lead through.
const MAX_LINKS: u32 = 40;
/// What ids that do not fit become: the usual `nobody`.
const NOBODY: u32 = 65_534;

/// Applies an archive to the root of this process. Returns how its content is run, if it says so.
pub(crate) fn apply(archive: impl Read, budget: &mut Budget) -> io::Result<Option<Program>> {
    let mut program = None;
    let mut written = HashSet::new();
    let mut archive = Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        budget.entries = budget.entries.checked_sub(1).ok_or_else(too_many)?;
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            if let Some(said) = announced(&mut entry)? {
                program = Some(said);
            }
            continue;
        }
        let Some(path) = inside(&entry.path_bytes())? else {
            // The root itself.
            let mode = entry.header().mode().unwrap_or(0o755);
            fs::set_permissions("/", fs::Permissions::from_mode(mode & 0o7777))?;
            continue;
        };
        let name = path.file_name().unwrap_or_default().as_bytes();
        if name == OPAQUE {
            clear(path.parent().unwrap_or(Path::new("/")), &written)?;
            continue;
        }
        if let Some(name) = name.strip_prefix(WHITEOUT) {
            if matches!(name, b"" | b"." | b"..") {
                return Err(refuse(format!("it deletes {:?}", path.display())));
            }
            let hidden = path.with_file_name(OsStr::from_bytes(name));
            if !written.contains(&hidden) {
                remove(&hidden)?;
            }
            continue;
        }
        write(&mut entry, &path, budget).map_err(|error| {
            if error.kind() == ErrorKind::FileTooLarge || error.kind() == ErrorKind::QuotaExceeded {
                return error;
            }
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        written.insert(path);
    }
    Ok(program)
}

/// What a copy of a guest says about how it is run.
fn announced(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Option<Program>> {
    const MAX: u64 = 1 << 20;
    if entry.size() > MAX {
        return Ok(None);
    }
    let mut content = vec![];
    entry.read_to_end(&mut content)?;
    for extension in tar::PaxExtensions::new(&content) {
        let extension = extension?;
        if extension.key() == Ok(EXTENSION) {
            let program: Program = serde_json::from_slice(extension.value_bytes())?;
            return program.check().map(Some).map_err(refuse);
        }
    }
    Ok(None)
}

/// The path that an archive names, from the root on; `None` for the root.
fn inside(name: &[u8]) -> io::Result<Option<PathBuf>> {
    if name.len() > MAX_PATH {
        return Err(refuse("it holds a path of more than 4096 bytes"));
    }
    let mut path = PathBuf::from("/");
    for part in Path::new(OsStr::from_bytes(name)).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(refuse(format!(
                    "it holds a path that leads out of it: {:?}",
                    String::from_utf8_lossy(name)
                )));
            }
        }
    }
    Ok((path != Path::new("/")).then_some(path))
}

fn write(entry: &mut tar::Entry<'_, impl Read>, path: &Path, budget: &mut Budget) -> io::Result<()> {
    let kind = entry.header().entry_type();
    let mode = entry.header().mode()? & 0o7777;
    let size = entry.size();
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    let existing = fs::symlink_metadata(path).ok();
    match kind {
        EntryType::Directory => {
            // A link that stands where a folder should be stays: distributions merge their folders that way.
            let there = existing.is_some() && fs::metadata(path).is_ok_and(|metadata| metadata.is_dir());
            if !there {
                remove(path)?;
                fs::DirBuilder::new().mode(mode).create(path)?;
            } else if existing.is_some_and(|existing| existing.is_symlink()) {
                return Ok(());
            }
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            budget.bytes = budget.bytes.checked_sub(size).ok_or_else(too_large)?;
            remove(path)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            if io::copy(&mut entry.take(size), &mut file)? != size {
                return Err(refuse("the archive ends too early"));
            }
        }
        EntryType::Symlink => {
            let target = entry.link_name_bytes().ok_or_else(|| refuse("a link without a target"))?;
            remove(path)?;
            symlink(OsStr::from_bytes(&target), path)?;
        }
        EntryType::Link => {
            let target = entry.link_name_bytes().ok_or_else(|| refuse("a link without a target"))?;
            let target = inside(&target)?.ok_or_else(|| refuse("a hard link to the root"))?;
            if target == path {
                return Ok(());
            }
            remove(path)?;
            // It has its target's owner and permissions.
            return fs::hard_link(&target, path);
        }
        EntryType::Fifo => {
            remove(path)?;
            rustix::fs::mknodat(CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(mode), 0)?;
        }
        // Containers get their devices from the runtime; the rest describes what follows, or is unknown.
        _ => return Ok(()),
    }
    let id = |wanted: io::Result<u64>| {
        wanted.map(|id| u32::try_from(id).ok().filter(|id| *id < ids::COUNT).unwrap_or(NOBODY))
    };
    lchown(path, Some(id(entry.header().uid())?), Some(id(entry.header().gid())?))?;
    if kind != EntryType::Symlink {
        // After the owner, whose change takes away the set-user-id bit.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        attributes(entry, path)?;
    }
    let time = Timespec { tv_sec: i64::try_from(entry.header().mtime()?).unwrap_or(0), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    // Times before 1901 or after 2446 do not fit, and matter to nobody.
    let _ = rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
    Ok(())
}

/// Extended attributes that mean something inside: capabilities of programs, and what users have put there.
fn attributes(entry: &mut tar::Entry<'_, impl Read>, path: &Path) -> io::Result<()> {
    const PREFIX: &str = "SCHILY.xattr.";
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    for extension in extensions {
        let extension = extension?;
        let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix(PREFIX)) else { continue };
        if name == "security.capability" || (name.starts_with("user.") && !name.starts_with("user.overlay.")) {
            // A file system that has no room for them is no reason to refuse.
            let _ = rustix::fs::lsetxattr(path, name, extension.value_bytes(), XattrFlags::empty());
        }
    }
    Ok(())
}

/// Makes a folder and those above it; links to folders are followed, and lead nowhere but into the tree.
fn make_folder(path: &Path) -> io::Result<()> {
    make_folders(path, MAX_LINKS)
}

fn make_folders(path: &Path, links: u32) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => return Err(refuse("what is in it cannot be in a file")),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    make_folders(parent, links)?;
    match fs::read_link(path) {
        // A link to a folder that a later entry, or another layer, is to bring.
        Ok(target) => {
            let links = links.checked_sub(1).ok_or_else(|| refuse("its links lead to each other"))?;
            make_folders(&parent.join(target), links)
        }
        Err(_) => fs::DirBuilder::new().mode(0o755).create(path),
    }
}

/// Removes what is at a path, be it a link, a file or a tree; nothing happens if nothing is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes what lower layers have put into a folder.
fn clear(folder: &Path, written: &HashSet<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        if !written.contains(&path) {
            remove(&path)?;
        } else if fs::symlink_metadata(&path)?.is_dir() {
            clear(&path, written)?;
        }
    }
    Ok(())
}

pub(crate) fn too_large() -> io::Error {
    io::Error::new(ErrorKind::FileTooLarge, "it is larger than what this node unpacks")
}

fn too_many() -> io::Error {
    io::Error::new(ErrorKind::QuotaExceeded, "it holds more files than what this node unpacks")
}
