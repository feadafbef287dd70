//! How processes of guests and helper programs are started: detached, with no more rights and room than they need.

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use nephos_types::Bytes;
use rustix::{
    fs::{Gid, Uid},
    process::{Resource, Rlimit},
};

/// The rights of a process.
#[derive(Clone, Debug)]
pub(crate) struct Rights {
    /// User and group, if they differ from the agent's.
    pub(crate) owner: Option<(Uid, Gid)>,
    /// Further groups.
    pub(crate) groups: Vec<Gid>,
}

/// How to start a process.
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Path,
    pub(crate) arguments: &'a [String],
    /// Its working folder.
    pub(crate) folder: BorrowedFd<'a>,
    pub(crate) rights: &'a Rights,
    /// Descriptors that it inherits under their numbers, besides the standard ones.
    pub(crate) inherited: &'a [RawFd],
    pub(crate) output: Stdio,
    pub(crate) errors: Stdio,
    /// Bounds of CPU seconds and address space; none for guests.
    pub(crate) limits: Option<Limits>,
}

/// Bounds for helper programs.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) cpu_seconds: u64,
    pub(crate) address_space: Bytes,
}

impl Launch<'_> {
    /// Starts it in a session of its own, so that no signal to the agent's group reaches it.
    pub(crate) fn spawn(self) -> io::Result<Child> {
        let mut command = Command::new(self.program);
        command.args(self.arguments).stdin(Stdio::null()).stdout(self.output).stderr(self.errors);
        // What a guest's process needs of the environment is nothing but where programs are.
        command.env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        let folder = self.folder.as_raw_fd();
        let inherited = self.inherited.to_vec();
        let rights = self.rights.clone();
        let limits = self.limits;
        let prepare = move || -> io::Result<()> {
            // SAFETY: the descriptors are open in the parent until `spawn` returns, hence also here.
            let borrow = |fd: RawFd| unsafe { BorrowedFd::borrow_raw(fd) };
            for fd in &inherited {
                rustix::io::fcntl_setfd(borrow(*fd), rustix::io::FdFlags::empty())?;
            }
            rustix::process::fchdir(borrow(folder))?;
            rustix::process::setsid()?;
            let bound = |resource, value| {
                rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
            };
            bound(Resource::Core, 0)?;
            if let Some(limits) = limits {
                bound(Resource::Cpu, limits.cpu_seconds)?;
                bound(Resource::As, limits.address_space.0)?;
            }
            if let Some((uid, gid)) = rights.owner {
                rustix::thread::set_thread_groups(&rights.groups)?;
                rustix::thread::set_thread_res_gid(gid, gid, gid)?;
                rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            }
            Ok(())
        };
        // SAFETY: `prepare` makes system calls only: it neither allocates nor locks, so it may run between fork and exec.
        unsafe { command.pre_exec(prepare) };
        command.spawn()
    }
}
