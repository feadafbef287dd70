//! What people may ask of the inside of servers, and a look at their screens.
//!
//! What changes a guest is written down with the server before it is done: who, which operation, and about what; never
//! the arguments of programs, which may hold secrets, and never a password.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use nephos_driver::{Answer, Feature, Hidden, Question};
use nephos_node_api::{Duplex, StreamPurpose, frame};
use nephos_ops::{
    Download,
    compute::{
        CommandResult, Encoding, ExecuteCommand, Guest, GuestFileSystem, GuestInterface, PullFile, PushFile,
        PushedFile, ResetServerKeys, ResetServerPassword, ServerPassword, ServerState, ShowGuest, TakeScreenshot,
    },
};
use nephos_store::Record;
use nephos_types::{Error, ErrorKind, Reference, Result, Secret, Text, Timestamp};
use ring::{digest, rand::SecureRandom};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::io::ReaderStream;

use super::{
    Server,
    actions::can,
    handlers::{unlocked, wrong_state},
    record::Touched,
};
use crate::{
    compute::{Compute, keypair::KeyPair},
    core::Handlers,
    session::Session,
};

/// How long a program may run when nobody says otherwise.
const LIMIT: Duration = Duration::from_secs(60);
/// How much of a program's output is given when nobody says otherwise.
const OUTPUT: usize = 1 << 20;
/// What the outputs of programs that callers wait for may take in one process, in units of so many bytes: 512 of the usual size,
/// 16 of the largest.
const ROOM: usize = 1024;
const UNIT: usize = 512 << 10;
/// How much of a file is under way at once.
const PIECE: usize = 1 << 20;
/// How long an answer may take that needs no program of somebody else's to end. A driver gives up earlier.
const ANSWER: Duration = Duration::from_secs(90);
/// The most characters of what is written down of an action.
const SHOWN: usize = 200;
/// Characters of a generated password; none that look alike. 64 choices would be more, but are harder to read out.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// Five bits each.
const GENERATED: usize = 20;

pub(super) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) {
    handlers.handle(compute, execute);
    handlers.handle(compute, push);
    handlers.handle(compute, pull);
    handlers.handle(compute, reset_password);
    handlers.handle(compute, reset_keys);
    handlers.handle(compute, guest);
    handlers.handle(compute, screenshot);
}

/// The server, if it runs and its driver can do this.
pub(super) fn running(
    compute: &Compute,
    session: &Session,
    reference: &Reference,
    feature: Feature,
    done: &str,
) -> Result<Arc<Record<Server>>> {
    let record = session.find::<Server>(reference)?;
    if !matches!(compute.view(&record)?.state, ServerState::Active | ServerState::Rescued) {
        return Err(wrong_state(&record, done, "it does not run".to_owned()));
    }
    can(compute, &record, feature, done)?;
    Ok(record)
}

/// The server, with written down that its inside is about to be changed.
async fn touch(
    compute: &Compute,
    session: &Session,
    reference: &Reference,
    done: &str,
    action: &str,
    about: &str,
) -> Result<Arc<Record<Server>>> {
    session
        .decide(|transaction| {
            let record = running(compute, session, reference, Feature::Ask, done)?;
            unlocked(session, &record, done)?;
            let about = about.chars().take(SHOWN).collect();
            let touched = Touched { at: Timestamp::now(), action: action.to_owned(), about };
            let edit = record.edit().modify(|server| server.touched = Some(touched));
            Ok((transaction.save(edit), record))
        })
        .await
}

/// Bounds what the answers that one process waits for may take of its memory.
pub(crate) struct Questions(Arc<Semaphore>);

impl Default for Questions {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM)))
    }
}

impl Questions {
    /// Room for the two outputs of a program, of so many bytes each, until it is dropped.
    fn room(&self, most: usize) -> Result<OwnedSemaphorePermit> {
        let wanted = u32::try_from((2 * most).div_ceil(UNIT).max(1)).unwrap_or(u32::MAX);
        Arc::clone(&self.0).try_acquire_many_owned(wanted).map_err(|_| {
            Error::new(ErrorKind::Unavailable, "too_many_questions", "Too many programs run for callers at once")
                .detail("the outputs that others wait for, and this one, would take too much memory")
                .next("try again, or have less of the output shown: --max-output-bytes", None)
        })
    }
}

/// A conversation with the inside of a server.
struct Conversation {
    stream: Box<dyn Duplex>,
}

