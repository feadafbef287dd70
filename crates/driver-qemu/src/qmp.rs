//! The QEMU Machine Protocol: one JSON value per line over a Unix socket; commands are answered in order of their ids,
//! events come in between. <https://www.qemu.org/docs/master/interop/qmp-spec.html>
//!
//! What comes from QEMU is not trusted more than what comes from a guest: messages are bounded, unknown ones ignored,
//! and nothing waits for ever.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader, Interest},
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::timeout,
};

/// The longest message that is accepted. Answers to the commands in use are a few kilobytes.
const MAX_MESSAGE: usize = 1 << 20;
/// Events that wait to be handled; when full, reading pauses.
const EVENTS: usize = 64;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    /// QEMU refused.
    #[error("QEMU refused `{command}`: {description}")]
    Refused {
        /// What it was asked.
        command: &'static str,
        /// Its words.
        description: String,
    },
    /// No answer in time.
    #[error("QEMU did not answer `{0}` in time")]
    Silent(&'static str),
    /// The connection has ended.
    #[error("the connection to QEMU has ended")]
    Closed,
    /// The other side does not speak the protocol.
    #[error("not a QMP message: {0}")]
    Protocol(String),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Something that QEMU tells unasked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    /// E.g. `SHUTDOWN`.
    pub(crate) name: String,
    /// Its data; `null` if there is none.
    pub(crate) data: Value,
}

/// One line from QEMU.
#[derive(Debug, PartialEq)]
enum Message {
    Greeting,
    Return {
        id: u64,
        value: Value,
    },
    Error {
        id: Option<u64>,
        description: String,
    },
    Event(Event),
    /// Something of a later version of the protocol.
    Other,
}

/// Reads one message. Never panics, whatever the bytes.
fn parse(line: &[u8]) -> Result<Message, QmpError> {
    #[derive(Deserialize)]
    struct Raw {
        #[serde(rename = "QMP")]
        greeting: Option<Value>,
        #[serde(default, rename = "return", deserialize_with = "present")]
        value: Option<Value>,
        error: Option<RawError>,
        event: Option<String>,
        data: Option<Value>,
        id: Option<Value>,
    }
    #[derive(Deserialize)]
    struct RawError {
        #[serde(default)]
        desc: String,
    }
    /// `"return": null` is an answer, a missing `return` is none.
    fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
        Value::deserialize(deserializer).map(Some)
    }
    let raw: Raw = serde_json::from_slice(line).map_err(|error| QmpError::Protocol(error.to_string()))?;
    let id = raw.id.as_ref().and_then(Value::as_u64);
    Ok(if let Some(name) = raw.event {
        Message::Event(Event { name, data: raw.data.unwrap_or(Value::Null) })
    } else if let Some(error) = raw.error {
        Message::Error { id, description: error.desc }
    } else if let (Some(id), Some(value)) = (id, raw.value) {
        Message::Return { id, value }
    } else if raw.greeting.is_some() {
        Message::Greeting
    } else {
        Message::Other
    })
}

/// The next line, without its end; `None` at the end of the stream. Not cancel safe.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> Result<Option<()>, QmpError> {
    line.clear();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(None);
        }
        let (taken, ended) = match available.iter().position(|byte| *byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (available.len(), false),
        };
        if line.len() + taken > MAX_MESSAGE {
            return Err(QmpError::Protocol(format!("longer than {MAX_MESSAGE} bytes")));
        }
        line.extend_from_slice(available.get(..taken).unwrap_or_default());
        reader.consume(taken);
        if ended {
            return Ok(Some(()));
        }
    }
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Value, String>>>>>;

/// A connection to one QEMU. Closed when dropped.
pub(crate) struct Client {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Waiting,
    next: AtomicU64,
    reader: AbortHandle,
}

