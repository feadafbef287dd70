//! The typed client of the native API.
//!
//! [`Client::call`] takes an operation's input and gives its output; streams, events and tunnels have calls of their
//! own. Everything about the wire (route, method, where a field goes) comes from the operation's [`Spec`].
//!
//! Invariants: an error answered by the cloud arrives as the same [`Error`] that was sent, request id included (see
//! [`request_id`]); not reaching the cloud is told apart (see [`is_unreachable`]); what is repeated after a lost
//! connection changes nothing twice, because creating calls carry an idempotency key.
//!
//! Must not know: the command line, where credentials come from.

mod connect;
mod error;
mod events;
mod request;
mod tunnel;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{client::legacy, rt::TokioExecutor};
use nephos_ops::{ByteStream, Download, EventStream, Operation, Spec, Tunnel};
use nephos_types::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::io::ReaderStream;

use connect::Connector;
pub(crate) use error::broken_off;
pub use error::{is_unreachable, request_id};
pub use request::Prepared;

/// The most that a JSON answer may hold; bulk data comes as a stream.
const MAX_JSON: usize = 256 << 20;
/// Pauses before a call is repeated after its connection was lost; afterwards the loss is reported.
const RETRY_PAUSES: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(400), Duration::from_secs(1)];

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What happens on the wire, for those who watch (`-vv`, `--debug`).
#[derive(Debug)]
pub enum Traffic<'a> {
    /// A request is about to be sent.
    Request {
        /// Method, URL, headers.
        request: &'a Prepared,
    },
    /// The head of an answer arrived.
    Response {
        /// Its status.
        status: StatusCode,
        /// The cloud's name for the request, if it sent one.
        request_id: Option<&'a str>,
        /// How long it took.
        elapsed: Duration,
    },
    /// The body of a JSON answer arrived.
    Answer {
        /// The JSON text.
        body: &'a [u8],
    },
}

/// Watches the wire.
pub type Observer = Arc<dyn Fn(&Traffic<'_>) + Send + Sync>;

/// A body to be sent as a stream.
pub struct Upload {
    /// The bytes.
    pub body: ByteStream,
    /// How many there are, where known.
    pub length: Option<u64>,
}

impl Upload {
    /// The content of a file.
    pub async fn file(path: &Path) -> Result<Self> {
        let refuse = |error: std::io::Error| {
            Error::invalid("unreadable_file", format!("{} cannot be read", path.display())).detail(error.to_string())
        };
        let file = tokio::fs::File::open(path).await.map_err(refuse)?;
        let length = file.metadata().await.map_err(refuse)?.len();
        Ok(Self { body: Box::pin(ReaderStream::with_capacity(file, 256 << 10)), length: Some(length) })
    }
}

/// A client of one cloud. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    base: Arc<str>,
    token: Option<Arc<str>>,
    http: legacy::Client<Connector, Body>,
    observer: Option<Observer>,
}

impl std::fmt::Debug for Client {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the cloud at `url` (`http://127.0.0.1:6780`). Nothing is sent yet.
    pub fn new(url: &str, token: Option<String>) -> Result<Self> {
        Self::build(url, token, None)
    }

    /// The same for an `https` URL, trusting exactly the certificate authorities in `authority` (PEM).
    pub fn with_authority(url: &str, token: Option<String>, authority: &[u8]) -> Result<Self> {
        Self::build(url, token, Some(authority))
    }

    fn build(url: &str, token: Option<String>, authority: Option<&[u8]>) -> Result<Self> {
        let base = request::base_url(url)?;
        if let Some(token) = &token {
            request::check_token(token)?;
        }
        let connector = Connector::new(authority, base.starts_with("https://"))?;
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .retry_canceled_requests(false)
            .build(connector);
        Ok(Self { base: base.into(), token: token.map(Into::into), http, observer: None })
    }

    /// The same client with another token; connections stay shared.
    pub fn with_token(&self, token: Option<String>) -> Result<Self> {
        if let Some(token) = &token {
            request::check_token(token)?;
        }
        Ok(Self { token: token.map(Into::into), ..self.clone() })
    }

