//! The file system that a confined program sees, put together by mounts in a namespace of its own.

use std::{ffi::CString, fs, io, os::unix::ffi::OsStrExt, path::Path};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, StatVfsMountFlags},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
    thread::UnshareFlags,
};

use crate::Given;

/// What programs need of the machine: themselves, their libraries, and where these are.
const SHARED: &[&str] =
    &["usr", "bin", "sbin", "lib", "lib64", "lib32", "libx32", "etc/ld.so.cache", "etc/alternatives"];

/// One thing in the view.
enum Part {
    /// A folder or file of the machine.
    Bound { from: CString, at: CString, folder: bool, flags: MountFlags },
    /// A symbolic link.
    Link { to: CString, at: CString },
}

/// All that is needed to make the view, prepared so that making it is nothing but system calls.
pub(crate) struct View {
    root: CString,
    etc: CString,
    parts: Vec<Part>,
    uid_map: Vec<u8>,
    gid_map: Vec<u8>,
}

fn text(path: impl AsRef<Path>) -> io::Result<CString> {
    CString::new(path.as_ref().as_os_str().as_bytes()).map_err(io::Error::other)
}

/// The flags of the mount that a path lies on. A namespace with fewer rights must not take them away.
fn locked(path: &Path) -> io::Result<MountFlags> {
    let flags = rustix::fs::statvfs(path)?.f_flag;
    let mut found = MountFlags::NOSUID | MountFlags::NODEV;
    for (is, flag) in [
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        if flags.contains(is) {
            found |= flag;
        }
    }
    Ok(found)
}

impl View {
    /// A view over the folder `root`.
    pub(crate) fn new(root: &Path, files: &[Given<'_>]) -> io::Result<Self> {
        let mut parts = vec![];
        for name in SHARED {
            let from = Path::new("/").join(name);
            let Ok(about) = fs::symlink_metadata(&from) else { continue };
            let at = text(root.join(name))?;
            if about.is_symlink() {
                parts.push(Part::Link { to: text(fs::read_link(&from)?)?, at });
            } else {
                let flags = locked(&from)? | MountFlags::RDONLY;
                parts.push(Part::Bound { from: text(&from)?, at, folder: about.is_dir(), flags });
            }
        }
        for file in files {
            if file.name.is_empty() || file.name.contains('/') || file.name.starts_with('.') {
                return Err(io::Error::other("a given file is named by one part of a path"));
            }
            let mut flags = locked(file.path)? | MountFlags::NOEXEC;
            if !file.writable {
                flags |= MountFlags::RDONLY;
            }
            let (from, at) = (text(file.path.canonicalize()?)?, text(root.join(file.name))?);
            parts.push(Part::Bound { from, at, folder: false, flags });
        }
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Ok(Self {
            root: text(root)?,
            etc: text(root.join("etc"))?,
            parts,
            uid_map: format!("65534 {uid} 1").into_bytes(),
            gid_map: format!("65534 {gid} 1").into_bytes(),
        })
    }

    /// Makes the view and moves this process into it, for good. System calls only.
    pub(crate) fn enter(&self, user_namespace: bool) -> io::Result<()> {
        if user_namespace {
            unshare(UnshareFlags::NEWUSER)?;
            write(c"/proc/self/setgroups", b"deny")?;
            write(c"/proc/self/uid_map", &self.uid_map)?;
            write(c"/proc/self/gid_map", &self.gid_map)?;
        }
        unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)?;
        // Nothing that is mounted from here on shows outside.
        rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount(c"none", self.root.as_c_str(), c"tmpfs", flags, Some(c"size=64k,mode=755"))?;
        rustix::fs::mkdir(self.etc.as_c_str(), Mode::from_raw_mode(0o755))?;
        for part in &self.parts {
            part.make()?;
        }
        rustix::mount::mount_remount(self.root.as_c_str(), flags | MountFlags::RDONLY, c"size=64k,mode=755")?;
        rustix::process::chdir(self.root.as_c_str())?;
        // The old root is mounted over the new one, and then let go: nothing names it any more.
        rustix::process::pivot_root(c".", c".")?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
        rustix::process::chdir(c"/")?;
        Ok(())
    }
}

impl Part {
    fn make(&self) -> io::Result<()> {
        match self {
            Self::Link { to, at } => rustix::fs::symlink(to.as_c_str(), at.as_c_str())?,
            Self::Bound { from, at, folder, flags } => {
                if *folder {
                    rustix::fs::mkdir(at.as_c_str(), Mode::from_raw_mode(0o755))?;
                } else {
                    rustix::fs::mknodat(CWD, at.as_c_str(), FileType::RegularFile, Mode::from_raw_mode(0o600), 0)?;
                }
                rustix::mount::mount_bind(from.as_c_str(), at.as_c_str())?;
                rustix::mount::mount_remount(at.as_c_str(), *flags | MountFlags::BIND, c"")?;
            }
        }
        Ok(())
    }
}

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: descriptors are not among the flags, so none is taken from under an owner.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

fn write(path: &std::ffi::CStr, bytes: &[u8]) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let written = rustix::io::write(&file, bytes)?;
    if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
