//! Runs a helper program to its end on files that strangers wrote, so that it can reach nothing else.
//!
//! The program sees a file system of its own: the machine's programs and libraries, read-only, and the files that it is
//! given, under names of their own. It has no network, no other user's rights, no way to more rights, and bounds on
//! processor time, memory, the size of what it writes, and time. Where one of these cannot be had, nothing is run.
//!
//! As root the program runs as a user that owns nothing else. Without root the kernel has to allow user namespaces.
//!
//! Must not know: what is run, and why.

mod view;

use std::{
    fs::{File, Permissions},
    io,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nephos_types::{Bytes, Error, ErrorKind, Result};
use rustix::{
    fs::{Gid, Uid},
    process::{Resource, Rlimit},
};
use tokio::io::{AsyncRead, AsyncReadExt};

use view::View;

/// The user that programs run as; far above what systems give to people, services and containers.
const USER: u32 = 1_299_999_999;
/// `nobody`, where a user namespace has no room for [`USER`].
const NOBODY: u32 = 65_534;
/// The most that is kept of what a program prints, on each of its two outputs.
const MAX_OUTPUT: u64 = 64 << 10;

/// Bounds on a program.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Processor time, in seconds.
    pub cpu_seconds: u64,
    /// Address space.
    pub memory: Bytes,
    /// The largest file that it may write.
    pub file_size: Bytes,
    /// Time, after which it is killed.
    pub time: Duration,
}

/// A file that a program is given.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// What it is called there: one part of a path, in the root folder.
    pub name: &'a str,
    /// Where it is.
    pub path: &'a Path,
    /// Whether it may be written.
    pub writable: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Output {
    /// Whether it ended with status 0.
    pub success: bool,
    /// How it ended, for people.
    pub ended: String,
    /// The beginning of what it printed.
    pub stdout: Vec<u8>,
    /// The beginning of what it printed as errors.
    pub stderr: String,
}

/// A program with its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Sandbox<'a> {
    /// Its name, looked for in `PATH`, or its path; it lies below `/usr` or `/bin`.
    pub program: &'a str,
    /// Its arguments.
    pub arguments: &'a [String],
    /// What it is given besides.
    pub files: &'a [Given<'a>],
    /// Its bounds.
    pub limits: Limits,
}

/// With which rights the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    /// As this user; this process is root.
    User(u32),
    /// As this process's user, in a user namespace.
    Own,
}

impl Rights {
    fn available() -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self::Own;
        }
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Self::User(if covers(&map, USER) { USER } else { NOBODY })
    }
}

/// Whether a user namespace's map (user_namespaces(7)) knows this id.
fn covers(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [inside, _, length] = numbers[..] else { return false };
        (inside..inside.saturating_add(length)).contains(&u64::from(id))
    })
}

impl Sandbox<'_> {
    /// Runs it. Dropping the future kills it.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the program is not there, or the machine cannot confine it; `Timeout` if it took too long. That
    /// the program failed is no error: see [`Output::success`].
    pub async fn run(self) -> Result<Output> {
        let program = find(self.program)?;
        let rights = Rights::available();
        // What the program sees as its root is mounted over this folder; nothing is ever written into it.
        let root = tempfile::Builder::new().prefix("nephos-sandbox-").tempdir().map_err(|error| unusable(&error))?;
        std::fs::set_permissions(root.path(), Permissions::from_mode(0o755)).map_err(|error| unusable(&error))?;
        for file in self.files {
            hand_over(file, rights).map_err(|error| unusable(&error))?;
        }
        let view = View::new(root.path(), self.files).map_err(|error| unusable(&error))?;
        let mut command = tokio::process::Command::new(&program);
        command.args(self.arguments).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let limits = self.limits;
        // SAFETY: between fork and exec this makes system calls only: all paths were made before, and nothing is
        // allocated or locked.
        unsafe { command.pre_exec(move || confine(&view, rights, limits)) };
        let mut child = command.spawn().map_err(|error| unusable(&error))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async { tokio::join!(beginning(stdout), beginning(stderr), child.wait()) };
        let (stdout, stderr, status) = tokio::time::timeout(limits.time, work).await.map_err(|_| {
            Error::new(ErrorKind::Timeout, "helper_too_slow", "A helper program took too long").detail(format!(
                "{} did not end within {} s",
                self.program,
                limits.time.as_secs()
            ))
        })?;
        let status = status.map_err(|error| Error::internal("A helper program was lost", error))?;
        Ok(Output {
            success: status.success(),
            ended: status.to_string(),
            stdout,
            stderr: String::from_utf8_lossy(&stderr).trim().to_owned(),
        })
    }
}

/// The program's path, without symbolic links, as the program's own root shows it too.
fn find(program: &str) -> Result<PathBuf> {
    let missing = || {
        Error::new(ErrorKind::Unsupported, "missing_program", format!("`{program}` is not installed"))
            .next("install the package that has it; for qemu-img: apt-get install qemu-utils", None)
    };
    if program.contains('/') {
        return Ok(PathBuf::from(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin".into(), "/bin".into()])
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .ok_or_else(missing)
}

/// Makes a file readable (and writable) for whom the program runs as, and for nobody else.
fn hand_over(file: &Given<'_>, rights: Rights) -> io::Result<()> {
    let opened = File::open(file.path)?;
    opened.set_permissions(Permissions::from_mode(if file.writable { 0o600 } else { 0o400 }))?;
    if let Rights::User(id) = rights {
        rustix::fs::fchown(opened.as_fd(), Some(Uid::from_raw(id)), Some(Gid::from_raw(id)))?;
    }
    Ok(())
}

/// Runs in the child, before the program.
fn confine(view: &View, rights: Rights, limits: Limits) -> io::Result<()> {
    rustix::process::setsid()?;
    view.enter(rights == Rights::Own)?;
    let bound =
        |resource, value| rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) });
    bound(Resource::Core, 0)?;
    bound(Resource::Cpu, limits.cpu_seconds)?;
    bound(Resource::As, limits.memory.0)?;
    bound(Resource::Fsize, limits.file_size.0)?;
    bound(Resource::Nofile, 64)?;
    if let Rights::User(id) = rights {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// What a stream begins with. The rest is read and dropped, so that the program does not wait.
async fn beginning(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let Some(mut stream) = stream else { return vec![] };
    let mut bytes = vec![];
    // What cannot be read is not there.
    let _ = (&mut stream).take(MAX_OUTPUT).read_to_end(&mut bytes).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    bytes
}

fn unusable(error: &io::Error) -> Error {
    Error::new(ErrorKind::Unsupported, "sandbox_unavailable", "Helper programs cannot be confined on this machine")
        .detail(format!("nothing is run on a stranger's file without that: {error}"))
        .next("run the control plane as root, or allow user namespaces", None)
}
