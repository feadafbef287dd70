//! Calling an operation: who calls, the handle to the core, and what comes back.

use std::{
    any::{Any, TypeId},
    borrow::Cow,
    collections::BTreeSet,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::Stream;
use nephos_types::{
    ApplicationCredentialId, DomainId, Error, Name, ProjectId, RequestId, Result, RevocationId, Timestamp, UserId,
    WorkflowId,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::operation::{Operation, Role};

/// A stream of body bytes.
pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// What a token is good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Scope {
    /// Only for asking for a scoped token.
    Unscoped,
    /// One project.
    Project {
        /// The project.
        id: ProjectId,
        /// Its name.
        name: Name,
        /// The domain that owns it.
        domain: DomainId,
    },
    /// One domain.
    Domain {
        /// The domain.
        id: DomainId,
        /// Its name.
        name: Name,
    },
    /// The cloud as a whole.
    System,
}

/// Who somebody proved to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The user's name.
    pub user_name: Name,
    /// The domain that owns the user.
    pub user_domain: DomainId,
    /// What the token is good for.
    pub scope: Scope,
    /// Names of the roles in that scope, implied ones included.
    pub roles: BTreeSet<String>,
    /// When the token was issued.
    pub issued_at: Timestamp,
    /// When the token ends.
    pub expires_at: Timestamp,
    /// How the identity was proved.
    #[serde(default)]
    pub login: Login,
}

/// How somebody proved an identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Login {
    /// The token's own id; its audit id in Keystone's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<RevocationId>,
    /// The token that this one was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<RevocationId>,
    /// Keystone's words for the ways: `password`, `token`, `application_credential`.
    #[serde(default)]
    pub methods: BTreeSet<String>,
    /// The application credential that was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_credential: Option<ApplicationCredentialId>,
    /// Logged in by an application credential that may not make or delete credentials.
    #[serde(default)]
    pub restricted: bool,
}

impl Identity {
    /// Whether a role is held in the token's scope.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(role.name())
    }

    /// The project the token is scoped to.
    #[must_use]
    pub fn project(&self) -> Option<ProjectId> {
        match &self.scope {
            Scope::Project { id, .. } => Some(*id),
            _ => None,
        }
    }
}

/// Where a request came from and who made it.
#[derive(Clone, Debug)]
pub struct Caller {
    /// `None` for what may be called without logging in.
    pub identity: Option<Arc<Identity>>,
    /// The peer's address, for audit and throttling.
    pub address: String,
    /// The front end: `rest`, `xmlrpc`, `internal`, …
    pub front_end: &'static str,
}

/// What a caller shows to prove an identity.
#[derive(Clone)]
pub enum Credentials {
    /// A token issued by `token.create`.
    Token(String),
}

/// What the core offers to front ends. Implemented by `cloud`, and by fakes in tests.
pub trait Core: Send + Sync + 'static {
    /// Checks credentials and says whose they are.
    fn identify<'a>(
        &'a self,
        credentials: Credentials,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<Identity>>> + Send + 'a>>;

    /// Calls the handler for the operation whose input type is `operation`. The core checks the permission, keeps
    /// audit and idempotency; both boxes hold exactly the types of the operation.
    fn call(
        &self,
        operation: TypeId,
        context: Context,
        input: Box<dyn Any + Send>,
    ) -> Pin<Box<dyn Future<Output = Result<Box<dyn Any + Send>>> + Send + '_>>;
}

/// The handle by which front ends reach the core.
#[derive(Clone)]
pub struct Cloud(Arc<dyn Core>);

impl Cloud {
    /// A handle to this core.
    pub fn new(core: Arc<dyn Core>) -> Self {
        Self(core)
    }

    /// Checks credentials and says whose they are.
    pub async fn identify(&self, credentials: Credentials) -> Result<Arc<Identity>> {
        self.0.identify(credentials).await
    }

    /// A context for one request.
    #[must_use]
    pub fn context(&self, caller: Caller) -> Context {
        Context {
            request: RequestId::new(),
            caller: Arc::new(caller),
            idempotency_key: None,
            origin: None,
            cloud: self.clone(),
            upload: Arc::default(),
        }
    }
}

/// One request: who asks, its id, and the handle to call with.
#[derive(Clone)]
pub struct Context {
    /// Appears in logs, audit and error answers.
    pub request: RequestId,
    /// Who asks.
    pub caller: Arc<Caller>,
    /// Makes a creating call repeatable: the same key and input give the first call's result. At most 255 characters.
    pub idempotency_key: Option<String>,
    /// By what URL the caller reached the cloud, without a path, e.g. `https://cloud.example:6780`; as the caller says, so
    /// good for answers to this caller and for nothing else.
    pub origin: Option<String>,
    cloud: Cloud,
    upload: Arc<Mutex<Option<ByteStream>>>,
}

