//! The agent's side: calls over pooled HTTP/1.1 connections that are dialled as needed, outbound only.
//!
//! Holds no retry policy: a call fails with [`ErrorKind::Unavailable`] or [`ErrorKind::Timeout`] when the control plane
//! cannot be reached, and the agent decides when to try again.

mod proxy;

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use nephos_types::{Error, ErrorKind, ImageId, NodeId, Result, StreamId};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

pub use self::proxy::Proxy;
use crate::{
    control::{Content, ControlPlane, Duplex},
    message::{Desired, Enrolment, EnrolmentAnswer, Hello, HelloAnswer, Renewal, Report, SnapshotHeader},
    server::{self, Peer, UPGRADE},
    tls::SERVER_NAME,
};

/// How long dialling may take, TLS included.
const DIAL_WITHIN: Duration = Duration::from_secs(10);
/// The same where there are others to try.
const DIAL_ONE_OF_SEVERAL: Duration = Duration::from_secs(4);
/// How long a call may take that the control plane answers at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// How long sending a copy of a disk may take; the control plane takes what it can, and a broken connection shows
/// earlier.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// Shorter than the time after which the server closes idle connections.
const IDLE_FOR: Duration = Duration::from_secs(30);
const ANSWER_BODY: usize = 256 << 20;
const ERROR_BODY: usize = 256 << 10;

/// How the control plane is reached.
pub trait Connector: Send + Sync + 'static {
    /// Dials.
    fn connect(&self) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Duplex>>> + Send + '_>>;

    /// How another process of the control plane is reached, at `HOST:PORT`; `None` if there can be none.
    fn to(&self, address: &str) -> Option<Arc<dyn Connector>> {
        let _ = address;
        None
    }
}

/// Over TCP and TLS, to one of several processes of the control plane: the one that was reached last, as long as it can
/// be reached.
pub struct Tls {
    addresses: Vec<String>,
    proxy: Option<Proxy>,
    current: AtomicUsize,
    config: RwLock<Arc<ClientConfig>>,
}

impl Tls {
    /// To `host:port`, or several of them with commas in between, showing and expecting the certificates of `config`.
    #[must_use]
    pub fn new(address: String, config: Arc<ClientConfig>) -> Self {
        let addresses = address.split(',').map(ToOwned::to_owned).collect();
        Self { addresses, proxy: None, current: AtomicUsize::new(0), config: RwLock::new(config) }
    }

    /// Dials through a proxy, if there is one.
    #[must_use]
    pub fn through(self, proxy: Option<Proxy>) -> Self {
        Self { proxy, ..self }
    }

    /// Uses another configuration from the next connection on, e.g. after a renewal.
    pub fn replace(&self, config: Arc<ClientConfig>) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }
}

impl Tls {
    async fn dial(&self, address: &str) -> io::Result<Box<dyn Duplex>> {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        let socket = match &self.proxy {
            None => TcpStream::connect(address).await?,
            Some(proxy) => proxy.dial(address).await?,
        };
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        let stream = TlsConnector::from(config).connect(name, socket).await?;
        Ok(Box::new(stream))
    }
}

impl Connector for Tls {
    fn to(&self, address: &str) -> Option<Arc<dyn Connector>> {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        Some(Arc::new(Self::new(address.to_owned(), config).through(self.proxy.clone())))
    }

    fn connect(&self) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Duplex>>> + Send + '_>> {
        Box::pin(async move {
            let first = self.current.load(Ordering::Relaxed);
            let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
            for number in (0..self.addresses.len()).map(|step| (first + step) % self.addresses.len()) {
                let Some(address) = self.addresses.get(number) else { continue };
                let within = if self.addresses.len() > 1 { DIAL_ONE_OF_SEVERAL } else { DIAL_WITHIN };
                let dialled = tokio::time::timeout(within, self.dial(address)).await;
                match dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    Ok(stream) => {
                        self.current.store(number, Ordering::Relaxed);
                        return Ok(stream);
                    }
                    Err(error) => {
                        failure = error;
                        // The next call begins where this one is broken off.
                        self.current.store((number + 1) % self.addresses.len(), Ordering::Relaxed);
                    }
                }
            }
            Err(failure)
        })
    }
}

/// To a control plane in this process.
pub struct Local {
    node: NodeId,
    control: Arc<dyn ControlPlane>,
    shutdown: CancellationToken,
}

