//! One run of a guest: its QEMU, watched from its start (or its adoption) to its end.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nephos_driver::{GuestEvent, Usage};
use nephos_host::process::Process;
use nephos_types::{Bytes, Error, ErrorKind, ServerId};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout_at},
};

use crate::{
    agent::Agent,
    command_line::{AGENT_LINE, DISK_NODE},
    console::Consoles,
    folder::{Folder, QMP_SOCKET},
    qmp::{Client, Event, QmpError},
};

/// QEMU listens a few dozen milliseconds after its start, on a busy machine later.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Answers take microseconds, on a busy machine longer.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// Samples are taken all the time, so nobody waits long for one.
const USAGE_LIMIT: Duration = Duration::from_secs(1);
/// How long QEMU may take to write its caches and end.
const QUIT_LIMIT: Duration = Duration::from_secs(5);
/// How often a guest is asked again to shut down: one that is booting does not hear it.
const ASK_EVERY: Duration = Duration::from_secs(3);
/// How often the size of the console log is looked at.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// A running QEMU.
pub(crate) struct Machine {
    id: ServerId,
    folder: Folder,
    process: Process,
    /// `None` if QEMU could not be spoken to when it was adopted.
    qmp: Option<Client>,
    pub(crate) consoles: Consoles,
    pub(crate) agent: Agent,
    over: watch::Sender<bool>,
    /// What was read and written at the last look.
    disks: Mutex<Usage>,
}

/// What a machine's watch tells its owner.
pub(crate) trait Watcher: Send + Sync + 'static {
    /// The guest restarted itself.
    fn restarted(&self);
    /// The guest has ended; called once, after its process is gone. `None` if nobody noticed a shutdown: its process
    /// died or was killed, for this reason.
    fn ended(&self, shut_down: bool, why: String);
}

impl Machine {
    /// Takes hold of a QEMU that has just been started; ends it if it does not get ready.
    pub(crate) async fn started(
        id: ServerId,
        folder: Folder,
        process: Process,
    ) -> Result<(Self, mpsc::Receiver<Event>), Error> {
        match connect(&folder, QMP_SOCKET, &process).await {
            Ok((client, events)) => Ok((Self::new(id, folder, process, Some(client)), events)),
            Err(error) => {
                let _ = process.kill();
                let how = process.ended().await;
                Err(start_failure(&folder, error, how))
            }
        }
    }

    /// Takes hold of a QEMU that an earlier agent has started.
    pub(crate) async fn adopted(id: ServerId, folder: Folder, process: Process) -> (Self, mpsc::Receiver<Event>) {
        let connecting = async { Client::connect(folder.connect(QMP_SOCKET).await?, COMMAND_LIMIT).await };
        match connecting.await {
            Ok((client, events)) => (Self::new(id, folder, process, Some(client)), events),
            Err(error) => {
                // It still runs the guest, and can still be ended.
                tracing::warn!(%id, %error, "an adopted guest's QEMU does not answer");
                (Self::new(id, folder, process, None), mpsc::channel(1).1)
            }
        }
    }

    fn new(id: ServerId, folder: Folder, process: Process, qmp: Option<Client>) -> Self {
        let consoles = Consoles::new(folder.clone());
        let agent = Agent::new(id, folder.clone());
        Self { id, folder, process, qmp, consoles, agent, over: watch::Sender::new(false), disks: Mutex::default() }
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// What the guest has used. User-mode networking counts nothing, so what went over it stays zero.
    pub(crate) async fn usage(&self) -> Result<Usage, Error> {
        let usage = match self.process.usage() {
            Ok(usage) => usage,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Usage::default()),
            Err(error) => return Err(Error::internal("The server's use of the node cannot be read", error)),
        };
        let asked = match &self.qmp {
            Some(qmp) => qmp.execute("query-blockstats", Value::Null, USAGE_LIMIT).await.ok(),
            None => None,
        };
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = asked {
            *disks = disk_traffic(&answer);
        }
        Ok(Usage { cpu: usage.cpu, memory: usage.memory, ..*disks })
    }

    /// Whether the guest has switched itself off while nobody watched.
    async fn has_shut_down(&self) -> bool {
        self.status().await == "shutdown"
    }