    /// The same client with someone who watches the wire.
    #[must_use]
    pub fn observed_by(self, observer: Observer) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// The cloud's URL, without a trailing slash.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.base
    }

    /// Calls an operation that answers with JSON, with nothing, or with [`nephos_ops::Started`].
    pub async fn call<O>(&self, input: O) -> Result<O::Output>
    where
        O: Operation,
        O::Output: DeserializeOwned,
    {
        let answer = self.call_json(&O::SPEC, &to_value(&input)?).await?;
        decode(&O::SPEC, answer)
    }

    /// Calls an operation that takes a stream (`Spec::upload`). It is not repeated when the connection is lost.
    pub async fn call_upload<O>(&self, input: O, upload: Upload) -> Result<O::Output>
    where
        O: Operation,
        O::Output: DeserializeOwned,
    {
        let answer = self.upload_json(&O::SPEC, &to_value(&input)?, upload).await?;
        decode(&O::SPEC, answer)
    }

    /// Calls an operation that answers with bytes.
    pub async fn download<O: Operation<Output = Download>>(&self, input: O) -> Result<Download> {
        self.download_bytes(&O::SPEC, &to_value(&input)?).await
    }

    /// Calls an operation that answers with events. A lost connection is taken up again after the last event seen.
    pub async fn events<O: Operation<Output = EventStream>>(&self, input: O) -> Result<EventStream> {
        self.event_stream(&O::SPEC, &to_value(&input)?).await
    }

    /// Calls an operation that answers with a two-way byte stream.
    pub async fn tunnel<O: Operation<Output = Tunnel>>(&self, input: O) -> Result<Tunnel> {
        self.open_tunnel(&O::SPEC, &to_value(&input)?).await
    }

    /// The request that calling an operation would send, without its token.
    pub fn prepare(&self, spec: &Spec, input: &Value) -> Result<Prepared> {
        Prepared::of_operation(&self.base, spec, input)
    }

    /// [`Self::call`] for an operation known only by its row of the table; `Null` where it answers with nothing.
    pub async fn call_json(&self, spec: &Spec, input: &Value) -> Result<Value> {
        self.exchange_json(&self.prepare(spec, input)?).await
    }

    /// [`Self::call_upload`] for an operation known only by its row of the table.
    pub async fn upload_json(&self, spec: &Spec, input: &Value, upload: Upload) -> Result<Value> {
        let prepared = self.prepare(spec, input)?;
        let body = StreamBody::new(upload.body.map_ok(Frame::data));
        let mut request = self.request(&prepared, BodyExt::boxed_unsync(body))?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/octet-stream"));
        if let Some(length) = upload.length {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        let response = self.send(&prepared, request).await.map_err(|failure| failure.into_error(&self.base))?;
        self.json_of(accept(response).await?).await
    }

    /// [`Self::download`] for an operation known only by its row of the table.
    pub async fn download_bytes(&self, spec: &Spec, input: &Value) -> Result<Download> {
        let response = self.exchange(&self.prepare(spec, input)?).await?;
        let length = response
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok());
        let body = response.into_body().into_data_stream().map_err(std::io::Error::other);
        Ok(Download { body: Box::pin(body), length, content_type: "application/octet-stream" })
    }

    /// [`Self::events`] for an operation known only by its row of the table.
    pub async fn event_stream(&self, spec: &Spec, input: &Value) -> Result<EventStream> {
        events::open(self.clone(), self.prepare(spec, input)?).await
    }

    /// [`Self::tunnel`] for an operation known only by its row of the table.
    pub async fn open_tunnel(&self, spec: &Spec, input: &Value) -> Result<Tunnel> {
        tunnel::open(self, &self.prepare(spec, input)?).await
    }

    /// Sends any request to the cloud and gives its JSON; the way around operations (`nephos api`).
    pub async fn exchange_json(&self, prepared: &Prepared) -> Result<Value> {
        let response = self.exchange(prepared).await?;
        self.json_of(response).await
    }

    /// Sends a request, repeating it where the connection is lost and repeating does no harm.
    async fn exchange(&self, prepared: &Prepared) -> Result<Response<Incoming>> {
        let mut pauses = RETRY_PAUSES.iter();
        let mut lost_before = false;
        loop {
            let body = match &prepared.body {
                Some(bytes) => BodyExt::boxed_unsync(Full::new(bytes.clone()).map_err(|never| match never {})),
                None => BodyExt::boxed_unsync(Empty::new().map_err(|never| match never {})),
            };
            let failure = match self.send(prepared, self.request(prepared, body)?).await {
                Ok(response) => return accept(response).await,
                Err(failure) => failure,
            };
            // A cloud that cannot be reached at all is reported at once; one that was there a moment ago may be
            // restarting.
            let repeat = prepared.repeatable && (failure.lost || lost_before);
            lost_before |= failure.lost;
            match pauses.next() {
                Some(pause) if repeat => tokio::time::sleep(*pause).await,
                _ => return Err(failure.into_error(&self.base)),
            }
        }
    }

    fn request(&self, prepared: &Prepared, body: Body) -> Result<Request<Body>> {
        let mut request = Request::builder().method(prepared.method.clone()).uri(prepared.uri.clone());
        for (name, value) in &prepared.headers {
            request = request.header(name, value);
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, request::bearer(token)?);
        }
        request.body(body).map_err(|error| Error::internal("a request could not be built", error))
    }

    async fn send(&self, prepared: &Prepared, request: Request<Body>) -> Result<Response<Incoming>, error::Failure> {
        self.observe(&Traffic::Request { request: prepared });
        let started = std::time::Instant::now();
        let response = self.http.request(request).await.map_err(error::Failure::of)?;
        self.observe(&Traffic::Response {
            status: response.status(),
            request_id: error::request_id_header(response.headers()),
            elapsed: started.elapsed(),
        });
        Ok(response)
    }

    async fn json_of(&self, response: Response<Incoming>) -> Result<Value> {
        let body = body_of(response).await?;
        self.observe(&Traffic::Answer { body: &body });
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body)
            .map_err(|error| Error::internal("The cloud's answer is not JSON", error).detail("is this a Nephos URL?"))
    }

    fn observe(&self, traffic: &Traffic<'_>) {
        if let Some(observer) = &self.observer {
            observer(traffic);
        }
    }
}

/// Turns any answer outside 2xx into the error it carries.
async fn accept(response: Response<Incoming>) -> Result<Response<Incoming>> {
    if response.status().is_success() {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, 1 << 20).collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Err(error::decode(parts.status, &parts.headers, &body))
}

async fn body_of(response: Response<Incoming>) -> Result<Bytes> {
    Limited::new(response.into_body(), MAX_JSON)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(|cause| broken_off(&cause.to_string()))
}

fn to_value<O: Operation>(input: &O) -> Result<Value> {
    serde_json::to_value(input).map_err(|error| Error::internal("an input could not be rendered", error))
}

fn decode<T: DeserializeOwned>(spec: &Spec, answer: Value) -> Result<T> {
    serde_json::from_value(answer).map_err(|error| {
        Error::internal(format!("The answer of {} is not what this client expects", spec.name), error)
            .next("compare versions: nephos version", Some("nephos version".into()))
    })
}