impl Local {
    /// As this node. The control plane's ends of the connections close on `shutdown`.
    #[must_use]
    pub fn new(node: NodeId, control: Arc<dyn ControlPlane>, shutdown: CancellationToken) -> Self {
        Self { node, control, shutdown }
    }
}

impl Connector for Local {
    fn connect(&self) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Duplex>>> + Send + '_>> {
        Box::pin(async move {
            if self.shutdown.is_cancelled() {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
            }
            let near = server::connect_locally(Peer::local(self.node), self.control.clone(), self.shutdown.clone());
            Ok(Box::new(near) as Box<dyn Duplex>)
        })
    }
}

/// Calls to the control plane. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    pool: Arc<RwLock<Pool>>,
    dial: Dial,
}

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Pool = hyper_util::client::legacy::Client<Dial, Body>;

impl Client {
    /// Over this connector; nothing is dialled before the first call.
    #[must_use]
    pub fn new(connector: Arc<dyn Connector>) -> Self {
        let dial = Dial(connector);
        Self { pool: Arc::new(RwLock::new(Self::pool(dial.clone()))), dial }
    }

    fn pool(dial: Dial) -> Pool {
        hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_FOR)
            .pool_max_idle_per_host(2)
            .http1_max_buf_size(64 << 10)
            .build(dial)
    }

    /// The same for another process of the control plane, at `HOST:PORT`; this one if there can be no other.
    #[must_use]
    pub fn to(&self, address: &str) -> Self {
        self.dial.0.to(address).map_or_else(|| self.clone(), Self::new)
    }

    /// Forgets the connections that are open, so that the next call dials anew, e.g. with a renewed certificate.
    pub fn redial(&self) {
        *self.pool.write().unwrap_or_else(PoisonError::into_inner) = Self::pool(self.dial.clone());
    }

    /// A machine asks to become a node.
    pub async fn enrol(&self, enrolment: &Enrolment) -> Result<EnrolmentAnswer> {
        self.call(Method::POST, "enrol", Some(enrolment), ANSWER_WITHIN).await
    }

    /// The agent has started, or its inventory has changed.
    pub async fn hello(&self, hello: &Hello) -> Result<HelloAnswer> {
        self.call(Method::POST, "hello", Some(hello), ANSWER_WITHIN).await
    }

    /// What the node should run: at once if the revision differs from `after`, otherwise when it changes or after
    /// `wait`.
    pub async fn desired(&self, after: Option<u64>, wait: Duration) -> Result<Desired> {
        let wait_ms = wait.as_millis();
        let path = match after {
            Some(after) => format!("desired?after={after}&wait_ms={wait_ms}"),
            None => format!("desired?wait_ms={wait_ms}"),
        };
        self.call(Method::GET, &path, None::<&()>, wait + ANSWER_WITHIN).await
    }

    /// What the node is.
    pub async fn report(&self, report: &Report) -> Result<()> {
        self.request(Method::POST, "report", Some(report), ANSWER_WITHIN).await.map(drop)
    }

    /// A new certificate.
    pub async fn renew(&self, renewal: &Renewal) -> Result<EnrolmentAnswer> {
        self.call(Method::POST, "renew", Some(renewal), ANSWER_WITHIN).await
    }

    /// The bytes of an image.
    pub async fn image(&self, image: ImageId) -> Result<Content> {
        self.content(&format!("images/{image}")).await
    }

    /// The bytes of the program with this SHA-256.
    pub async fn program(&self, sha256: &str) -> Result<Content> {
        self.content(&format!("programs/{sha256}")).await
    }

    async fn content(&self, path: &str) -> Result<Content> {
        let response = self.request(Method::GET, path, None::<&()>, ANSWER_WITHIN).await?;
        let length = response
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| Error::bug("the control plane sent bytes without their length"))?;
        let body = response.into_body().into_data_stream().map_err(io::Error::other);
        Ok(Content { length, body: Box::pin(body) })
    }

    /// Sends a copy of a server's root disk. Returns once the control plane has it.
    pub async fn send_snapshot(&self, image: ImageId, header: SnapshotHeader, content: Content) -> Result<()> {
        let format = serde_json::to_value(header.format)
            .map_err(|error| Error::internal("A disk format cannot be named", error))?;
        let format = format.as_str().unwrap_or_default();
        let path = format!("snapshots/{image}?format={format}&frozen={}", header.frozen);
        let mut request = self.build(Method::PUT, &path, None::<&()>)?;
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(content.length));
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        *request.body_mut() = StreamBody::new(content.body.map_ok(Frame::data)).boxed_unsync();
        self.send(request, SNAPSHOT_WITHIN).await.map(drop)
    }

    /// Dials a stream that somebody waits for.
    pub async fn open_stream(&self, stream: StreamId) -> Result<Box<dyn Duplex>> {
        let mut request = self.build(Method::POST, &format!("streams/{stream}"), None::<&()>)?;
        request.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(UPGRADE));
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        let response = self.send(request, ANSWER_WITHIN).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::bug("the control plane answered an upgrade with something else"));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(unreachable)?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }

    /// Says why a stream that somebody waits for cannot be opened.
    pub async fn refuse_stream(&self, stream: StreamId, error: &Error) -> Result<()> {
        self.request(Method::POST, &format!("streams/{stream}/refused"), Some(error), ANSWER_WITHIN).await.map(drop)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        within: Duration,
    ) -> Result<T> {
        let response = self.request(method, path, body, within).await?;
        let body = collect(response, ANSWER_BODY, within).await?;
        serde_json::from_slice(&body)
            .map_err(|error| Error::internal("The control plane's answer cannot be read", error))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        within: Duration,
    ) -> Result<Response<Incoming>> {
        self.send(self.build(method, path, body)?, within).await
    }

    fn build(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Request<Body>> {
        let text = match body {
            Some(body) => serde_json::to_vec(body)
                .map_err(|error| Error::internal("A message to the control plane could not be written", error))?,
            None => Vec::new(),
        };
        // The connector decides where this goes; the authority only keys the pool of connections.
        let uri: Uri = format!("http://control/node/v1/{path}")
            .parse()
            .map_err(|error| Error::internal("A message to the control plane could not be addressed", error))?;
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(request)
    }

    async fn send(&self, request: Request<Body>, within: Duration) -> Result<Response<Incoming>> {
        let pool = self.pool.read().unwrap_or_else(PoisonError::into_inner).clone();
        let response = tokio::time::timeout(within, pool.request(request))
            .await
            .map_err(|_| {
                Error::new(ErrorKind::Timeout, "control_plane_silent", "The control plane does not answer")
                    .detail(format!("waited {} s", within.as_secs()))
            })?
            .map_err(unreachable)?;
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status();
        let body = collect(response, ERROR_BODY, ANSWER_WITHIN).await?;
        Err(serde_json::from_slice::<Error>(&body)
            .unwrap_or_else(|_| Error::bug(format!("the control plane answered {status} without saying why"))))
    }
}

