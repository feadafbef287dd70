//! Questions to the inside of a guest, in the words of its agent.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nephos_driver::{Answer, GuestFileSystem, GuestInfo, GuestInterface, MAX_CONTENT, Question};
use nephos_types::{Bytes, Error, ErrorKind};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::agent::{ANSWER_LIMIT, Agent, AgentError, Conversation, plain};

/// How much of a file goes in one message.
const PIECE: usize = 256 << 10;
/// The longest name that a guest may have for anything.
const MAX_NAME: usize = 256;
/// The most interfaces, addresses of one, and file systems that a guest may have.
const MAX_INTERFACES: usize = 64;
/// How often a program is asked after, at most and at least.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Where programs are looked for when an environment is given.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Asks a guest.
pub(crate) async fn ask(agent: &Agent, question: &Question) -> Result<Answer, Error> {
    let missing = |error: AgentError| error.about(agent.guest());
    match question {
        Question::Info => Ok(Answer::Info(info(&mut agent.talk().await.map_err(missing)?).await)),
        Question::Execute { command, environment, input, limit_ms, max_output } => {
            let limit = Duration::from_millis(*limit_ms);
            Ok(execute(agent, command, environment, input, limit).await?.cut(*max_output))
        }
        Question::ReadFile { path, offset, max } => {
            let mut talk = agent.talk().await.map_err(missing)?;
            let file = open(&mut talk, path, "r").await.map_err(|error| absent(error, path).unwrap_or_else(missing))?;
            let content = read(&mut talk, file, *offset, *max).await;
            close(&mut talk, file).await;
            let (content, end) = content.map_err(missing)?;
            Ok(Answer::Content { content, end })
        }
        Question::WriteFile { path, content, append, mode } => {
            let mut talk = agent.talk().await.map_err(missing)?;
            let how = if *append { "a" } else { "w" };
            let file = open(&mut talk, path, how).await.map_err(|error| absent(error, path).unwrap_or_else(missing))?;
            let written = async {
                if let Some(mode) = mode {
                    // Before there is anything to see.
                    change_mode(&mut talk, path, *mode).await?;
                }
                write(&mut talk, file, content).await
            };
            let written = written.await;
            close(&mut talk, file).await;
            written.map_err(missing)?;
            Ok(Answer::Done)
        }
        Question::SetPassword { user, password } => {
            let password = STANDARD.encode(&password.0);
            let arguments = json!({ "username": user, "password": password, "crypted": false });
            tell(agent, "guest-set-user-password", arguments).await
        }
        Question::SetKeys { user, keys } => {
            let arguments = json!({ "username": user, "keys": keys, "reset": true });
            tell(agent, "guest-ssh-add-authorized-keys", arguments).await
        }
    }
}

async fn tell(agent: &Agent, command: &'static str, arguments: Value) -> Result<Answer, Error> {
    let told = async { agent.talk().await?.run(command, arguments, ANSWER_LIMIT).await };
    told.await.map(|_| Answer::Done).map_err(|error| error.about(agent.guest()))
}

/// Asks for something that has this form.
async fn get<T: DeserializeOwned>(
    talk: &mut Conversation,
    command: &'static str,
    arguments: Value,
) -> Result<T, AgentError> {
    let answer = talk.run(command, arguments, ANSWER_LIMIT).await?;
    serde_json::from_value(answer).map_err(|error| AgentError::Nonsense(plain(&error.to_string(), MAX_NAME)))
}

