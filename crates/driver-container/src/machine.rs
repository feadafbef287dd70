//! One run of a guest: its keeper, watched from its start (or its adoption) to its end.

use std::{
    io::{self, ErrorKind, Read},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nephos_driver::{GuestEvent, Usage};
use nephos_host::{
    files,
    process::{Identity, Process},
};
use nephos_types::{Bytes, Error, ErrorKind as Kind, ServerId};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    cgroup::Group,
    folder::Folder,
    keeper::{self, CONTROL, Order, Phase, State},
};

/// A container runs after some dozen milliseconds, on a busy machine later.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// How long a keeper may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a keeper may take to take everything away.
const END_LIMIT: Duration = Duration::from_secs(20);
/// The longest line of a keeper.
const MAX_LINE: u64 = 64 << 10;

/// A running container and its keeper.
pub(crate) struct Machine {
    id: ServerId,
    folder: Folder,
    keeper: Process,
    pub(crate) group: Group,
    /// `None` if the keeper could not be spoken to when it was adopted.
    orders: tokio::sync::Mutex<Option<OwnedWriteHalf>>,
    /// What the keeper said last.
    state: Mutex<Option<State>>,
    over: watch::Sender<bool>,
}

/// What a keeper says, line by line.
pub(crate) struct Sayings {
    reader: Option<BufReader<OwnedReadHalf>>,
    /// The part of a line that has arrived.
    line: Vec<u8>,
}

/// What a machine's watch tells its owner.
pub(crate) trait Watcher: Send + Sync + 'static {
    /// The guest restarted itself.
    fn restarted(&self);
    /// The guest has ended; called once, after all its processes are gone. Whether by its own decision, and how.
    fn ended(&self, shut_down: bool, why: String);
}

impl Machine {
    /// Takes hold of a keeper that has just been started; ends it if the container does not run.
    pub(crate) async fn started(
        id: ServerId,
        folder: Folder,
        keeper: Process,
        group: Group,
    ) -> Result<(Self, Sayings), Error> {
        let beginning = async {
            let (mut sayings, orders) = connect(&folder).await?;
            loop {
                match sayings.next().await? {
                    // It may have ended at once, which is for the watch to tell.
                    Some(state) if matches!(state.phase, Phase::Running { .. } | Phase::Ended { .. }) => {
                        return Ok((sayings, orders, state));
                    }
                    Some(_) => {}
                    None => return Err(ErrorKind::UnexpectedEof.into()),
                }
            }
        };
        let outcome = tokio::select! {
            outcome = beginning => outcome,
            _ = keeper.ended() => Err(ErrorKind::UnexpectedEof.into()),
            () = sleep(READY_LIMIT) => Err(io::Error::from(ErrorKind::TimedOut)),
        };
        match outcome {
            Ok((sayings, orders, state)) => {
                Ok((Self::new(id, folder, keeper, group, Some(orders), Some(state)), sayings))
            }
            Err(error) => {
                // It takes everything away by itself, if it can.
                if timeout(END_LIMIT, keeper.ended()).await.is_err() {
                    let _ = keeper.kill();
                    keeper.ended().await;
                }
                empty(&group).await?;
                if has_run(&folder) {
                    let sayings = Sayings { reader: None, line: vec![] };
                    return Ok((Self::new(id, folder, keeper, group, None, None), sayings));
                }
                Err(start_failure(&folder, error))
            }
        }
    }

    /// Takes hold of a keeper that an earlier agent has started.
    pub(crate) async fn adopted(id: ServerId, folder: Folder, keeper: Process, group: Group) -> (Self, Sayings) {
        let connecting = async {
            let (mut sayings, orders) = connect(&folder).await?;
            let state = sayings.next().await?;
            io::Result::Ok((sayings, orders, state))
        };
        let answer = tokio::select! {
            answer = connecting => answer,
            _ = keeper.ended() => Err(ErrorKind::UnexpectedEof.into()),
            () = sleep(ANSWER_LIMIT) => Err(ErrorKind::TimedOut.into()),
        };
        match answer {
            Ok((sayings, orders, state)) => (Self::new(id, folder, keeper, group, Some(orders), state), sayings),
            Err(error) => {
                // It still runs the guest, and can still be ended.
                tracing::warn!(%id, %error, "an adopted guest's keeper does not answer");
                (Self::new(id, folder, keeper, group, None, None), Sayings { reader: None, line: vec![] })
            }
        }
    }

