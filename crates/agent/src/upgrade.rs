//! Taking up another program: the agent replaces its own file by one that the control plane offers.
//!
//! The new program must show that it works on this machine (it is run with the arguments that its owner gave, and must
//! end well) before the old file is touched. The old one stays beside it with `.old` at the end. What has failed is told
//! as a condition, and not tried again until the offer is taken back.

use std::{
    ffi::OsString,
    fs::Permissions,
    io::{self, ErrorKind::ExecutableFileBusy, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use nephos_node_api::{AgentProgram, Client, Condition, UPGRADE_FAILED};
use nephos_types::{Bytes, Error, ErrorKind, Result};
use ring::digest;
use tokio::{io::AsyncWriteExt, process::Command};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{config::Backoff, reporter::Reporter};

/// Larger programs are refused.
const LARGEST: Bytes = Bytes::mib(4096);
/// How long the new program may take to show that it works.
const TRY_WITHIN: Duration = Duration::from_secs(60);
/// Bytes hashed at a time.
const CHUNK: usize = 256 << 10;

/// The program that this process is.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    sha256: String,
    check: Vec<OsString>,
}

impl Program {
    /// A program with its place, the SHA-256 of its file in hexadecimal, and the arguments with which another one must end
    /// well before it takes that place.
    #[must_use]
    pub fn new(path: PathBuf, sha256: String, check: Vec<OsString>) -> Self {
        Self { path, sha256, check }
    }

    /// That of this process.
    pub async fn of_this_process(check: Vec<OsString>) -> Result<Self> {
        let unreadable = |error: io::Error| Error::internal("The agent's own program cannot be read", error);
        let path = std::env::current_exe().map_err(unreadable)?;
        let sha256 = tokio::task::spawn_blocking(own_checksum).await.map_err(io::Error::other).flatten();
        Ok(Self::new(path, sha256.map_err(unreadable)?, check))
    }

    /// SHA-256 of its file, in hexadecimal.
    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Where it is, and whatever has taken its place.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn own_checksum() -> io::Result<String> {
    // What runs, even if its file was replaced meanwhile.
    let mut file = std::fs::File::open("/proc/self/exe")?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = file.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else { break };
        context.update(chunk);
    }
    Ok(hex::encode(context.finish()))
}

/// What is being done about the program that the agent should be.
pub(crate) struct Upgrades {
    own: Option<Program>,
    client: Client,
    retry: Backoff,
    reporter: Arc<Reporter>,
    state: Mutex<State>,
    /// Cancelled when another program has taken this one's place.
    pub(crate) replaced: CancellationToken,
}

#[derive(Default)]
struct State {
    offered: Option<AgentProgram>,
    work: Option<AbortOnDropHandle<()>>,
    failure: Option<Error>,
}

impl Upgrades {
    pub(crate) fn new(own: Option<Program>, client: Client, retry: Backoff, reporter: Arc<Reporter>) -> Arc<Self> {
        let replaced = CancellationToken::new();
        Arc::new(Self { own, client, retry, reporter, state: Mutex::default(), replaced })
    }

    /// Takes in what the agent should be.
    pub(crate) fn apply(self: &Arc<Self>, offered: Option<AgentProgram>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.offered == offered {
            return;
        }
        *state = State { offered: offered.clone(), ..State::default() };
        let (Some(own), Some(offered)) = (self.own.clone(), offered) else { return };
        if own.sha256 == offered.sha256 {
            return;
        }
        // Held weakly, so that an agent that has ended leaves nothing behind.
        let upgrades = Arc::downgrade(self);
        let (client, retry) = (self.client.clone(), self.retry);
        state.work = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let outcome = take_up(&own, &client, retry, &offered).await;
            let Some(upgrades) = upgrades.upgrade() else { return };
            match outcome {
                Ok(()) => {
                    tracing::info!(sha256 = offered.sha256, "another program takes this one's place");
                    upgrades.replaced.cancel();
                }
                Err(error) => {
                    tracing::warn!(error = %error.chain(), "the program that was offered is not taken up");
                    upgrades.state.lock().unwrap_or_else(PoisonError::into_inner).failure = Some(error);
                    upgrades.reporter.demand();
                }
            }
        })));
    }

    /// That the program which was offered could not be taken up, if so.
    pub(crate) fn condition(&self) -> Option<Condition> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = state.failure.as_ref()?;
        let message = format!("{}: {}", failure.title, failure.detail);
        Some(Condition { code: UPGRADE_FAILED.to_owned(), message })
    }
}

