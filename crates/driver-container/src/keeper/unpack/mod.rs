//! Unpacks an image into a folder: `container-keeper unpack` with the image as standard input, in the folder that is to
//! hold `root/`. What the image says about itself goes to standard output.
//!
//! Images come from anybody. They are read by a process of their own in namespaces of its own, whose root is the folder
//! it fills, whose root user is nobody on the machine, which cannot make devices, and which is bounded in time, memory,
//! bytes and files. So a path or a link out of the folder leads back into it, and whatever else goes wrong goes wrong in
//! there.

mod account;
mod compression;
mod layer;
mod layout;

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read, Seek, Write},
    os::fd::AsFd,
    path::Path,
};

use nephos_driver::DiskFormat;
use nix::{
    libc,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, chroot, fork, pipe, setgid, setgroups, setuid},
};
use rustix::process::{Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};

use self::layer::Budget;
use crate::{ids, image::Program};

/// What is unpacked, and how far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) format: DiskFormat,
    pub(crate) limits: Limits,
}

/// Bounds of unpacking one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Content of all files.
    pub(crate) bytes: u64,
    /// Files, folders, links.
    pub(crate) entries: u64,
    /// CPU time.
    pub(crate) seconds: u64,
    /// Memory.
    pub(crate) memory: u64,
}

/// The folder that is filled.
pub(crate) const ROOT: &str = "root";

/// Unpacks as the last argument of the command says.
pub(crate) fn run() -> io::Result<()> {
    let request = std::env::args().next_back().unwrap_or_default();
    let request: Request = serde_json::from_str(&request)?;
    let image = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Made here, because the worker may not write beside its root.
    let scratch = File::from(rustix::fs::open(
        ".",
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::from_raw_mode(0o600),
    )?);
    fs::create_dir(ROOT)?;
    std::os::unix::fs::chown(ROOT, Some(ids::STORED), Some(ids::STORED))?;
    let ((ready, their_ready), (their_go, go)) = (pipe()?, pipe()?);
    // SAFETY: the process has one thread, so the child may do whatever its parent could.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop((ready, go));
            let worked = enter(&request.limits, File::from(their_ready), File::from(their_go))
                .and_then(|()| unpack(&request, image, scratch))
                .and_then(|program| {
                    let mut out = io::stdout().lock();
                    out.write_all(&serde_json::to_vec(&program)?)?;
                    out.flush()
                });
            if let Err(error) = &worked {
                eprintln!("{error}");
            }
            // SAFETY: ends the process without running what the parent has registered for its end.
            unsafe { libc::_exit(i32::from(worked.is_err())) }
        }
        ForkResult::Parent { child } => {
            drop((their_ready, their_go));
            if File::from(ready).read(&mut [0])? == 1 {
                let line = format!("0 {} {}\n", ids::STORED, ids::COUNT);
                fs::write(format!("/proc/{child}/uid_map"), &line)?;
                fs::write(format!("/proc/{child}/gid_map"), &line)?;
                File::from(go).write_all(b".")?;
            }
            match waitpid(child, None)? {
                WaitStatus::Exited(_, 0) => {
                    // So that what is renamed into place later is whole, also after a power loss.
                    Ok(rustix::fs::syncfs(File::open(ROOT)?)?)
                }
                WaitStatus::Exited(..) => std::process::exit(1),
                WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGXCPU, _) => {
                    Err(io::Error::other("it takes too long"))
                }
                other => Err(io::Error::other(format!("unpacking was cut short: {other:?}"))),
            }
        }
    }
}

/// Leaves everything behind but the folder.
fn enter(limits: &Limits, mut ready: File, mut go: File) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let bound =
        |resource, value| rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
    bound(Resource::Core, 0)?;
    bound(Resource::Cpu, limits.seconds)?;
    bound(Resource::As, limits.memory)?;
    bound(Resource::Nofile, 64)?;
    unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )?;
    ready.write_all(b".")?;
    if go.read(&mut [0])? != 1 {
        return Err(ErrorKind::PermissionDenied.into());
    }
    setgroups(&[])?;
    setgid(0.into())?;
    setuid(0.into())?;
    // Changing the user has cleared it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    chroot(ROOT)?;
    std::env::set_current_dir("/")?;
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(())
}

/// Fills the root of this process.
fn unpack(request: &Request, image: File, scratch: File) -> io::Result<Program> {
    let mut budget = Budget { bytes: request.limits.bytes, entries: request.limits.entries };
    match request.format {
        DiskFormat::Tar => {
            let said = layer::apply(compression::reader(image)?, &mut budget)?;
            said.map_or_else(|| plain(None), Ok)
        }
        DiskFormat::Oci => {
            let image = seekable(image, scratch, &mut budget)?;
            layout::apply(image, &mut budget)
        }
        other => Err(refuse(format!("{other:?} is no root file system"))),
    }
}

/// An archive that can be read in any order, which a compressed one cannot.
fn seekable(mut image: File, mut scratch: File, budget: &mut Budget) -> io::Result<File> {
    if !compression::is_compressed(&mut image)? {
        return Ok(image);
    }
    let mut plain = compression::reader(image)?.take(budget.bytes);
    if io::copy(&mut plain, &mut scratch)? == budget.bytes {
        return Err(layer::too_large());
    }
    scratch.rewind()?;
    Ok(scratch)
}

/// How a root file system that says nothing about it is run.
fn plain(environment: Option<Vec<String>>) -> io::Result<Program> {
    let is_file = |path: &str| fs::metadata(path).is_ok_and(|file| file.is_file());
    let mut program = if let Some(init) = ["/sbin/init", "/init"].into_iter().find(|path| is_file(path)) {
        let real = fs::canonicalize(init)?;
        Program::init(init, &real.to_string_lossy())
    } else if is_file("/bin/sh") {
        Program::shell(&["/bin/sh", "-l"])
    } else {
        return Err(refuse("it holds no /sbin/init, /init or /bin/sh"));
    };
    if let Some(environment) = environment {
        program.environment = environment;
    }
    Ok(program)
}

/// A file of the image, if it is a plain one and not large.
fn small_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    const MAX: u64 = 4 << 20;
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= MAX => {
            let mut content = vec![];
            File::open(path)?.take(MAX).read_to_end(&mut content)?;
            Ok(Some(content))
        }
        _ => Ok(None),
    }
}

fn refuse(why: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why.into())
}
