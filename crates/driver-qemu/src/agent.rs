//! The line to the agent inside a guest, <https://www.qemu.org/docs/master/interop/qemu-ga-ref.html>: one JSON value a
//! line in both directions, over a socket that QEMU connects to a serial port of the guest.
//!
//! Nothing that comes out of a guest is trusted: what it says is bounded in size and in time, and what is left on the
//! line from earlier is passed over by a synchronisation before each conversation.

use std::{io, time::Duration};

use nephos_types::{Error, ServerId};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, OwnedMutexGuard},
    time::{Instant, timeout_at},
};

use crate::folder::{AGENT_SOCKET, Folder};

/// How long an agent may take to say that it is there. It needs microseconds, in a guest that is emulated on a busy
/// machine longer.
const SYNC_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to answer.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// The longest answer: 16 MiB of output and as much of errors, as base64.
const MAX_ANSWER: usize = 48 << 20;
/// How much may be left on the line from earlier.
const MAX_STALE: usize = 64 << 20;
/// What no JSON text contains: an agent forgets what it was reading, and marks where its answer begins.
const MARK: u8 = 0xff;
/// How much of an agent's own words is shown.
const SHOWN: usize = 500;

/// The line of one run of a guest.
pub(crate) struct Agent {
    id: ServerId,
    folder: Folder,
    /// Held by who speaks: QEMU serves one at a time.
    turn: std::sync::Arc<Mutex<()>>,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// Nobody answers, or not in time.
    #[error("{0}")]
    Missing(String),
    /// The agent does not do this.
    #[error("the guest's agent refuses: {0}")]
    Refused(String),
    /// It is not an agent that answers.
    #[error("the guest's agent speaks nonsense: {0}")]
    Nonsense(String),
}

impl AgentError {
    /// As a caller should know it.
    pub(crate) fn about(self, id: ServerId) -> Error {
        match self {
            Self::Missing(why) => Error::conflict("guest_agent_missing", "Nobody inside the server answers")
                .detail(format!("{id}: {why}"))
                .next("install and start qemu-guest-agent in the server; while it boots, try again", None),
            Self::Refused(why) => Error::conflict("guest_refused", "The agent inside the server refuses").detail(why),
            Self::Nonsense(why) => {
                Error::conflict("guest_agent_unusable", "What answers inside the server is not its agent").detail(why)
            }
        }
    }
}

impl From<io::Error> for AgentError {
    fn from(error: io::Error) -> Self {
        Self::Missing(error.to_string())
    }
}

impl Agent {
    pub(crate) fn new(id: ServerId, folder: Folder) -> Self {
        Self { id, folder, turn: std::sync::Arc::default() }
    }

    pub(crate) fn guest(&self) -> ServerId {
        self.id
    }

    /// Begins a conversation, as soon as it is this caller's turn.
    pub(crate) async fn talk(&self) -> Result<Conversation, AgentError> {
        let turn = self.turn.clone().lock_owned().await;
        let stream = self.folder.connect(AGENT_SOCKET).await?;
        Conversation::begin(stream, turn).await
    }
}

/// A conversation with an agent that is there.
pub(crate) struct Conversation {
    from_guest: BufReader<OwnedReadHalf>,
    to_guest: OwnedWriteHalf,
    _turn: OwnedMutexGuard<()>,
}

impl Conversation {
    async fn begin(stream: UnixStream, turn: OwnedMutexGuard<()>) -> Result<Self, AgentError> {
        let (read, to_guest) = stream.into_split();
        let mut begun = Self { from_guest: BufReader::new(read), to_guest, _turn: turn };
        let deadline = Instant::now() + SYNC_LIMIT;
        // Anything that differs from conversation to conversation; JSON's numbers are exact up to 53 bits.
        let number =
            ServerId::new().to_string().bytes().fold(0_u64, |n, byte| (n * 31 + u64::from(byte)) & 0xff_ffff_ffff);
        let mut bytes = vec![MARK];
        bytes.extend(line("guest-sync-delimited", json!({ "id": number })));
        let exchange = async {
            begun.to_guest.write_all(&bytes).await?;
            // Answers to earlier questions may come before.
            let mut stale = 0;
            loop {
                let answer = marked_line(&mut begun.from_guest, &mut stale).await?;
                if let Ok(Answer { value: Some(value), .. }) = serde_json::from_slice::<Answer>(&answer)
                    && value.as_u64() == Some(number)
                {
                    return Ok::<_, AgentError>(());
                }
            }
        };
        match timeout_at(deadline, exchange).await {
            Ok(outcome) => outcome?,
            Err(_) => return Err(AgentError::Missing(format!("no answer within {SYNC_LIMIT:?}"))),
        }
        Ok(begun)
    }