impl Client {
    /// Greets QEMU and enters command mode, within `limit`. Events arrive on the receiver, which ends with the
    /// connection.
    pub(crate) async fn connect(
        stream: UnixStream,
        limit: Duration,
    ) -> Result<(Self, mpsc::Receiver<Event>), QmpError> {
        let (read, write) = stream.into_split();
        let mut reader = BufReader::new(read);
        let mut line = vec![];
        let greeting = async {
            match read_line(&mut reader, &mut line).await? {
                Some(()) => parse(&line),
                None => Err(QmpError::Closed),
            }
        };
        match timeout(limit, greeting).await.map_err(|_| QmpError::Silent("greeting"))?? {
            Message::Greeting => {}
            other => return Err(QmpError::Protocol(format!("a greeting was expected, not {other:?}"))),
        }
        let waiting = Waiting::default();
        let (events, received) = mpsc::channel(EVENTS);
        let answers = waiting.clone();
        let reading = tokio::spawn(async move {
            if let Err(error) = read_all(reader, &answers, events).await {
                tracing::warn!(%error, "QMP connection failed");
            }
            // Whoever waits learns that no answer will come.
            answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        });
        let client = Self {
            writer: tokio::sync::Mutex::new(write),
            waiting,
            next: AtomicU64::new(1),
            reader: reading.abort_handle(),
        };
        client.execute("qmp_capabilities", Value::Null, limit).await?;
        Ok((client, received))
    }

    /// Runs a command, within `limit`.
    pub(crate) async fn execute(
        &self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.exchange(command, arguments, None, limit).await
    }

    /// Runs a command that takes an open file, within `limit`.
    pub(crate) async fn execute_with_file(
        &self,
        command: &'static str,
        arguments: Value,
        file: BorrowedFd<'_>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.exchange(command, arguments, Some(file), limit).await
    }

