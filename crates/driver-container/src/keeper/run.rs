//! A keeper's life: mount, start, serve, start again if the container asks for it, take everything away.

use std::{
    io::{self, ErrorKind},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
    time::Duration,
};

use nephos_host::files;
use rustix::process::{Pid, PidfdFlags};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    CONSOLE, CONTROL, End, Order, Phase, STATE, State, TASK, Task, console, console::Consoles, container,
    container::Terminal, control::Control, forward, forward::Inside, mounts, mounts::Loop,
};
use crate::cgroup::Group;

/// How long consoles may take to read what is left.
const LAST_LOOK: Duration = Duration::from_millis(200);

/// What can stand in the way of a start.
struct Obstacle {
    code: &'static str,
    why: String,
}

impl From<io::Error> for Obstacle {
    fn from(error: io::Error) -> Self {
        Self { code: "start_failed", why: error.to_string() }
    }
}

/// What is made while there is one thread.
struct Prepared {
    task: Task,
    group: Group,
    control: UnixListener,
    console: UnixListener,
    ports: Vec<forward::Port>,
    device: Loop,
    terminal: Option<Terminal>,
}

/// Keeps a guest until it has ended.
pub(crate) fn run() -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let starting = State {
        phase: Phase::Starting,
        restarts: 0,
        cpu_before: Duration::ZERO,
        device: None,
        requests_before: (0, 0),
        forwarded: (0, 0),
    };
    let outcome = prepare().and_then(|prepared| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outcome = runtime.block_on(keep(prepared, starting.clone()));
        runtime.shutdown_background();
        outcome
    });
    mounts::release();
    if let Err(Obstacle { code, why }) = outcome {
        eprintln!("{why}");
        let phase = Phase::Failed { code: code.to_owned(), why };
        files::replace(Path::new(STATE), &State { phase, ..starting })?;
    }
    Ok(())
}

fn prepare() -> Result<Prepared, Obstacle> {
    let task: Task = files::read(Path::new(TASK))?.ok_or_else(|| io::Error::from(ErrorKind::NotFound))?;
    let control = listener(CONTROL)?;
    let console = listener(CONSOLE)?;
    let mut ports = vec![];
    for forward in &task.forwards {
        ports.push(forward::bind(forward).map_err(|error| Obstacle {
            code: if error.kind() == ErrorKind::AddrInUse { "port_in_use" } else { "start_failed" },
            why: format!("port {} of the node: {error}", forward.host_port),
        })?);
    }
    mounts::separate(&task.hidden)?;
    let group = Group::find(&task.name)?;
    group.end()?;
    let attach = |disk: &Path| {
        let failed = |error| Obstacle { code: "start_failed", why: format!("its disk: {error}") };
        Loop::attach(disk).map_err(failed)
    };
    let no_root = |error| Obstacle { code: "start_failed", why: format!("its root file system: {error}") };
    let (ids, mapped) = (task.seat.ids, task.mapped);
    let device = attach(&task.root.disk)?;
    mounts::make_place()?;
    mounts::root(&task.root.base, &device, ids, mapped).map_err(no_root)?;
    if let Some(own) = &task.own {
        mounts::own(&own.base, &attach(&own.disk)?, ids, mapped).map_err(no_root)?;
    }
    if let Some(files) = &task.config {
        mounts::config(files, ids, mapped)?;
    }
    let terminal = if task.interactive { None } else { Some(Terminal::new(task.seat.ids)?) };
    Ok(Prepared { task, group, control, console, ports, device, terminal })
}

fn listener(name: &str) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(name)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn keep(prepared: Prepared, mut state: State) -> Result<(), Obstacle> {
    let Prepared { task, group, control, console, ports, device, terminal } = prepared;
    state.device = Some((device.name.clone(), device.counters.read, device.counters.written));
    state.requests_before = (device.counters.reads, device.counters.writes);
    let mut control = Control::serve(tokio::net::UnixListener::from_std(control)?, state);
    let mut consoles = Consoles::serve(tokio::net::UnixListener::from_std(console)?, &task.log)?;
    let inside = Inside::new()?;
    for port in ports {
        forward::serve(port, &inside, control.quietly())?;
    }
    let mut near = match &terminal {
        Some(terminal) => Some(console::waitable(terminal.near.try_clone()?)?),
        None => None,
    };
    let mut stays = true;
    loop {
        control.say(|state| state.phase = Phase::Starting);
        let started = container::start(&task, terminal.as_ref()).await;
        let container::Started { init, terminal: made } = match started {
            Ok(started) => started,
            Err(error) => {
                container::delete(&task).await;
                return Err(error.into());
            }
        };
        if let Some(made) = made {
            near = Some(console::waitable(made)?);
        }
        let Some(near) = &near else { return Err(io::Error::from(ErrorKind::NotConnected).into()) };
        let handle = watch(init.pid)?;
        inside.enter(Some(init.pid))?;
        control.say(|state| state.phase = Phase::Running { init: init.clone() });
        let mut again = false;
        let mut terminal_is_open = true;
        let end = loop {
            tokio::select! {
                _ = handle.readable() => match container::ended(&init)? {
                    Some(end) => break end,
                    // Its other threads are still ending.
                    None => tokio::time::sleep(Duration::from_millis(1)).await,
                },
                () = consoles.carry(near, || group.is_frozen().unwrap_or(false)), if terminal_is_open => terminal_is_open = false,
                Some(order) = control.orders.recv() => match order {
                    Order::End { signal } => {
                        stays = false;
                        container::signal(&init, signal);
                        // A frozen process does not hear it.
                        let _ = group.thaw();
                    }
                    Order::Stay => stays = true,
                    Order::Reset => {
                        again = true;
                        container::signal(&init, nix::libc::SIGKILL);
                        let _ = group.thaw();
                    }
                },
            }
        };
        consoles.finish(near);
        inside.enter(None)?;
        let end = match end {
            End::Killed { signal: nix::libc::SIGKILL, .. } => {
                End::Killed { signal: nix::libc::SIGKILL, memory: group.was_out_of_memory() }
            }
            other => other,
        };
        let used = group.cpu().unwrap_or_default();
        container::delete(&task).await;
        if let Err(error) = group.remove() {
            eprintln!("its control groups cannot be removed: {error}");
        }
        let restarts_itself = stays && end.is_restart() && !again;
        if again || restarts_itself {
            control.say(|state| {
                state.cpu_before += used;
                state.restarts += u64::from(restarts_itself);
            });
            continue;
        }
        tokio::time::sleep(LAST_LOOK.min(Duration::from_millis(20))).await;
        control.say(|state| state.phase = Phase::Ended { end });
        return Ok(());
    }
}

/// Becomes readable when the process has ended.
fn watch(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(ErrorKind::NotFound)?;
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    // SAFETY: an `OwnedFd` keeps its descriptor open and the same until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?)
}