    /// The state in which QEMU is, in its words; empty if it does not say.
    pub(crate) async fn status(&self) -> String {
        let status = self.execute("query-status", Value::Null).await;
        status.ok().and_then(|status| Some(status["status"].as_str()?.to_owned())).unwrap_or_default()
    }

    /// The connection to QEMU.
    pub(crate) fn qmp(&self) -> Result<&Client, QmpError> {
        self.qmp.as_ref().ok_or(QmpError::Closed)
    }

    pub(crate) async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        self.qmp()?.execute(command, arguments, COMMAND_LIMIT).await
    }

    /// Whether a program in the guest has opened the agent's line. Says nothing about the program.
    pub(crate) async fn agent_listens(&self) -> bool {
        let lines = self.execute("query-chardev", Value::Null).await.unwrap_or_default();
        let mut lines = lines.as_array().into_iter().flatten();
        lines.any(|line| line["label"] == AGENT_LINE && line["frontend-open"] == true)
    }

    /// What QEMU wrote to its standard error.
    pub(crate) fn last_words(&self) -> String {
        last_words(&self.folder)
    }

    /// Gives the root disk this size; a guest that runs sees it at once.
    pub(crate) async fn grow_disk(&self, size: Bytes) -> Result<(), QmpError> {
        self.execute("block_resize", json!({ "node-name": DISK_NODE, "size": size.0 })).await.map(|_| ())
    }

    /// Lets the guest run, for the first time or again.
    pub(crate) async fn go(&self) -> Result<(), QmpError> {
        self.execute("cont", Value::Null).await.map(|_| ())
    }

    /// Makes the guest stand still.
    pub(crate) async fn pause(&self) -> Result<(), QmpError> {
        self.execute("stop", Value::Null).await.map(|_| ())
    }

    /// Cuts the power and switches it on again.
    pub(crate) async fn reset(&self) -> Result<(), QmpError> {
        self.execute("system_reset", Value::Null).await.map(|_| ())
    }

    /// Asks the guest to shut down until it has, at most this long. `true` if it is over.
    pub(crate) async fn ask_to_shut_down(&self, grace: Duration) -> bool {
        let deadline = Instant::now() + grace;
        loop {
            if let Err(error) = self.execute("system_powerdown", Value::Null).await {
                tracing::debug!(id = %self.id, %error, "the power button cannot be pressed");
            }
            let ask_again = (Instant::now() + ASK_EVERY).min(deadline);
            if timeout_at(ask_again, self.is_over()).await.is_ok() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
        }
    }

    /// Ends QEMU, in good order if it can. It is gone and its watcher told when this returns.
    pub(crate) async fn quit(&self) -> Result<(), Error> {
        let asked = self.execute("quit", Value::Null).await;
        let deadline = Instant::now() + if asked.is_ok() { QUIT_LIMIT } else { Duration::ZERO };
        if timeout_at(deadline, self.is_over()).await.is_ok() {
            return Ok(());
        }
        self.kill().await
    }

    /// Ends QEMU by force. It is gone and its watcher told when this returns.
    pub(crate) async fn kill(&self) -> Result<(), Error> {
        self.process.kill().map_err(|error| Error::internal("The server's process cannot be ended", error))?;
        self.is_over().await;
        Ok(())
    }

    /// Waits until the process is gone and the watcher has been told.
    async fn is_over(&self) {
        // The sender is part of `self`, so this ends by the value only.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// Watches until the end. To be run as a task, once.
    pub(crate) async fn watch(self: Arc<Self>, mut events: mpsc::Receiver<Event>, watcher: impl Watcher) {
        let mut shut_down = self.has_shut_down().await;
        let mut connected = true;
        let mut log_check = interval(LOG_EVERY);
        log_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let how = loop {
            if shut_down {
                // It only waits to be noticed.
                let _ = self.execute("quit", Value::Null).await;
                if tokio::time::timeout(QUIT_LIMIT, self.process.ended()).await.is_err() {
                    let _ = self.process.kill();
                }
                break self.process.ended().await;
            }
            tokio::select! {
                how = self.process.ended() => break how,
                event = events.recv(), if connected => match event {
                    None => connected = false,
                    Some(event) => match (event.name.as_str(), event.data["reason"].as_str()) {
                        ("SHUTDOWN", Some("guest-shutdown")) => shut_down = true,
                        ("RESET", Some("guest-reset")) => watcher.restarted(),
                        (name, _) => tracing::trace!(id = %self.id, name, "QEMU event"),
                    },
                },
                _ = log_check.tick() => {
                    if let Err(error) = self.folder.bound_console_log() {
                        tracing::warn!(id = %self.id, %error, "the console log cannot be kept short");
                    }
                }
            }
        };
        let how = how.unwrap_or_else(|| "its process ended".to_owned());
        let words = last_words(&self.folder);
        watcher.ended(shut_down, if words.is_empty() { how } else { format!("{how}: {words}") });
        self.over.send_replace(true);
    }
}