impl Conversation {
    async fn begin(compute: &Compute, record: &Record<Server>) -> Result<Self> {
        let node = record.body.node.ok_or_else(|| wrong_state(record, "asked", "it is on no node".to_owned()))?;
        let purpose = StreamPurpose::Ask { server: record.meta.id };
        Ok(Self { stream: compute.nodes.open_stream(node, purpose).await? })
    }

    async fn ask(&mut self, question: &Question, within: Duration) -> Result<Answer> {
        question.check()?;
        let exchange = async {
            frame::write(&mut self.stream, question).await?;
            frame::read::<Result<Answer>>(&mut self.stream).await?
        };
        tokio::time::timeout(within, exchange).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "no_answer", "The server did not answer in time")
                .detail(format!("{} s", within.as_secs())))
        })
    }

    /// Asks for something that is only done or refused.
    async fn tell(&mut self, question: &Question) -> Result<()> {
        match self.ask(question, ANSWER).await? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(answer: &Answer) -> Error {
    let kind = match answer {
        Answer::Done => "done",
        Answer::Info(_) => "info",
        Answer::Ended { .. } => "ended",
        Answer::Content { .. } => "content",
    };
    Error::bug(format!("a node answered another question: {kind}"))
}

// A server that is not to be seen is not found, whatever else is wrong: so each of these looks for it first.

async fn execute(compute: Arc<Compute>, session: Session, input: ExecuteCommand) -> Result<CommandResult> {
    session.find::<Server>(&input.server)?;
    let limit = input.limit_seconds.map_or(LIMIT, |seconds| Duration::from_secs(seconds.get()));
    let most = input.max_output_bytes.map_or(OUTPUT, |most| usize::try_from(most.get()).unwrap_or(OUTPUT));
    let command: Vec<String> = input.command.as_slice().iter().map(|word| word.as_str().to_owned()).collect();
    let fed = match (&input.input, input.encoding) {
        (None, _) => vec![],
        (Some(text), Encoding::Text) => text.as_str().as_bytes().to_vec(),
        (Some(text), Encoding::Base64) => STANDARD.decode(text.as_str()).map_err(|error| {
            invalid("server.exec", "input", "format", format!("`encoding` says base64, and this is none: {error}"))
        })?,
    };
    let program = command.first().cloned().unwrap_or_default();
    let question = Question::Execute {
        command,
        environment: input.environment.0,
        input: fed,
        limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        max_output: most as u64,
    };
    question.check()?;
    let _room = compute.questions.room(most)?;
    let record = touch(&compute, &session, &input.server, "run a program in", "exec", &program).await?;
    let answer = Conversation::begin(&compute, &record).await?.ask(&question, limit + ANSWER).await;
    let show = |bytes: Vec<u8>| match input.encoding {
        Encoding::Text => String::from_utf8_lossy(&bytes).into_owned(),
        Encoding::Base64 => STANDARD.encode(&bytes),
    };
    let encoding = input.encoding;
    // The node has cut it, unless its agent is of an earlier version.
    match answer.map(|answer| answer.cut(most as u64)) {
        Ok(Answer::Ended { code, signal, output, errors, truncated }) => {
            let (stdout, stderr) = (show(output), show(errors));
            let timed_out = false;
            Ok(CommandResult { exit_code: code, signal, timed_out, stdout, stderr, encoding, truncated })
        }
        Ok(other) => Err(unexpected(&other)),
        Err(error) if error.code == "guest_command_timeout" => Ok(CommandResult {
            exit_code: None,
            signal: None,
            timed_out: true,
            stdout: String::new(),
            stderr: String::new(),
            encoding,
            truncated: false,
        }),
        Err(error) => Err(error),
    }
}

/// The refusal of one field.
fn invalid(operation: &str, field: &str, constraint: &str, detail: String) -> Error {
    Error::invalid("invalid_input", format!("The input of {operation} is not valid")).reason(field, constraint, detail)
}

async fn push(compute: Arc<Compute>, session: Session, input: PushFile) -> Result<PushedFile> {
    session.find::<Server>(&input.server)?;
    let octal = |mode: &Text<5>| {
        let bits = u32::from_str_radix(mode.as_str(), 8).ok().filter(|bits| *bits <= 0o7777);
        let well_formed = mode.as_str().bytes().all(|digit| digit.is_ascii_digit());
        bits.filter(|_| well_formed)
            .ok_or_else(|| invalid("server.push", "mode", "format", "permissions in octal, e.g. 0644".to_owned()))
    };
    let mode = input.mode.as_ref().map(octal).transpose()?;
    let path = input.path.as_str().to_owned();
    let write = |content: Vec<u8>, append: bool| Question::WriteFile { path: path.clone(), content, append, mode };
    write(vec![], false).check()?;
    let mut body = session.context().take_upload().ok_or_else(|| {
        Error::invalid("body_missing", "The file's content is missing").next("send it as the request's body", None)
    })?;
    let record = touch(&compute, &session, &input.server, "written a file in", "push", &path).await?;
    let mut conversation = Conversation::begin(&compute, &record).await?;
    let (mut size, mut sum) = (0_u64, digest::Context::new(&digest::SHA256));
    let mut piece = BytesMut::with_capacity(PIECE);
    let mut begun = false;
    let broken = |error: std::io::Error| {
        Error::invalid("upload_broke_off", "The file did not arrive whole").detail(error.to_string())
    };
    loop {
        // A sender that is slow between two pieces must not be taken for a node that is.
        let chunk = body.next().await.transpose().map_err(broken)?;
        let ended = chunk.is_none();
        let mut chunk: Bytes = chunk.unwrap_or_default();
        loop {
            let room = PIECE - piece.len();
            piece.extend_from_slice(&chunk.split_to(room.min(chunk.len())));
            if piece.len() == PIECE || (ended && (!piece.is_empty() || !begun)) {
                sum.update(&piece);
                size += piece.len() as u64;
                // Permissions are set once, before there is anything to see.
                let question = match write(piece.to_vec(), begun) {
                    Question::WriteFile { path, content, append: true, .. } => {
                        Question::WriteFile { path, content, append: true, mode: None }
                    }
                    first => first,
                };
                conversation.tell(&question).await?;
                piece.clear();
                begun = true;
            }
            if chunk.is_empty() {
                break;
            }
        }
        if ended {
            return Ok(PushedFile { path, size: nephos_types::Bytes(size), sha256: hex::encode(sum.finish()) });
        }
    }
}

async fn pull(compute: Arc<Compute>, session: Session, input: PullFile) -> Result<Download> {
    session.find::<Server>(&input.server)?;
    let path = input.path.as_str().to_owned();
    Question::ReadFile { path: path.clone(), offset: 0, max: 0 }.check()?;
    let record = running(&compute, &session, &input.server, Feature::Ask, "read a file of")?;
    let conversation = Conversation::begin(&compute, &record).await?;
    // The first piece is read before anything is answered, so that what cannot be read is refused properly.
    let mut state = Pull { conversation, path, offset: 0, ended: false };
    let first = state.piece().await?;
    let length = state.ended.then_some(first.len() as u64);
    let rest = stream::try_unfold(state, |mut state| async move {
        if state.ended {
            return Ok(None);
        }
        let piece = state.piece().await.map_err(std::io::Error::other)?;
        Ok(Some((piece, state)))
    });
    let body = stream::iter([Ok(first)]).chain(rest).try_filter(|piece| std::future::ready(!piece.is_empty()));
    Ok(Download { body: body.boxed(), length, content_type: "application/octet-stream" })
}

struct Pull {
    conversation: Conversation,
    path: String,
    offset: u64,
    ended: bool,
}

impl Pull {
    /// The next piece of the file.
    async fn piece(&mut self) -> Result<Bytes> {
        let question = Question::ReadFile { path: self.path.clone(), offset: self.offset, max: PIECE as u64 };
        match self.conversation.ask(&question, ANSWER).await? {
            Answer::Content { content, end } => {
                self.offset += content.len() as u64;
                // One that ends nowhere and gives nothing would be asked for ever.
                self.ended = end || content.is_empty();
                Ok(content.into())
            }
            other => Err(unexpected(&other)),
        }
    }
}

fn user_name(user: Option<&Text<32>>) -> String {
    user.map_or("root", Text::as_str).to_owned()
}

async fn reset_password(compute: Arc<Compute>, session: Session, input: ResetServerPassword) -> Result<ServerPassword> {
    session.find::<Server>(&input.server)?;
    let user = user_name(input.user.as_ref());
    let generated = if input.password.is_none() { Some(password()?) } else { None };
    let new = input.password.as_ref().or(generated.as_ref()).map(|secret| secret.reveal().to_owned());
    let new = new.unwrap_or_default();
    if new.contains(['\n', '\r', '\0', ':']) {
        let rule = "no line ends and no colons: they end a password in the server's own files";
        return Err(invalid("server.reset-password", "password", "format", rule.to_owned()));
    }
    let question = Question::SetPassword { user: user.clone(), password: Hidden(new) };
    question.check()?;
    let record = touch(&compute, &session, &input.server, "given a new password", "reset-password", &user).await?;
    Conversation::begin(&compute, &record).await?.tell(&question).await?;
    Ok(ServerPassword { user, password: generated })
}

/// A random password of 100 bits.
fn password() -> Result<Secret> {
    let mut bytes = [0; GENERATED];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::bug("the operating system gives no random numbers"))?;
    // 32 divides 256, so every character is as likely as any other.
    let text: String =
        bytes.iter().filter_map(|byte| ALPHABET.get(usize::from(byte % 32))).map(|c| char::from(*c)).collect();
    text.parse()
}

