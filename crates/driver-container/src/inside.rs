//! Questions to the inside of a container: programs by the runtime, everything else by a visitor.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nephos_driver::{Answer, MAX_CONTENT, Question, refusal};
use nephos_host::{
    files::replace,
    process::{Identity, Process},
};
use nephos_types::{Error, ErrorKind, ServerId};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::{Instant, timeout, timeout_at},
};

use crate::{bundle, folder::Folder, host::Host, image::DEFAULT_PATH, keeper};

/// How long a visit may take.
const VISIT_LIMIT: Duration = Duration::from_secs(60);
/// How long output of a program's children is waited for when it has ended.
const AFTER: Duration = Duration::from_millis(500);

impl Host {
    /// Asks the inside of a running guest.
    pub(crate) async fn ask(&self, id: ServerId, question: &Question) -> Result<Answer, Error> {
        let guest = self.known(id)?;
        question.check()?;
        let machine = guest.machine().ok_or_else(|| refusal::not_running(id))?;
        if machine.group.is_frozen().unwrap_or(false) {
            return Err(missing("it stands still"));
        }
        let init = machine.init().ok_or_else(|| missing("it is starting"))?;
        let inside = Inside {
            keeper_program: &self.surroundings.keeper,
            runtime: &self.surroundings.runtime,
            folder: &guest.folder,
            name: bundle::name(id),
            keeper: machine.keeper().clone(),
            init,
        };
        inside.ask(question).await
    }
}

/// Whom questions are about.
struct Inside<'a> {
    keeper_program: &'a Path,
    runtime: &'a Path,
    folder: &'a Folder,
    /// The container's name.
    name: String,
    keeper: Identity,
    init: Identity,
}

impl Inside<'_> {
    async fn ask(&self, question: &Question) -> Result<Answer, Error> {
        match question {
            Question::Execute { command, environment, input, limit_ms, max_output } => {
                let answer = self.execute(command, environment, input, Duration::from_millis(*limit_ms)).await;
                Ok(answer?.cut(*max_output))
            }
            Question::Info
            | Question::ReadFile { .. }
            | Question::WriteFile { .. }
            | Question::SetPassword { .. }
            | Question::SetKeys { .. } => self.visit(question).await,
        }
    }

    async fn visit(&self, question: &Question) -> Result<Answer, Error> {
        let failed = |error: io::Error| Error::internal("The server cannot be asked", error);
        let question = serde_json::to_vec(question).map_err(|error| failed(error.into()))?;
        let init = serde_json::to_string(&self.init).map_err(|error| failed(error.into()))?;
        let mut command = Command::new(self.keeper_program);
        command.args([keeper::COMMAND, "visit", &init]).env_clear().kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut visitor = command.spawn().map_err(failed)?;
        let stdin = visitor.stdin.take();
        let asking = async {
            if let Some(mut stdin) = stdin {
                // If it ends without listening, its words say why.
                let _ = stdin.write_all(&question).await;
            }
            drop(question);
        };
        let both = async { tokio::join!(asking, visitor.wait_with_output()).1 };
        let output = match timeout(VISIT_LIMIT, both).await {
            Ok(output) => output.map_err(failed)?,
            Err(_) => return Err(Error::new(ErrorKind::Timeout, "guest_command_timeout", "The server did not answer")),
        };
        if !output.status.success() {
            return Err(missing(&String::from_utf8_lossy(&output.stderr)));
        }
        serde_json::from_slice::<Result<Answer, Error>>(&output.stdout).map_err(|error| failed(error.into()))?
    }

    async fn execute(
        &self,
        command: &[String],
        environment: &BTreeMap<String, String>,
        input: &[u8],
        limit: Duration,
    ) -> Result<Answer, Error> {
        let failed = |error: io::Error| Error::internal("A program could not be run in the server", error);
        let scratch = Scratch::new(self.folder).map_err(failed)?;
        let [process, pid, log] = ["process.json", "pid", "log"].map(|name| scratch.0.join(name));
        replace(&process, &description(command, environment)).map_err(failed)?;
        let keeper = serde_json::to_string(&self.keeper).map_err(|error| failed(error.into()))?;
        let mut runtime = Command::new(self.keeper_program);
        runtime.args([keeper::COMMAND, "execute", &keeper]).arg(self.runtime);
        runtime.arg("--root").arg(self.folder.run().join("runtime")).arg("--log").arg(&log);
        runtime.arg("exec").arg("--process").arg(&process).arg("--pid-file").arg(&pid).arg(&self.name);
        runtime.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        runtime.env_clear().current_dir(&scratch.0).kill_on_drop(true);
        let deadline = Instant::now() + limit;
        let mut child = runtime.spawn().map_err(failed)?;
        let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feeding = async {
            if let Some(stdin) = &mut stdin {
                // It need not read all of it, or anything.
                let _ = stdin.write_all(input).await;
            }
            stdin = None;
        };
        let (mut output, mut errors) = (Heard::default(), Heard::default());
        let status = {
            let hearing = async { tokio::join!(output.listen(stdout), errors.listen(stderr)) };
            tokio::pin!(feeding, hearing);
            let (mut fed, mut heard) = (false, false);
            let ending = async {
                loop {
                    tokio::select! {
                        status = child.wait() => break status,
                        () = &mut feeding, if !fed => fed = true,
                        _ = &mut hearing, if !heard => heard = true,
                    }
                }
            };
            let status = timeout_at(deadline, ending).await;
            if status.is_ok() && !heard {
                // What it has left running may hold its output open.
                let _ = timeout(AFTER, hearing).await;
            }
            status
        };
        let Ok(status) = status else {
            end(&pid).await;
            let _ = child.start_kill();
            let _ = child.wait().await;
            return Err(Error::new(ErrorKind::Timeout, "guest_command_timeout", "The program took too long")
                .detail(format!("it was given up after {limit:?}")));
        };
        let status = status.map_err(failed)?;
        if let Some(why) = not_run(&log, status) {
            let program = command.first().map(String::as_str).unwrap_or_default();
            if why.contains("no such file") || why.contains("not found") || why.contains("No such file") {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    "guest_program_not_found",
                    "The server has no such program",
                )
                .detail(program));
            }
            return Err(refused(&why));
        }
        let truncated = output.truncated || errors.truncated;
        let code = status.code();
        Ok(Answer::Ended { code, signal: None, output: output.bytes, errors: errors.bytes, truncated })
    }
}