async fn collect(response: Response<Incoming>, limit: usize, within: Duration) -> Result<Bytes> {
    let body = tokio::time::timeout(within, Limited::new(response.into_body(), limit).collect())
        .await
        .map_err(|_| Error::new(ErrorKind::Timeout, "control_plane_silent", "The control plane's answer got stuck"))?;
    body.map(http_body_util::Collected::to_bytes).map_err(|error| {
        Error::new(ErrorKind::Unavailable, "control_plane_unreachable", "The control plane's answer broke off")
            .detail(error.to_string())
    })
}

fn unreachable(error: impl std::error::Error) -> Error {
    // hyper's own text says little ("client error (Connect)"); the innermost cause says what to look at.
    let mut innermost: &dyn std::error::Error = &error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    Error::new(ErrorKind::Unavailable, "control_plane_unreachable", "The control plane cannot be reached")
        .detail(innermost.to_string())
}

/// A [`Connector`] as hyper's client wants it.
#[derive(Clone)]
struct Dial(Arc<dyn Connector>);

impl tower_service::Service<Uri> for Dial {
    type Response = Dialled;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Dialled>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.0.clone();
        Box::pin(async move { Ok(Dialled(TokioIo::new(Stream(connector.connect().await?)))) })
    }
}

/// A connection as hyper's client wants it.
struct Dialled(TokioIo<Stream>);

impl Connection for Dialled {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Dialled {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A boxed duplex, sized.
struct Stream(Box<dyn Duplex>);

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