async fn reset_keys(compute: Arc<Compute>, session: Session, input: ResetServerKeys) -> Result<()> {
    session.find::<Server>(&input.server)?;
    if input.keypairs.is_empty() {
        return Err(invalid("server.reset-keys", "keypairs", "required", "at least one key pair".to_owned()));
    }
    let user = user_name(input.user.as_ref());
    let keypairs = input.keypairs.as_slice().iter().map(|one| session.find::<KeyPair>(one));
    let keys = keypairs.map(|one| Ok(one?.body.public_key.clone())).collect::<Result<Vec<_>>>()?;
    let question = Question::SetKeys { user: user.clone(), keys };
    question.check()?;
    let record = touch(&compute, &session, &input.server, "given new keys", "reset-keys", &user).await?;
    Conversation::begin(&compute, &record).await?.tell(&question).await
}

async fn guest(compute: Arc<Compute>, session: Session, input: ShowGuest) -> Result<Guest> {
    let record = running(&compute, &session, &input.server, Feature::Ask, "asked")?;
    let info = match Conversation::begin(&compute, &record).await?.ask(&Question::Info, ANSWER).await? {
        Answer::Info(info) => info,
        other => return Err(unexpected(&other)),
    };
    let mut addresses = BTreeMap::<String, Vec<String>>::new();
    for interface in info.interfaces.iter().filter(|interface| interface.name != "lo") {
        addresses.entry(interface.name.clone()).or_default().extend(interface.addresses.iter().cloned());
    }
    Ok(Guest {
        host_name: info.host_name,
        system: info.system,
        kernel: info.kernel,
        agent: info.agent,
        addresses,
        interfaces: info
            .interfaces
            .into_iter()
            .map(|one| GuestInterface { name: one.name, mac: one.mac, addresses: one.addresses })
            .collect(),
        file_systems: info
            .file_systems
            .into_iter()
            .map(|one| GuestFileSystem { mount: one.mount, kind: one.kind, size: one.size, used: one.used })
            .collect(),
    })
}