/// What the runtime is told about a program.
fn description(command: &[String], environment: &BTreeMap<String, String>) -> serde_json::Value {
    let mut all = vec![];
    for (name, usual) in [("PATH", DEFAULT_PATH), ("HOME", "HOME=/root")] {
        if !environment.contains_key(name) {
            all.push(usual.to_owned());
        }
    }
    all.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
    json!({
        "terminal": false,
        "user": { "uid": 0, "gid": 0 },
        "args": command,
        "env": all,
        "cwd": "/",
        "capabilities": bundle::capabilities(0),
        "rlimits": bundle::limits(),
        "noNewPrivileges": true,
    })
}

/// Why the runtime could not run a program, from its log; `None` if it ran.
fn not_run(log: &Path, status: ExitStatus) -> Option<String> {
    if status.success() {
        return None;
    }
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let told = |line: &&str| !line.trim().is_empty() && !line.contains("level=warning");
    let words = text.lines().rfind(told)?;
    Some(words.chars().take(2000).collect())
}

/// Ends a program that was given up. Its runtime has not taken notice of its end yet, so its id means no other.
async fn end(pid: &Path) {
    let number = tokio::fs::read_to_string(pid).await.ok().and_then(|text| text.trim().parse().ok());
    if let Some(number) = number
        && let Ok(identity) = Identity::of(number)
        && let Ok(Some(process)) = Process::open(&identity)
        && process.kill().is_ok()
    {
        let _ = timeout(AFTER, process.ended()).await;
    }
}

/// What a program has written, up to a bound; the rest is read and forgotten, so that it is not held up.
#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Heard {
    async fn listen(&mut self, from: Option<impl AsyncRead + Unpin>) {
        let Some(mut from) = from else { return };
        let mut piece = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut piece).await {
            let room = (MAX_CONTENT / 2).saturating_sub(self.bytes.len());
            self.truncated |= count > room;
            self.bytes.extend_from_slice(piece.get(..count.min(room)).unwrap_or_default());
        }
    }
}

/// A folder for one question.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(folder: &Folder) -> io::Result<Self> {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = folder.run().join(format!("question-{}-{number}", std::process::id()));
        std::fs::DirBuilder::new().create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn refused(why: &str) -> Error {
    let why: String = why.trim().chars().take(2000).collect();
    Error::conflict("guest_refused", "The server refuses").detail(why)
}

/// Nobody in there can answer.
fn missing(why: &str) -> Error {
    let why: String = why.trim().chars().take(2000).collect();
    Error::conflict("guest_agent_missing", "Nobody inside the server answers").detail(why)
}