    fn new(
        id: ServerId,
        folder: Folder,
        keeper: Process,
        group: Group,
        orders: Option<OwnedWriteHalf>,
        state: Option<State>,
    ) -> Self {
        let (orders, state) = (tokio::sync::Mutex::new(orders), Mutex::new(state));
        Self { id, folder, keeper, group, orders, state, over: watch::Sender::new(false) }
    }

    pub(crate) fn keeper(&self) -> &Identity {
        self.keeper.identity()
    }

    /// The container's first process, unless it is just starting again.
    pub(crate) fn init(&self) -> Option<Identity> {
        match &self.state.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.phase {
            Phase::Running { init } => Some(init.clone()),
            _ => None,
        }
    }

    /// What it has used since its start.
    pub(crate) async fn usage(&self) -> io::Result<Usage> {
        let asking = async { split(self.folder.connect(CONTROL).await?).0.next().await };
        let state = match timeout(ANSWER_LIMIT, asking).await {
            Ok(Ok(Some(state))) => state,
            // It has just ended.
            _ => return Ok(Usage::default()),
        };
        let used = self.group.used()?;
        let mut disk = keeper::Counters::default();
        if let Some((device, read_before, written_before)) = &state.device
            && let Ok(now) = keeper::counters(device)
        {
            disk = keeper::Counters {
                read: now.read.saturating_sub(*read_before),
                written: now.written.saturating_sub(*written_before),
                reads: now.reads.saturating_sub(state.requests_before.0),
                writes: now.writes.saturating_sub(state.requests_before.1),
            };
        }
        let [received, packets_received, sent, packets_sent] = match &state.phase {
            Phase::Running { init } => network(init.pid).unwrap_or_default(),
            _ => [0; 4],
        };
        Ok(Usage {
            cpu: state.cpu_before + used.cpu,
            memory: Bytes(used.memory),
            disk_read: Bytes(disk.read.saturating_mul(512)),
            disk_written: Bytes(disk.written.saturating_mul(512)),
            network_received: Bytes(received + state.forwarded.0),
            network_sent: Bytes(sent + state.forwarded.1),
            disk_reads: disk.reads,
            disk_writes: disk.writes,
            packets_received,
            packets_sent,
        })
    }

    /// Tells the keeper something.
    pub(crate) async fn order(&self, order: Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(&order)?;
        line.push(b'\n');
        let mut orders = self.orders.lock().await;
        let orders = orders.as_mut().ok_or(ErrorKind::NotConnected)?;
        timeout(ANSWER_LIMIT, orders.write_all(&line)).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
    }

    /// Asks the guest to shut down until it has, at most this long. `true` if it is over.
    pub(crate) async fn ask_to_end(&self, signal: i32, grace: Duration) -> bool {
        let deadline = Instant::now() + grace;
        if let Err(error) = self.order(Order::End { signal }).await {
            tracing::debug!(id = %self.id, %error, "the guest cannot be asked to end");
        }
        timeout_at(deadline, self.is_over()).await.is_ok()
    }

    /// Ends the guest by force. All its processes are gone and its watcher told when this returns.
    pub(crate) async fn kill(&self) -> Result<(), Error> {
        let told = self.order(Order::End { signal: nix::libc::SIGKILL }).await;
        let limit = if told.is_ok() { END_LIMIT } else { Duration::ZERO };
        if timeout(limit, self.is_over()).await.is_ok() {
            return Ok(());
        }
        self.keeper.kill().map_err(|error| Error::internal("The server's process cannot be ended", error))?;
        self.is_over().await;
        Ok(())
    }

    /// Waits until everything is gone and the watcher has been told.
    async fn is_over(&self) {
        // The sender is part of `self`, so this ends by the value only.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// Watches until the end. To be run as a task, once.
    pub(crate) async fn watch(self: Arc<Self>, mut sayings: Sayings, watcher: impl Watcher) {
        let restarts = |state: &Option<State>| state.as_ref().map_or(0, |state| state.restarts);
        let mut connected = true;
        loop {
            tokio::select! {
                _ = self.keeper.ended() => break,
                said = sayings.next(), if connected => match said {
                    Ok(Some(state)) => {
                        let mut known = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                        let again = state.restarts > restarts(&known);
                        *known = Some(state);
                        drop(known);
                        if again {
                            watcher.restarted();
                        }
                    }
                    Ok(None) | Err(_) => connected = false,
                },
            }
        }
        if let Err(error) = empty(&self.group).await {
            tracing::error!(id = %self.id, error = %error.chain(), "processes of a server are left");
        }
        let (shut_down, why) = ending(&self.folder);
        watcher.ended(shut_down, why);
        self.over.send_replace(true);
    }
}

impl Sayings {
    /// What is said next; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<State>> {
        let Some(reader) = &mut self.reader else { return Ok(None) };
        if reader.take(MAX_LINE).read_until(b'\n', &mut self.line).await? == 0 {
            return Ok(None);
        }
        let state = serde_json::from_slice(&self.line);
        self.line.clear();
        state.map(Some).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }
}