    /// Runs a command. A conversation in which one has failed for want of an answer is over.
    pub(crate) async fn run(
        &mut self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, AgentError> {
        let exchange = async {
            self.to_guest.write_all(&line(command, arguments)).await?;
            read_line(&mut self.from_guest, MAX_ANSWER).await
        };
        let answer = match timeout_at(Instant::now() + limit, exchange).await {
            Ok(answer) => answer?,
            Err(_) => return Err(AgentError::Missing(format!("no answer to `{command}` within {limit:?}"))),
        };
        let answer: Answer =
            serde_json::from_slice(&answer).map_err(|error| AgentError::Nonsense(error.to_string()))?;
        match (answer.value, answer.error) {
            (_, Some(error)) => Err(AgentError::Refused(plain(&error.desc, SHOWN))),
            (Some(value), None) => Ok(value),
            (None, None) => Err(AgentError::Nonsense(format!("neither answer nor refusal of `{command}`"))),
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default, rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    desc: String,
}

fn line(command: &str, arguments: Value) -> Vec<u8> {
    let mut request = json!({ "execute": command });
    if !arguments.is_null() {
        request["arguments"] = arguments;
    }
    let mut bytes = request.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// A guest's words, short and without what a terminal would obey.
pub(crate) fn plain(words: &str, most: usize) -> String {
    words.chars().filter(|c| !c.is_control()).take(most).collect()
}

/// The next line, without its end.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), most: usize) -> Result<Vec<u8>, AgentError> {
    let mut line = vec![];
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Err(AgentError::Missing("the line to the agent has ended".to_owned()));
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(available.len());
        if line.len() + taken > most {
            return Err(AgentError::Nonsense(format!("more than {most} bytes without an end")));
        }
        line.extend_from_slice(available.get(..taken).unwrap_or_default());
        reader.consume(end.map_or(taken, |end| end + 1));
        if end.is_some() {
            return Ok(line);
        }
    }
}

/// The next line that begins with the mark, without it; what comes before is passed over and counted.
async fn marked_line(reader: &mut (impl AsyncBufRead + Unpin), passed: &mut usize) -> Result<Vec<u8>, AgentError> {
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Err(AgentError::Missing("the line to the agent has ended".to_owned()));
        }
        let mark = available.iter().position(|byte| *byte == MARK);
        let taken = mark.map_or(available.len(), |mark| mark + 1);
        reader.consume(taken);
        *passed += taken;
        if *passed > MAX_STALE {
            return Err(AgentError::Nonsense(format!("more than {MAX_STALE} bytes before an answer")));
        }
        if mark.is_some() {
            return read_line(reader, MAX_ANSWER).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::UnixListener};

    use super::*;

    /// A guest's line, and a listener in QEMU's place.
    fn agent() -> (tempfile::TempDir, Agent, UnixListener) {
        let guests = tempfile::tempdir().unwrap();
        let folder = Folder::new(guests.path(), ServerId::new());
        folder.create(None).unwrap();
        let listener = UnixListener::bind(folder.run_path().unwrap().join(AGENT_SOCKET)).unwrap();
        (guests, Agent::new(ServerId::new(), folder), listener)
    }

    async fn question(guest: &mut UnixStream) -> Value {
        let mut line = vec![];
        loop {
            match guest.read_u8().await.unwrap() {
                MARK => line.clear(),
                b'\n' => return serde_json::from_slice(&line).unwrap(),
                byte => line.push(byte),
            }
        }
    }

    async fn in_sync(guest: &mut UnixStream) {
        let number = question(guest).await["arguments"]["id"].clone();
        guest.write_all(b"{\"return\": \"from earlier\"}\n\xff{\"return\": 7}\n").await.unwrap();
        guest.write_all(&[&[MARK], format!("{{\"return\": {number}}}\n").as_bytes()].concat()).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_left_from_earlier_is_passed_over() {
        let (_guests, agent, listener) = agent();
        let guest = async {
            let (mut guest, _) = listener.accept().await.unwrap();
            in_sync(&mut guest).await;
            assert_eq!(question(&mut guest).await, json!({ "execute": "guest-ping" }));
            guest.write_all(b"{\"return\": {\"a\": 1}}\n").await.unwrap();
            question(&mut guest).await;
            guest.write_all(b"{\"error\": {\"class\": \"X\", \"desc\": \"no\\u001b[2J\"}}\n").await.unwrap();
            question(&mut guest).await;
            guest.write_all(b"{}\n").await.unwrap();
            guest
        };
        let host = async {
            let mut talk = agent.talk().await.unwrap();
            assert_eq!(talk.run("guest-ping", Value::Null, ANSWER_LIMIT).await.unwrap(), json!({ "a": 1 }));
            let refused = talk.run("guest-x", Value::Null, ANSWER_LIMIT).await.unwrap_err();
            assert_eq!(refused.to_string(), "the guest's agent refuses: no[2J");
            let nonsense = talk.run("guest-x", Value::Null, ANSWER_LIMIT).await.unwrap_err();
            assert!(matches!(nonsense, AgentError::Nonsense(_)));
        };
        tokio::join!(host, guest);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_endless_and_vanishing_ones_are_given_up() {
        let (_guests, agent, listener) = agent();
        // Takes the connection and says nothing.
        let (silent, guest) = tokio::join!(agent.talk(), listener.accept());
        assert!(matches!(silent, Err(AgentError::Missing(_))));
        drop(guest);
        let endless = async {
            let (mut guest, _) = listener.accept().await.unwrap();
            while guest.write_all(&[b'x'; 65536]).await.is_ok() {}
        };
        let (outcome, ()) = tokio::join!(agent.talk(), endless);
        assert!(matches!(outcome, Err(AgentError::Nonsense(_) | AgentError::Missing(_))));
        let vanishing = async { drop(listener.accept().await) };
        let (outcome, ()) = tokio::join!(agent.talk(), vanishing);
        assert!(matches!(outcome, Err(AgentError::Missing(_))));
    }
}