/// Speaks to a QEMU that has just been started, as soon as it listens.
pub(crate) async fn connect(
    folder: &Folder,
    socket: &str,
    process: &Process,
) -> Result<(Client, mpsc::Receiver<Event>), QmpError> {
    let connecting = async {
        loop {
            // It binds before it listens, so both "not there" and "refused" mean "not yet".
            match folder.connect(socket).await {
                Ok(stream) => return Client::connect(stream, READY_LIMIT).await,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                    sleep(Duration::from_millis(2)).await;
                }
                Err(error) => return Err(QmpError::Io(error)),
            }
        }
    };
    tokio::select! {
        outcome = connecting => outcome,
        _ = process.ended() => Err(QmpError::Closed),
        () = sleep(READY_LIMIT) => Err(QmpError::Silent("greeting")),
    }
}

/// What was read and written, of all disks, from an answer to `query-blockstats`.
fn disk_traffic(answer: &Value) -> Usage {
    let devices = || answer.as_array().into_iter().flatten();
    let sum = |name: &str| {
        let counts = devices().filter_map(|device| device["stats"][name].as_u64());
        counts.fold(0, u64::saturating_add)
    };
    Usage {
        disk_read: Bytes(sum("rd_bytes")),
        disk_written: Bytes(sum("wr_bytes")),
        disk_reads: sum("rd_operations"),
        disk_writes: sum("wr_operations"),
        ..Usage::default()
    }
}

/// The end of what QEMU wrote to its standard error.
fn last_words(folder: &Folder) -> String {
    const MAX: u64 = 2048;
    let read = || -> io::Result<String> {
        let mut bytes = vec![];
        std::fs::File::open(folder.errors())?.take(MAX).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines = text.lines().filter(|line| !line.contains("terminating on signal")).map(str::trim);
        Ok(lines.collect::<Vec<_>>().join("; "))
    };
    read().unwrap_or_default()
}

/// Why a start failed, as its caller should know it.
fn start_failure(folder: &Folder, error: QmpError, how: Option<String>) -> Error {
    let words = last_words(folder);
    if words.contains("Could not set up host forwarding rule") {
        return Error::conflict("port_in_use", "A port that leads to the server is in use on the node").detail(words);
    }
    let detail = match (words.is_empty(), how) {
        (false, _) => words,
        (true, Some(how)) => how,
        (true, None) => error.to_string(),
    };
    let kind = if matches!(error, QmpError::Silent(_)) { ErrorKind::Timeout } else { ErrorKind::Internal };
    Error::new(kind, "start_failed", "QEMU could not start the server").detail(detail).source(error)
}

/// The event for an end that nobody asked for.
pub(crate) fn event_of_end(id: ServerId, shut_down: bool, why: &str) -> GuestEvent {
    if shut_down { GuestEvent::ShutDown(id) } else { GuestEvent::Crashed(id, why.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_traffic_of_all_disks_is_summed() {
        let disk = |read: u64, written: u64| json!({ "stats": { "rd_bytes": read, "wr_bytes": written, "rd_operations": 1, "wr_operations": 2 } });
        let both =
            Usage { disk_read: Bytes(11), disk_written: Bytes(22), disk_reads: 2, disk_writes: 4, ..Usage::default() };
        assert_eq!(disk_traffic(&json!([disk(1, 2), disk(10, 20)])), both);
        let odd = json!([disk(u64::MAX, 0), disk(1, 0), { "stats": 7 }, null]);
        assert_eq!(disk_traffic(&odd).disk_read, Bytes(u64::MAX));
        assert_eq!(disk_traffic(&Value::Null), Usage::default());
    }
}