/// What a guest says of itself; what it does not say is left out.
async fn info(talk: &mut Conversation) -> GuestInfo {
    #[derive(Deserialize)]
    struct Agent {
        version: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Host {
        host_name: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct System {
        pretty_name: Option<String>,
        name: Option<String>,
        kernel_release: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Interface {
        name: String,
        hardware_address: Option<String>,
        #[serde(default)]
        ip_addresses: Vec<Address>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Address {
        ip_address: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct FileSystem {
        mountpoint: String,
        r#type: Option<String>,
        used_bytes: Option<u64>,
        total_bytes: Option<u64>,
    }
    let short = |text: String| plain(&text, MAX_NAME);
    let agent = get::<Agent>(talk, "guest-info", Value::Null).await.ok();
    let host = get::<Host>(talk, "guest-get-host-name", Value::Null).await.ok();
    let system = get::<System>(talk, "guest-get-osinfo", Value::Null).await.ok();
    let (pretty, kernel) = system.map(|s| (s.pretty_name.or(s.name), s.kernel_release)).unwrap_or_default();
    let interfaces = get::<Vec<Interface>>(talk, "guest-network-get-interfaces", Value::Null).await.unwrap_or_default();
    let file_systems = get::<Vec<FileSystem>>(talk, "guest-get-fsinfo", Value::Null).await.unwrap_or_default();
    GuestInfo {
        host_name: host.map(|host| short(host.host_name)),
        system: pretty.map(short),
        kernel: kernel.map(short),
        agent: agent.map(|agent| short(agent.version)),
        interfaces: interfaces
            .into_iter()
            .take(MAX_INTERFACES)
            .map(|interface| GuestInterface {
                name: short(interface.name),
                mac: interface.hardware_address.map(short),
                addresses: interface
                    .ip_addresses
                    .into_iter()
                    .take(MAX_INTERFACES)
                    .map(|address| short(address.ip_address))
                    .collect(),
            })
            .collect(),
        file_systems: file_systems
            .into_iter()
            .take(MAX_INTERFACES)
            .map(|system| GuestFileSystem {
                mount: short(system.mountpoint),
                kind: system.r#type.map(short),
                size: system.total_bytes.map(Bytes),
                used: system.used_bytes.map(Bytes),
            })
            .collect(),
    }
}

#[derive(Deserialize)]
struct Started {
    pid: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    exited: bool,
    exitcode: Option<i32>,
    signal: Option<i32>,
    #[serde(default)]
    out_data: String,
    #[serde(default)]
    err_data: String,
    #[serde(default)]
    out_truncated: bool,
    #[serde(default)]
    err_truncated: bool,
}

async fn begin(
    talk: &mut Conversation,
    command: &[String],
    environment: &BTreeMap<String, String>,
    input: &[u8],
) -> Result<i64, AgentError> {
    let (program, arguments) = command.split_first().ok_or_else(|| AgentError::Refused("no program".to_owned()))?;
    let mut request = json!({ "path": program, "arg": arguments, "capture-output": true });
    if !environment.is_empty() {
        // What is given takes the place of the agent's own environment.
        let path = (!environment.contains_key("PATH")).then(|| format!("PATH={PATH}"));
        let all = environment.iter().map(|(name, value)| format!("{name}={value}")).chain(path);
        request["env"] = all.collect::<Vec<_>>().into();
    }
    if !input.is_empty() {
        request["input-data"] = STANDARD.encode(input).into();
    }
    Ok(get::<Started>(talk, "guest-exec", request).await?.pid)
}

async fn execute(
    agent: &Agent,
    command: &[String],
    environment: &BTreeMap<String, String>,
    input: &[u8],
    limit: Duration,
) -> Result<Answer, Error> {
    let deadline = Instant::now() + limit;
    let missing = |error: AgentError| error.about(agent.guest());
    let mut talk = agent.talk().await.map_err(missing)?;
    let begun = begin(&mut talk, command, environment, input).await;
    let pid = begun.map_err(|error| match &error {
        AgentError::Refused(why) if why.contains("Failed to execute child process") => {
            Error::new(ErrorKind::NotFound, "guest_program_not_found", "The server has no such program")
                .detail(why.clone())
        }
        _ => missing(error),
    })?;
    let (mut pause, longest) = LOOK;
    loop {
        let status: Status = get(&mut talk, "guest-exec-status", json!({ "pid": pid })).await.map_err(missing)?;
        if status.exited {
            return ended(status).map_err(missing);
        }
        if Instant::now() >= deadline {
            let kill = ["kill", "-9", &pid.to_string()].map(str::to_owned);
            let _ = begin(&mut talk, &kill, &BTreeMap::new(), &[]).await;
            return Err(Error::new(
                ErrorKind::Timeout,
                "guest_command_timeout",
                "The program in the server did not end",
            )
            .detail(format!("it was given up after {limit:?}")));
        }
        // Others may ask meanwhile.
        drop(talk);
        sleep(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
        pause = (pause * 2).min(longest);
        talk = agent.talk().await.map_err(missing)?;
    }
}

fn ended(status: Status) -> Result<Answer, AgentError> {
    let truncated = status.out_truncated || status.err_truncated;
    let (output, more_output) = bounded(decode(&status.out_data)?);
    let (errors, more_errors) = bounded(decode(&status.err_data)?);
    let truncated = truncated || more_output || more_errors;
    Ok(Answer::Ended { code: status.exitcode, signal: status.signal, output, errors, truncated })
}

fn bounded(mut bytes: Vec<u8>) -> (Vec<u8>, bool) {
    let more = bytes.len() > MAX_CONTENT;
    bytes.truncate(MAX_CONTENT);
    (bytes, more)
}

fn decode(text: &str) -> Result<Vec<u8>, AgentError> {
    STANDARD.decode(text).map_err(|error| AgentError::Nonsense(error.to_string()))
}

/// The error for a file that is not there, if that is what was meant.
fn absent(error: AgentError, path: &str) -> Result<Error, AgentError> {
    match &error {
        AgentError::Refused(why) if why.contains("No such file or directory") => {
            Ok(Error::new(ErrorKind::NotFound, "guest_file_not_found", "No such file in the server")
                .detail(plain(path, MAX_NAME)))
        }
        _ => Err(error),
    }
}

async fn open(talk: &mut Conversation, path: &str, mode: &str) -> Result<i64, AgentError> {
    get(talk, "guest-file-open", json!({ "path": path, "mode": mode })).await
}

async fn close(talk: &mut Conversation, file: i64) {
    if let Err(error) = talk.run("guest-file-close", json!({ "handle": file }), ANSWER_LIMIT).await {
        tracing::debug!(%error, "a file in a guest was not closed");
    }
}

async fn read(talk: &mut Conversation, file: i64, offset: u64, max: u64) -> Result<(Vec<u8>, bool), AgentError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Piece {
        count: u64,
        #[serde(default)]
        buf_b64: String,
        eof: bool,
    }
    if offset > 0 {
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        talk.run("guest-file-seek", json!({ "handle": file, "offset": offset, "whence": "set" }), ANSWER_LIMIT).await?;
    }
    let most = usize::try_from(max).unwrap_or(MAX_CONTENT).min(MAX_CONTENT);
    let mut content = vec![];
    loop {
        // One byte more than is wanted shows whether there is more.
        let wanted = (most + 1 - content.len()).min(PIECE);
        let piece: Piece = get(talk, "guest-file-read", json!({ "handle": file, "count": wanted })).await?;
        let bytes = decode(&piece.buf_b64)?;
        if bytes.len() > wanted || bytes.len() as u64 != piece.count {
            return Err(AgentError::Nonsense("more bytes than were asked for".to_owned()));
        }
        let nothing = bytes.is_empty();
        content.extend(bytes);
        if content.len() > most {
            content.truncate(most);
            return Ok((content, false));
        }
        if piece.eof || nothing {
            return Ok((content, true));
        }
    }
}

async fn write(talk: &mut Conversation, file: i64, content: &[u8]) -> Result<(), AgentError> {
    #[derive(Deserialize)]
    struct Written {
        count: usize,
    }
    let mut rest = content;
    while !rest.is_empty() {
        let piece = rest.get(..PIECE.min(rest.len())).unwrap_or_default();
        let arguments = json!({ "handle": file, "buf-b64": STANDARD.encode(piece) });
        let written: Written = get(talk, "guest-file-write", arguments).await?;
        if !(1..=piece.len()).contains(&written.count) {
            return Err(AgentError::Nonsense("a piece of the file was not written".to_owned()));
        }
        rest = rest.get(written.count..).unwrap_or_default();
    }
    talk.run("guest-file-flush", json!({ "handle": file }), ANSWER_LIMIT).await.map(drop)
}

async fn change_mode(talk: &mut Conversation, path: &str, mode: u32) -> Result<(), AgentError> {
    let command = ["chmod".to_owned(), format!("{:o}", mode & 0o7777), path.to_owned()];
    let pid = begin(talk, &command, &BTreeMap::new(), &[]).await?;
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        let status: Status = get(talk, "guest-exec-status", json!({ "pid": pid })).await?;
        match status.exitcode {
            _ if !status.exited && Instant::now() > deadline => {
                return Err(AgentError::Missing("chmod does not end".to_owned()));
            }
            _ if !status.exited => sleep(LOOK.0).await,
            Some(0) => return Ok(()),
            _ => return Err(AgentError::Refused("the permissions of the file cannot be set".to_owned())),
        }
    }
}