async fn take_up(own: &Program, client: &Client, retry: Backoff, offered: &AgentProgram) -> Result<()> {
    if offered.size > LARGEST {
        return Err(Error::invalid("program_too_large", "The program is too large").detail(offered.size.to_string()));
    }
    let beside = |ending: &str| {
        let mut name = own.path.clone().into_os_string();
        name.push(ending);
        PathBuf::from(name)
    };
    let (fresh, old) = (beside(".new"), beside(".old"));
    let outcome = async {
        let mut failures = 0;
        while let Err(error) = fetch(client, offered, &fresh).await {
            if !error.retryable() {
                return Err(error);
            }
            failures += 1;
            tracing::debug!(error = %error.chain(), failures, "the program is fetched again");
            tokio::time::sleep(retry.after(failures)).await;
        }
        let mode = std::fs::metadata(&own.path).map_or(0o755, |metadata| metadata.mode() & 0o7777);
        std::fs::set_permissions(&fresh, Permissions::from_mode(mode)).map_err(|error| unwritable(&fresh, &error))?;
        try_out(&fresh, &own.check).await?;
        swap(&own.path, &fresh, &old).map_err(|error| unwritable(&own.path, &error))
    };
    let outcome = outcome.await;
    if outcome.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    outcome
}

async fn fetch(client: &Client, offered: &AgentProgram, to: &Path) -> Result<()> {
    let corrupt = |detail: String| {
        Error::new(ErrorKind::Unavailable, "program_corrupt", "The program did not arrive as it should be")
            .detail(detail)
    };
    let mut content = client.program(&offered.sha256).await?;
    if content.length != offered.size.0 {
        return Err(corrupt(format!("{} bytes were announced, {} expected", content.length, offered.size.0)));
    }
    let broken = |error: io::Error| unwritable(to, &error);
    let mut file = tokio::fs::File::create(to).await.map_err(broken)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut received: u64 = 0;
    while let Some(chunk) = content.body.next().await {
        let chunk = chunk.map_err(|error| corrupt(format!("its transfer broke off: {error}")))?;
        received = received.saturating_add(chunk.len() as u64);
        if received > offered.size.0 {
            return Err(corrupt(format!("more than the expected {} came", offered.size)));
        }
        context.update(&chunk);
        file.write_all(&chunk).await.map_err(broken)?;
    }
    let found = hex::encode(context.finish());
    if found != offered.sha256 {
        return Err(corrupt(format!("SHA-256 is {found}, expected {}", offered.sha256)));
    }
    file.sync_all().await.map_err(broken)
}

/// Runs the program; it must end well.
async fn try_out(program: &Path, arguments: &[OsString]) -> Result<()> {
    let refused = |detail: String| {
        Error::conflict("program_does_not_work", "The program does not work on this machine").detail(detail)
    };
    let run = async {
        loop {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
            match command.output().await {
                // Another child of this process, about to become something else, still has it open for writing.
                Err(error) if error.kind() == ExecutableFileBusy => tokio::time::sleep(Duration::from_millis(50)).await,
                outcome => return outcome,
            }
        }
    };
    let outcome = tokio::time::timeout(TRY_WITHIN, run).await;
    let output = outcome
        .map_err(|_| refused(format!("it did not end within {} s", TRY_WITHIN.as_secs())))?
        .map_err(|error| refused(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).chars().take(500).collect::<String>();
    Err(refused(format!("{}; it said: {}", output.status, said.trim())))
}

/// The new file in the old one's place, and the old one beside it. Each moment leaves a whole program in that place.
fn swap(path: &Path, fresh: &Path, old: &Path) -> io::Result<()> {
    match std::fs::remove_file(old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Its file may have been removed since it was started.
    let _ = std::fs::hard_link(path, old);
    std::fs::rename(fresh, path)?;
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Error {
    Error::conflict("program_not_replaceable", "The agent's program cannot be replaced")
        .detail(format!("{}: {error}", path.display()))
        .next("install the new program on the machine as it was installed before, and restart the agent", None)
}
