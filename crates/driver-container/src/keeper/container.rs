//! The runtime's part: a container is started on a terminal, and taken away when it has ended.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, IoSliceMut, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    path::Path,
    process::Stdio,
    time::Duration,
};

use nephos_host::process::Identity;
use nix::{
    cmsg_space,
    libc::pid_t,
    pty::{OpenptyResult, Winsize, openpty},
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::{process::Command, time::timeout};

use super::{End, Task, mounts};

/// How long the runtime may take; usually it takes some dozen milliseconds.
const RUNTIME_LIMIT: Duration = Duration::from_secs(60);
/// The container's terminal, among the keeper's mounts.
pub(crate) const TERMINAL: &str = "terminal";
const PID: &str = "init.pid";
const RUNTIME_LOG: &str = "runtime.log";
const TERMINAL_SOCKET: &str = "terminal.sock";

/// A terminal whose far side becomes the container's console.
pub(crate) struct Terminal {
    pub(crate) near: OwnedFd,
    far: Option<OwnedFd>,
}

/// A container that has just been started.
pub(crate) struct Started {
    pub(crate) init: Identity,
    /// The terminal, if the runtime has made it.
    pub(crate) terminal: Option<OwnedFd>,
}

impl Terminal {
    /// Makes one for a container that takes it as it is, and puts its far side where the bundle says.
    pub(crate) fn new(ids: u32) -> io::Result<Self> {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None)?;
        for fd in [&master, &slave] {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
        }
        let name = nix::unistd::ttyname(&slave)?;
        let place = mounts::at(TERMINAL);
        File::create(&place)?;
        nix::mount::mount(Some(&name), &place, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)?;
        let terminal = Self { near: master, far: Some(slave) };
        terminal.hand_over(ids)?;
        Ok(terminal)
    }

    /// Makes the far side the container's root's: whoever logged in may have taken it.
    pub(crate) fn hand_over(&self, ids: u32) -> io::Result<()> {
        let Some(far) = &self.far else { return Ok(()) };
        rustix::fs::fchmod(far, rustix::fs::Mode::from_raw_mode(0o600))?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(ids), rustix::fs::Gid::from_raw(ids));
        Ok(rustix::fs::fchown(far, Some(uid), Some(gid))?)
    }

    fn far(&self) -> io::Result<Stdio> {
        self.far.as_ref().map_or_else(|| Ok(Stdio::null()), |far| far.try_clone().map(Stdio::from))
    }
}

/// Starts the container, on this terminal or on one that the runtime makes.
pub(crate) async fn start(task: &Task, terminal: Option<&Terminal>) -> io::Result<Started> {
    for name in [PID, TERMINAL_SOCKET, RUNTIME_LOG] {
        nephos_host::files::gone(fs::remove_file(name))?;
    }
    let mut command = runtime(task);
    command.args(["--log", RUNTIME_LOG, "run", "--detach", "--pid-file", PID, "--bundle", "."]);
    let listener = match terminal {
        Some(terminal) => {
            terminal.hand_over(task.seat.ids)?;
            command.stdin(terminal.far()?).stdout(terminal.far()?).stderr(terminal.far()?);
            None
        }
        None => {
            command.args(["--console-socket", TERMINAL_SOCKET]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Some(UnixListener::bind(TERMINAL_SOCKET)?)
        }
    };
    let outcome = run(command.arg(&task.name)).await;
    if let Err(error) = outcome {
        return Err(io::Error::other(format!("{error}{}", last_words())));
    }
    let pid = fs::read_to_string(PID)?.trim().parse().map_err(io::Error::other)?;
    let terminal = listener.map(received).transpose()?;
    Ok(Started { init: Identity::of(pid)?, terminal })
}

/// Takes what is left of a container away. Nothing happens if nothing is.
pub(crate) async fn delete(task: &Task) {
    let mut command = runtime(task);
    command.args(["--log", RUNTIME_LOG, "delete", "--force", &task.name]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(error) = run(&mut command).await {
        eprintln!("what is left of the container cannot be taken away: {error}{}", last_words());
    }
}

fn runtime(task: &Task) -> Command {
    let mut command = Command::new(&task.runtime);
    command.env_clear().env("PATH", crate::surroundings::PATH);
    // Absolute, because runtimes change their folder.
    let here = std::env::current_dir().unwrap_or_else(|_| Path::new(".").to_owned());
    command.arg("--root").arg(here.join("runtime"));
    command.kill_on_drop(true);
    command
}

async fn run(command: &mut Command) -> io::Result<()> {
    match timeout(RUNTIME_LIMIT, command.status()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(io::Error::other(format!("the runtime ended with {status}"))),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ErrorKind::TimedOut.into()),
    }
}

/// The end of what the runtime wrote.
fn last_words() -> String {
    const MAX: u64 = 2048;
    let mut text = vec![];
    let read = File::open(RUNTIME_LOG).and_then(|log| log.take(MAX).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    match read {
        Ok(1..) => format!(": {}", text.lines().collect::<Vec<_>>().join("; ")),
        _ => String::new(),
    }
}

/// The terminal that the runtime has sent.
fn received(listener: UnixListener) -> io::Result<OwnedFd> {
    let (stream, _) = listener.accept()?;
    let mut name = [0; 4096];
    let mut pieces = [IoSliceMut::new(&mut name)];
    let mut space = cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
    let fd = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let fd = fd.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "the runtime sent no terminal"))?;
    // SAFETY: the message has brought this descriptor for us.
    let terminal = unsafe { OwnedFd::from_raw_fd(fd) };
    let size = rustix::termios::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let _ = rustix::termios::tcsetwinsize(&terminal, size);
    Ok(terminal)
}

/// How the first process ended, once it has; it is reaped. The keeper is its parent since the runtime is gone.
pub(crate) fn ended(init: &Identity) -> io::Result<Option<End>> {
    let pid = Pid::from_raw(pid_t::try_from(init.pid).map_err(io::Error::other)?);
    Ok(match waitpid(pid, Some(WaitPidFlag::WNOHANG))? {
        WaitStatus::Exited(_, code) => Some(End::Exited(code)),
        WaitStatus::Signaled(_, signal, _) => Some(End::Killed { signal: signal as i32, memory: false }),
        _ => None,
    })
}

/// Sends the first process a signal. It has not been reaped, so its id means no other.
pub(crate) fn signal(init: &Identity, signal: i32) {
    if let Ok(pid) = pid_t::try_from(init.pid) {
        // SAFETY: the call takes two numbers. It is called directly, because real-time signals have no name in nix.
        unsafe { nix::libc::kill(pid, signal) };
    }
}