/// Connects to a keeper, which may not listen yet.
async fn connect(folder: &Folder) -> io::Result<(Sayings, OwnedWriteHalf)> {
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        match folder.connect(CONTROL).await {
            Ok(stream) => return Ok(split(stream)),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                    && Instant::now() < deadline =>
            {
                sleep(Duration::from_millis(2)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn split(stream: UnixStream) -> (Sayings, OwnedWriteHalf) {
    let (reader, writer) = stream.into_split();
    (Sayings { reader: Some(BufReader::new(reader)), line: vec![] }, writer)
}

/// Ends what a keeper could not.
async fn empty(group: &Group) -> Result<(), Error> {
    let group = group.clone();
    let outcome = spawn_blocking(move || group.end()).await;
    outcome
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|error| Error::internal("The server's processes cannot be ended", error))
}

/// Whether the container ran before its keeper ended.
fn has_run(folder: &Folder) -> bool {
    let state: Option<State> = files::read(&folder.run().join(keeper::STATE)).unwrap_or_default();
    state.is_some_and(|state| matches!(state.phase, Phase::Ended { .. }))
}

/// How a guest whose keeper is gone has ended: whether by its own decision, and in words.
pub(crate) fn ending(folder: &Folder) -> (bool, String) {
    let state: Option<State> = files::read(&folder.run().join(keeper::STATE)).unwrap_or_default();
    match state.map(|state| state.phase) {
        Some(Phase::Ended { end }) => (end.is_shutdown(), end.to_string()),
        Some(Phase::Failed { why, .. }) => (false, format!("it could not be started again: {why}")),
        Some(Phase::Starting | Phase::Running { .. }) | None => (false, "its keeper was ended".to_owned()),
    }
}

/// The event for an end that nobody asked for.
pub(crate) fn event_of_end(id: ServerId, shut_down: bool, why: &str) -> GuestEvent {
    if shut_down { GuestEvent::ShutDown(id) } else { GuestEvent::Crashed(id, why.to_owned()) }
}

/// Why a start failed, as its caller should know it.
fn start_failure(folder: &Folder, error: io::Error) -> Error {
    let state: Option<State> = files::read(&folder.run().join(keeper::STATE)).unwrap_or_default();
    match state.map(|state| state.phase) {
        Some(Phase::Failed { code, why }) if code == "port_in_use" => {
            Error::conflict("port_in_use", "A port that leads to the server is in use on the node").detail(why)
        }
        Some(Phase::Failed { why, .. }) => {
            Error::new(Kind::Internal, "start_failed", "The container could not be started").detail(why)
        }
        _ => {
            let kind = if error.kind() == ErrorKind::TimedOut { Kind::Timeout } else { Kind::Internal };
            Error::new(kind, "start_failed", "The container could not be started")
                .detail(last_words(folder))
                .source(error)
        }
    }
}

/// The end of what the keeper wrote to its standard error.
fn last_words(folder: &Folder) -> String {
    const MAX: u64 = 2048;
    let read = || -> io::Result<String> {
        let mut bytes = vec![];
        std::fs::File::open(folder.run().join(keeper::ERRORS))?.take(MAX).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(text.lines().map(str::trim).collect::<Vec<_>>().join("; "))
    };
    read().unwrap_or_default()
}

/// Bytes that a process's network has received and sent, its loopback left out: proc_pid_net(5).
fn network(pid: u32) -> io::Result<[u64; 4]> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    let interfaces = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    Ok(interfaces.fold([0; 4], |sum: [u64; 4], (_, numbers)| {
        let number =
            |place| numbers.split_ascii_whitespace().nth(place).and_then(|text| text.parse().ok()).unwrap_or(0);
        let places = [0, 1, 8, 9];
        std::array::from_fn(|index| sum[index].saturating_add(number(places[index])))
    }))
}