async fn screenshot(compute: Arc<Compute>, session: Session, input: TakeScreenshot) -> Result<Download> {
    let record = running(&compute, &session, &input.server, Feature::Display, "shown")?;
    let node = record.body.node.ok_or_else(|| wrong_state(&record, "shown", "it is on no node".to_owned()))?;
    let stream = compute.nodes.open_stream(node, StreamPurpose::Screenshot { server: record.meta.id }).await?;
    Ok(Download { body: ReaderStream::new(stream).boxed(), length: None, content_type: "image/png" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_output_is_waited_for_than_there_is_room_for() {
        let questions = Questions::default();
        let largest = 16 << 20;
        let mut held: Vec<_> = (0..ROOM * UNIT / (2 * largest)).map(|_| questions.room(largest).unwrap()).collect();
        for most in [0, largest] {
            let refused = questions.room(most).unwrap_err();
            assert_eq!((refused.kind, refused.code.as_ref()), (ErrorKind::Unavailable, "too_many_questions"));
            assert!(refused.retryable());
        }
        held.pop();
        let small: Vec<_> = (0..64).map(|_| questions.room(0).unwrap()).collect();
        assert!(questions.room(0).is_err(), "{} small ones take the room of one large one", small.len());
    }

    #[test]
    fn generated_passwords_differ_and_can_be_typed() {
        let (one, other) = (password().unwrap(), password().unwrap());
        assert_ne!(one.reveal(), other.reveal());
        assert!(one.reveal().len() == GENERATED && one.reveal().bytes().all(|byte| ALPHABET.contains(&byte)));
    }
}
