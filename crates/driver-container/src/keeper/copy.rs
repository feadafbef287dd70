//! Copies a guest's root file system into a tar archive: `container-keeper copy`, with the archive's file as standard
//! output. Of a running guest, whose processes stand still meanwhile, it is read through its keeper's mounts; of one
//! that is off it is mounted for the purpose.
//!
//! The archive says how its content is run in a global extension, which other programs pass over.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use nephos_host::process::Identity;
use nix::{
    sched::{CloneFlags, setns},
    unistd::chroot,
};
use serde::{Deserialize, Serialize};
use tar::{Builder, EntryType, Header};

use super::{
    Root,
    mounts::{self, Loop},
};
use crate::{ids, image::Program};

/// What is copied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The keeper of a running guest.
    pub(crate) keeper: Option<Identity>,
    /// What the guest's own root is made of.
    #[serde(flatten)]
    pub(crate) root: Root,
    /// Whether it runs from another.
    pub(crate) rescued: bool,
    /// The ids that the guest has, or is to be shown with.
    pub(crate) ids: u32,
    /// Whether that takes mapping.
    pub(crate) mapped: bool,
    /// The most content: more could not be unpacked again.
    pub(crate) max_bytes: u64,
    pub(crate) program: Program,
}

/// The global extension's name.
pub(crate) const EXTENSION: &str = "NEPHOS.program";

/// Copies as the last argument of the command says.
pub(crate) fn run() -> io::Result<()> {
    let request: Request = serde_json::from_str(&std::env::args().next_back().unwrap_or_default())?;
    let out = File::from(rustix::io::dup(rustix::stdio::stdout())?);
    let device = match &request.keeper {
        Some(keeper) => {
            let namespace = File::open(format!("/proc/{}/ns/mnt", keeper.pid))?;
            if Identity::of(keeper.pid)? != *keeper {
                return Err(io::ErrorKind::NotFound.into());
            }
            setns(namespace, CloneFlags::CLONE_NEWNS)?;
            None
        }
        None => {
            mounts::separate(&[])?;
            let device = Loop::attach(&request.root.disk)?;
            mounts::make_place()?;
            mounts::root(&request.root.base, &device, request.ids, request.mapped)?;
            Some(device)
        }
    };
    // From here on no link leads out.
    let own = if request.keeper.is_some() && request.rescued { mounts::OWN } else { "rootfs" };
    chroot(&mounts::at(own))?;
    std::env::set_current_dir("/")?;
    let mut copy = Copy {
        archive: Builder::new(BufWriter::with_capacity(256 << 10, out)),
        first: request.ids,
        room: request.max_bytes,
        links: HashMap::new(),
    };
    copy.announce(&request.program)?;
    copy.folder(Path::new("/"))?;
    let mut out = copy.archive.into_inner()?;
    out.flush()?;
    out.get_ref().sync_all()?;
    drop(device);
    Ok(())
}

struct Copy<W: Write> {
    archive: Builder<W>,
    first: u32,
    room: u64,
    /// Where files with several names were met first.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Copy<W> {
    fn announce(&mut self, program: &Program) -> io::Result<()> {
        let record = record(EXTENSION, &serde_json::to_vec(program)?);
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XGlobalHeader);
        header.set_size(record.len() as u64);
        header.set_mode(0o644);
        header.set_path("nephos")?;
        header.set_cksum();
        self.archive.append(&header, record.as_slice())
    }

    fn folder(&mut self, folder: &Path) -> io::Result<()> {
        self.entry(folder, &fs::symlink_metadata(folder)?)?;
        let mut names: Vec<_> =
            fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>()?;
        names.sort_unstable();
        for name in names {
            let path = folder.join(name);
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_dir() { self.folder(&path)? } else { self.entry(&path, &metadata)? }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, metadata: &fs::Metadata) -> io::Result<()> {
        let name = Path::new(".").join(path.strip_prefix("/").unwrap_or(path));
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        // What belongs to nobody inside belongs to its root outside.
        let own = |id: u32| u64::from(id.checked_sub(self.first).filter(|id| *id < ids::COUNT).unwrap_or(0));
        header.set_uid(own(metadata.uid()));
        header.set_gid(own(metadata.gid()));
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_size(0);
        let kind = metadata.file_type();
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            return self.archive.append_link(&mut header, &name, fs::read_link(path)?);
        }
        if kind.is_file() {
            if metadata.nlink() > 1 {
                let identity = (metadata.dev(), metadata.ino());
                if let Some(first) = self.links.get(&identity) {
                    header.set_entry_type(EntryType::Link);
                    return self.archive.append_link(&mut header, &name, first);
                }
                self.links.insert(identity, name.clone());
            }
            self.room = self.room.checked_sub(metadata.len()).ok_or_else(|| {
                io::Error::new(io::ErrorKind::FileTooLarge, "its files are larger than what can be unpacked again")
            })?;
            self.attributes(path)?;
            header.set_entry_type(EntryType::Regular);
            header.set_size(metadata.len());
            return self.archive.append_data(&mut header, &name, File::open(path)?);
        }
        if kind.is_dir() {
            self.attributes(path)?;
            header.set_entry_type(EntryType::Directory);
            return self.archive.append_data(&mut header, &name, io::empty());
        }
        if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
            return self.archive.append_data(&mut header, &name, io::empty());
        }
        // Sockets are gone with their processes; devices are the runtime's.
        Ok(())
    }

    /// Says the extended attributes that [unpacking](super::unpack) takes.
    fn attributes(&mut self, path: &Path) -> io::Result<()> {
        let mut names = vec![0; 4096];
        let Ok(length) = rustix::fs::llistxattr(path, names.as_mut_slice()) else { return Ok(()) };
        let mut found: Vec<(String, Vec<u8>)> = vec![];
        for name in names.get(..length).unwrap_or_default().split(|byte| *byte == 0) {
            let kept =
                name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."));
            let Ok(text) = std::str::from_utf8(name) else { continue };
            let mut value = vec![0; 4096];
            if kept && let Ok(length) = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice()) {
                value.truncate(length);
                found.push((format!("SCHILY.xattr.{text}"), without_owner(value)));
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        self.archive.append_pax_extensions(found.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }
}

/// A program's capabilities (linux/capability.h) as they are inside: without the user id that is root there.
fn without_owner(mut value: Vec<u8>) -> Vec<u8> {
    const WITH_OWNER: (usize, u8) = (24, 3);
    if value.len() == WITH_OWNER.0 && value.get(3) == Some(&WITH_OWNER.1) {
        value.truncate(20);
        if let Some(revision) = value.get_mut(3) {
            *revision = 2;
        }
    }
    value
}

/// One record of an extended header, pax(1): its own length, its name, its value.
fn record(name: &str, value: &[u8]) -> Vec<u8> {
    let rest = name.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    [format!("{length} {name}=").as_bytes(), value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_say_their_own_length() {
        for size in 0..2000 {
            let record = record("a", &vec![b'x'; size]);
            let length: usize = std::str::from_utf8(&record).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, record.len());
        }
    }

    #[test]
    fn capabilities_lose_their_owner_only() {
        let mut value = vec![1, 0, 0, 3];
        value.extend([7; 16]);
        value.extend([9; 4]);
        let plain = without_owner(value);
        assert_eq!((plain.len(), plain[3]), (20, 2));
        assert_eq!(without_owner(plain.clone()), plain);
        assert_eq!(without_owner(b"user".to_vec()), b"user");
    }
}