    async fn exchange(
        &self,
        command: &'static str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut request = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let mut bytes = request.to_string().into_bytes();
        bytes.push(b'\n');
        let (answer, answered) = oneshot::channel();
        self.lock().insert(id, answer);
        let exchange = async {
            self.send(&bytes, file).await?;
            match answered.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(description)) => Err(QmpError::Refused { command, description }),
                Err(_) => Err(QmpError::Closed),
            }
        };
        let outcome = match self.reader.is_finished() {
            true => Err(QmpError::Closed),
            false => timeout(limit, exchange).await.unwrap_or(Err(QmpError::Silent(command))),
        };
        self.lock().remove(&id);
        outcome
    }

    async fn send(&self, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        let mut sent = 0;
        if let Some(file) = file {
            let socket: &UnixStream = writer.as_ref();
            let send = || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let files = [file];
                control.push(SendAncillaryMessage::ScmRights(&files));
                let pieces = [IoSlice::new(bytes)];
                Ok(rustix::net::sendmsg(socket, &pieces, &mut control, SendFlags::NOSIGNAL)?)
            };
            sent = socket.async_io(Interest::WRITABLE, send).await?;
        }
        writer.write_all(bytes.get(sent..).unwrap_or_default()).await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Result<Value, String>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read_all(
    mut reader: impl AsyncBufRead + Unpin,
    waiting: &Waiting,
    events: mpsc::Sender<Event>,
) -> Result<(), QmpError> {
    let mut line = vec![];
    while read_line(&mut reader, &mut line).await?.is_some() {
        let answer = |id: u64, result| {
            let waiter = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            if let Some(waiter) = waiter {
                let _ = waiter.send(result);
            }
        };
        match parse(&line)? {
            Message::Return { id, value } => answer(id, Ok(value)),
            Message::Error { id: Some(id), description } => answer(id, Err(description)),
            Message::Event(event) => {
                // Not everybody listens, but answers must go on coming.
                let _ = events.send(event).await;
            }
            Message::Error { id: None, description } => tracing::warn!(description, "QMP error without a command"),
            Message::Greeting | Message::Other => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::*;

    const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n";
    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn messages_of_qemu_are_read() {
        assert_eq!(parse(GREETING).unwrap(), Message::Greeting);
        let value = json!({ "status": "running" });
        assert_eq!(parse(br#"{"return": {"status": "running"}, "id": 3}"#).unwrap(), Message::Return { id: 3, value });
        assert_eq!(parse(br#"{"return": null, "id": 3}"#).unwrap(), Message::Return { id: 3, value: Value::Null });
        assert_eq!(
            parse(br#"{"id": 4, "error": {"class": "GenericError", "desc": "no"}}"#).unwrap(),
            Message::Error { id: Some(4), description: "no".into() }
        );
        let event = br#"{"timestamp": {"seconds": 1}, "event": "RESET", "data": {"reason": "guest-reset"}}"#;
        let data = json!({ "reason": "guest-reset" });
        assert_eq!(parse(event).unwrap(), Message::Event(Event { name: "RESET".into(), data }));
        assert_eq!(parse(br#"{"news": 1}"#).unwrap(), Message::Other);
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&line);
        }

        #[test]
        fn any_json_is_read_or_refused(
            key in "QMP|return|error|event|data|id|desc",
            other in "QMP|return|error|event|data|id|desc",
            value in "null|true|-1|18446744073709551616|1e400|\"x\"|\\[\\]|\\{\\}|\\{\"desc\":7\\}",
        ) {
            let _ = parse(format!("{{\"{key}\":{value},\"{other}\":{value}}}").as_bytes());
        }
    }

    /// A client, and the other end in QEMU's place after the greeting.
    async fn connected() -> (Client, mpsc::Receiver<Event>, UnixStream) {
        let (near, mut far) = UnixStream::pair().unwrap();
        let greeting = async {
            far.write_all(GREETING).await.unwrap();
            answer(&mut far, "qmp_capabilities").await;
        };
        let (client, ()) = tokio::join!(Client::connect(near, LIMIT), greeting);
        let (client, events) = client.unwrap();
        (client, events, far)
    }

    /// Reads a command and returns its id.
    async fn command(far: &mut UnixStream, expected: &str) -> u64 {
        let mut line = vec![];
        while line.last() != Some(&b'\n') {
            line.push(far.read_u8().await.unwrap());
        }
        let request: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(request["execute"], expected);
        request["id"].as_u64().unwrap()
    }

    async fn answer(far: &mut UnixStream, expected: &str) {
        let id = command(far, expected).await;
        far.write_all(format!("{{\"return\": {{\"for\": \"{expected}\"}}, \"id\": {id}}}\r\n").as_bytes())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn answers_find_their_commands_and_events_come_between() {
        let (client, mut events, mut far) = connected().await;
        let qemu = async {
            let first = command(&mut far, "one").await;
            far.write_all(b"{\"event\": \"STOP\"}\n").await.unwrap();
            let second = command(&mut far, "two").await;
            far.write_all(format!("{{\"return\": 2, \"id\": {second}}}\n").as_bytes()).await.unwrap();
            let refusal = format!("{{\"error\": {{\"desc\": \"no\"}}, \"id\": {first}}}\n");
            far.write_all(refusal.as_bytes()).await.unwrap();
        };
        let commands = async {
            tokio::join!(client.execute("one", Value::Null, LIMIT), client.execute("two", json!({"a": 1}), LIMIT))
        };
        let ((one, two), ()) = tokio::join!(commands, qemu);
        assert_eq!(one.unwrap_err().to_string(), "QEMU refused `one`: no");
        assert_eq!(two.unwrap(), json!(2));
        assert_eq!(events.recv().await.unwrap().name, "STOP");
    }

    #[tokio::test]
    async fn an_end_of_the_connection_is_an_answer() {
        let (client, mut events, mut far) = connected().await;
        let end = async {
            command(&mut far, "one").await;
            drop(far);
        };
        let (one, ()) = tokio::join!(client.execute("one", Value::Null, LIMIT), end);
        assert!(matches!(one, Err(QmpError::Closed | QmpError::Io(_))), "{one:?}");
        assert_eq!(events.recv().await, None);
        assert!(client.execute("two", Value::Null, LIMIT).await.is_err());
    }

    #[tokio::test]
    async fn endless_and_silent_ones_are_given_up() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let endless = async { while far.write_all(&[b'x'; 4096]).await.is_ok() {} };
        tokio::select! {
            outcome = Client::connect(near, LIMIT) => assert!(matches!(outcome, Err(QmpError::Protocol(_)))),
            () = endless => panic!("everything was taken"),
        }
        let (near, _far) = UnixStream::pair().unwrap();
        assert!(matches!(Client::connect(near, Duration::from_millis(1)).await, Err(QmpError::Silent(_))));
    }
}