impl Context {
    /// Calls an operation.
    pub async fn call<O: Operation>(&self, input: O) -> Result<O::Output> {
        let output = self.cloud.0.call(TypeId::of::<O>(), self.clone(), Box::new(input)).await?;
        output
            .downcast::<O::Output>()
            .map(|output| *output)
            .map_err(|_| Error::bug(format!("the handler of {} answered with another operation's type", O::SPEC.name)))
    }

    /// The handle itself.
    #[must_use]
    pub fn cloud(&self) -> &Cloud {
        &self.cloud
    }

    /// Attaches the request's body, for operations that take a stream.
    pub fn set_upload(&self, body: ByteStream) {
        *self.upload.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    /// Takes the request's body; `None` if there was none or it was taken before.
    #[must_use]
    pub fn take_upload(&self) -> Option<ByteStream> {
        self.upload.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The answer of an operation that takes time: the resource as it is now, and the workflow that goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Started<T> {
    /// The workflow; follow it with `workflow.show` or `workflow.watch`.
    pub workflow: WorkflowId,
    /// The resource as the request left it.
    pub resource: T,
}

/// Bytes going out.
pub struct Download {
    /// The stream.
    pub body: ByteStream,
    /// Its length, where known.
    pub length: Option<u64>,
    /// Its media type.
    pub content_type: &'static str,
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Resume after this with `Last-Event-ID`.
    pub id: Option<String>,
    /// The event's name.
    pub name: Cow<'static, str>,
    /// JSON text.
    pub data: String,
}

/// Server-sent events going out until the client leaves or the stream ends.
pub struct EventStream(pub Pin<Box<dyn Stream<Item = Result<Event>> + Send>>);

/// Both directions of a byte stream.
pub trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// A two-way byte stream, e.g. a serial console; over HTTP a WebSocket with binary frames.
pub struct Tunnel(pub Box<dyn Duplex>);

/// What kind of answer an operation gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    /// A JSON value. HTTP 200.
    Json,
    /// JSON of a [`Started`]. HTTP 202.
    Started,
    /// Nothing. HTTP 204.
    Nothing,
    /// A byte stream. HTTP 200.
    Download,
    /// Server-sent events. HTTP 200.
    Events,
    /// A WebSocket. HTTP 101.
    Tunnel,
}

/// An operation's answer with its type erased.
pub enum Answer {
    /// JSON text.
    Json(Vec<u8>),
    /// Nothing to say.
    Nothing,
    /// A byte stream.
    Download(Download),
    /// Events.
    Events(EventStream),
    /// A two-way byte stream.
    Tunnel(Tunnel),
}

/// What an operation may answer with.
pub trait Reply: Send + 'static {
    /// Which kind this is.
    const KIND: AnswerKind;
    /// The schema of its JSON, if it has any.
    fn schema(generator: &mut SchemaGenerator) -> Option<Schema>;
    /// Erases the type.
    fn into_answer(self) -> Result<Answer>;
}

fn to_json<T: Serialize>(value: &T) -> Result<Answer> {
    serde_json::to_vec(value)
        .map(Answer::Json)
        .map_err(|error| Error::internal("an answer could not be rendered", error))
}

impl Reply for () {
    const KIND: AnswerKind = AnswerKind::Nothing;
    fn schema(_: &mut SchemaGenerator) -> Option<Schema> {
        None
    }
    fn into_answer(self) -> Result<Answer> {
        Ok(Answer::Nothing)
    }
}

impl<T: Serialize + JsonSchema + Send + 'static> Reply for Started<T> {
    const KIND: AnswerKind = AnswerKind::Started;
    fn schema(generator: &mut SchemaGenerator) -> Option<Schema> {
        Some(generator.subschema_for::<Self>())
    }
    fn into_answer(self) -> Result<Answer> {
        to_json(&self)
    }
}

/// Marks a resource view, or another plain JSON answer.
pub trait View: Serialize + JsonSchema + Send + 'static {}

impl<T: View> View for nephos_types::Page<T> {}
impl<T: View> View for Vec<T> {}

impl<T: View> Reply for T {
    const KIND: AnswerKind = AnswerKind::Json;
    fn schema(generator: &mut SchemaGenerator) -> Option<Schema> {
        Some(generator.subschema_for::<Self>())
    }
    fn into_answer(self) -> Result<Answer> {
        to_json(&self)
    }
}

macro_rules! stream_reply {
    ($type:ident, $kind:ident) => {
        impl Reply for $type {
            const KIND: AnswerKind = AnswerKind::$kind;
            fn schema(_: &mut SchemaGenerator) -> Option<Schema> {
                None
            }
            fn into_answer(self) -> Result<Answer> {
                Ok(Answer::$kind(self))
            }
        }
    };
}

stream_reply!(Download, Download);
stream_reply!(EventStream, Events);
stream_reply!(Tunnel, Tunnel);
