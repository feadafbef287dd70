//! Processes that outlive the agent: found again after its restart, watched and ended whether they are children or not.
//!
//! A process is known by its id, its start time and the machine's boot, so that another process that was given the same
//! id later is never taken for it.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::Child,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nephos_types::Bytes;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

/// Which process it is, across restarts of the agent and of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since the machine's boot.
    start_time: u64,
    /// The machine's boot.
    boot: String,
}

/// What a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// CPU time since its start.
    pub cpu: Duration,
    /// Resident memory.
    pub memory: Bytes,
}

/// A running process, held by a descriptor that cannot come to mean another one.
pub struct Process {
    identity: Identity,
    handle: AsyncFd<OwnedFd>,
    /// To reap it, if it is our child.
    child: Mutex<Option<Child>>,
}

impl Process {
    /// Takes hold of a child. It may have ended already: until it is waited for, its id means no other process.
    pub fn of_child(child: Child) -> io::Result<Self> {
        let pid = pid_of(child.id()).ok_or(ErrorKind::NotFound)?;
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        let identity = Identity::of(child.id())?;
        // SAFETY: an `OwnedFd` keeps its descriptor open and the same until it is dropped.
        let handle = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?;
        Ok(Self { identity, handle, child: Mutex::new(Some(child)) })
    }

    /// Takes hold of a process that is remembered; `None` if it has ended.
    pub fn open(identity: &Identity) -> io::Result<Option<Self>> {
        let Some(pid) = pid_of(identity.pid) else { return Ok(None) };
        let handle = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Checked after the descriptor is held: from here on the id cannot be given to another process unnoticed.
        match Stat::of(identity.pid) {
            Ok(stat)
                if stat.start_time == identity.start_time && !stat.has_ended() && identity.is_of_this_boot()? => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        // SAFETY: an `OwnedFd` keeps its descriptor open and the same until it is dropped.
        let handle = unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?;
        Ok(Some(Self { identity: identity.clone(), handle, child: Mutex::new(None) }))
    }

    /// Which one it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Waits until it has ended; says how, if that is known.
    pub async fn ended(&self) -> Option<String> {
        // The descriptor becomes readable when the process ends and stays so, hence readiness is never cleared.
        let _ = self.handle.readable().await;
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(child) = child.as_mut() else {
            // It may be a child of ours after all, started by an earlier driver of this process; if not, init reaps it.
            let _ = rustix::process::waitpid(pid_of(self.identity.pid), WaitOptions::NOHANG);
            return None;
        };
        let status = child.try_wait().ok()??;
        match (status.code(), status.signal()) {
            (Some(code), _) => Some(format!("exit code {code}")),
            (None, Some(signal)) => Some(format!("signal {signal}")),
            (None, None) => None,
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(self.handle.get_ref(), rustix::event::PollFlags::IN)];
        matches!(rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())), Ok(1..))
    }

    /// Ends it by force. It is gone when [`Process::ended`] returns.
    pub fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.handle.get_ref().as_fd(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What it uses.
    pub fn usage(&self) -> io::Result<Used> {
        let stat = Stat::of(self.identity.pid)?;
        if self.has_ended() {
            return Ok(Used::default());
        }
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        let cpu = Duration::from_secs(stat.cpu_ticks / ticks)
            + Duration::from_millis((stat.cpu_ticks % ticks) * 1000 / ticks);
        let memory = stat.resident_pages.saturating_mul(rustix::param::page_size() as u64);
        Ok(Used { cpu, memory: Bytes(memory) })
    }
}

impl Identity {
    /// Of a process that exists, be it ended and not waited for.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_time: Stat::of(pid)?.start_time, boot: boot()? })
    }

    /// Whether the machine has not restarted since.
    pub fn is_of_this_boot(&self) -> io::Result<bool> {
        Ok(self.boot == boot()?)
    }

    /// The processes that work in folders below this one, found by looking at all there are.
    pub fn working_below(folder: &Path) -> io::Result<BTreeMap<PathBuf, Vec<Self>>> {
        let mut found = BTreeMap::<_, Vec<Self>>::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Ok(place) = fs::read_link(entry.path().join("cwd"))
                && place.starts_with(folder)
                && let Ok(identity) = Self::of(pid)
            {
                found.entry(place).or_default().push(identity);
            }
        }
        Ok(found)
    }
}

fn pid_of(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

/// This boot of the machine.
fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The fields in use of `/proc/<pid>/stat`, proc(5).
struct Stat {
    state: char,
    cpu_ticks: u64,
    start_time: u64,
    resident_pages: u64,
}

impl Stat {
    fn of(pid: u32) -> io::Result<Self> {
        let text = match fs::read_to_string(format!("/proc/{pid}/stat")) {
            // The process ended between opening and reading.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                return Err(ErrorKind::NotFound.into());
            }
            other => other?,
        };
        Self::parse(&text).ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "unexpected /proc/<pid>/stat"))
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses and may hold anything, parentheses included.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            cpu_ticks: number(14)?.checked_add(number(15)?)?,
            start_time: number(22)?,
            resident_pages: number(24)?,
        })
    }

    /// A zombie is no process any more.
    fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn sleeping() -> Process {
        Process::of_child(Command::new("sleep").arg("1000").spawn().unwrap()).unwrap()
    }

    #[test]
    fn a_name_with_parentheses_is_no_obstacle() {
        let text = "7 (a) (b ) R) S 1 7 7 0 -1 4194304 1 2 3 4 10 20 0 0 20 0 1 0 12345 4096 99 18446744073709551615";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.cpu_ticks, stat.start_time, stat.resident_pages), ('S', 30, 12345, 99));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}", numbers in "([0-9]{1,25} ){0,60}") {
            let _ = Stat::parse(&text);
            let _ = Stat::parse(&format!("1 (x) S {numbers}"));
        }
    }

    #[tokio::test]
    async fn a_child_that_ended_before_it_is_taken_hold_of_tells_how() {
        let child = Command::new("false").spawn().unwrap();
        let stat = || Stat::of(child.id()).unwrap();
        while stat().state != 'Z' {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(Process::of_child(child).unwrap().ended().await.as_deref(), Some("exit code 1"));
    }

    #[tokio::test]
    async fn a_process_is_found_again_and_ended_by_another_holder() {
        let process = sleeping();
        let text = serde_json::to_string(process.identity()).unwrap();
        let again = Process::open(&serde_json::from_str(&text).unwrap()).unwrap().unwrap();
        assert!(!again.has_ended());
        again.kill().unwrap();
        assert_eq!(process.ended().await.as_deref(), Some("signal 9"));
        assert!(again.has_ended());
        again.ended().await;
        again.kill().unwrap();
        assert!(Process::open(process.identity()).unwrap().is_none());
    }

    #[tokio::test]
    async fn another_process_with_the_same_id_is_not_taken_for_it() {
        let process = sleeping();
        let mine = process.identity().clone();
        for other in [
            Identity { start_time: mine.start_time + 1, ..mine.clone() },
            Identity { boot: "another boot".into(), ..mine.clone() },
            Identity { pid: 0, ..mine.clone() },
            Identity { pid: u32::MAX, ..mine.clone() },
        ] {
            assert!(Process::open(&other).unwrap().is_none(), "{other:?}");
        }
        process.kill().unwrap();
        process.ended().await;
    }
}
