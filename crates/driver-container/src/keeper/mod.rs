//! The keeper: a small process per running guest that outlives the agent.
//!
//! It is this program, started again as `container-keeper run` in the guest's `run/` folder. In a mount namespace of its
//! own it mounts the guest's root, has the runtime start the container, holds the container's terminal, serves its
//! consoles and its forwarded ports, starts it anew when it restarts itself, and writes down how it ended. When it has
//! ended, nothing of the guest is mounted or runs.
//!
//! What it says goes over `control.sock`: a line of JSON ([`State`]) to everybody who connects, and another whenever
//! something has changed. What it is told comes back on the same line ([`Order`]). The last state is in `state.json`.

mod console;
mod container;
mod control;
pub(crate) mod copy;
mod execute;
mod forward;
mod mounts;
pub(crate) mod probe;
mod run;
pub(crate) mod unpack;
mod visit;

pub(crate) use container::TERMINAL;
pub(crate) use mounts::{Counters, OWN, at, counters};

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use nephos_driver::PortForward;
use nephos_host::process::Identity;
use serde::{Deserialize, Serialize};

use crate::folder::Seat;

/// The first argument of a keeper.
pub(crate) const COMMAND: &str = "container-keeper";
/// Where a keeper listens for orders, in its working folder.
pub(crate) const CONTROL: &str = "control.sock";
/// Where it serves consoles.
pub(crate) const CONSOLE: &str = "console.sock";
/// What it is told.
pub(crate) const TASK: &str = "task.json";
/// What it writes to its standard error.
pub(crate) const ERRORS: &str = "errors.log";
/// What it said last.
pub(crate) const STATE: &str = "state.json";

/// What a keeper is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    /// The container's name.
    pub(crate) name: String,
    /// The OCI runtime's program.
    pub(crate) runtime: PathBuf,
    /// Mount points that the runtime must not see.
    pub(crate) hidden: Vec<PathBuf>,
    /// What the container's root is made of.
    #[serde(flatten)]
    pub(crate) root: Root,
    /// What the guest's own root is made of, for one that runs from another.
    #[serde(default)]
    pub(crate) own: Option<Root>,
    /// Whether the terminal becomes the container's controlling terminal. An init takes it for its children itself.
    pub(crate) interactive: bool,
    /// The folder of its configuration drive's files.
    pub(crate) config: Option<PathBuf>,
    /// What of the machine it has for itself.
    pub(crate) seat: Seat,
    /// Whether files are stored under other ids than the container's, and mounted accordingly.
    pub(crate) mapped: bool,
    /// Ports of the machine that lead to the container.
    pub(crate) forwards: Vec<PortForward>,
    /// Where the console's output is kept.
    pub(crate) log: PathBuf,
}

/// What a root file system is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Root {
    /// The unpacked image.
    pub(crate) base: PathBuf,
    /// The file with what was written.
    pub(crate) disk: PathBuf,
}

/// What a keeper says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    /// How often the container has restarted itself.
    pub(crate) restarts: u64,
    /// CPU time of the runs before this one.
    pub(crate) cpu_before: Duration,
    /// The loop device of the guest's disk, and its counters (sectors read and written) at the start.
    pub(crate) device: Option<(String, u64, u64)>,
    /// The loop device's other counters (requests to read and to write) at the start.
    #[serde(default)]
    pub(crate) requests_before: (u64, u64),
    /// Bytes that forwarded connections have carried to the container and back.
    pub(crate) forwarded: (u64, u64),
}

/// How far a container is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Not running yet, or not again.
    Starting,
    /// This is its first process.
    Running { init: Identity },
    /// It could not be started.
    Failed { code: String, why: String },
    /// Its first process has ended.
    Ended { end: End },
}

/// How a container's first process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// By itself.
    Exited(i32),
    /// By a signal; true if there was no memory left for it.
    Killed { signal: i32, memory: bool },
}

/// What a keeper is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum Order {
    /// Send the first process this signal; from now on a restart is an end.
    End { signal: i32 },
    /// A restart is no end after all.
    Stay,
    /// End it by force and start it again.
    Reset,
}

impl End {
    /// What reboot(2) makes of a PID namespace's first process when it is asked to restart.
    pub(crate) fn is_restart(self) -> bool {
        matches!(self, Self::Killed { signal: nix::libc::SIGHUP, .. })
    }

    /// Whether it ended as it should: by its own decision.
    pub(crate) fn is_shutdown(self) -> bool {
        // reboot(2) asked to power off or halt ends the first process with SIGINT, and nothing else can.
        matches!(self, Self::Exited(0) | Self::Killed { signal: nix::libc::SIGINT, .. })
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "its first process ended with exit code {code}"),
            Self::Killed { memory: true, .. } => f.write_str("it needed more memory than it has"),
            Self::Killed { signal, .. } => write!(f, "its first process was ended by signal {signal}"),
        }
    }
}

/// Runs as a keeper if these arguments (without the program's name) say so. A program that embeds the driver calls this
/// first in `main`, while it has one thread.
pub fn keeper(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.next()? != COMMAND {
        return None;
    }
    let outcome = match arguments.next()?.to_str()? {
        "run" => run::run(),
        "unpack" => unpack::run(),
        "probe" => probe::run(),
        "copy" => copy::run(),
        "visit" => visit::run(),
        "execute" => execute::run(arguments),
        _ => return None,
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    })
}
