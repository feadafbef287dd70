//! The control plane's side: HTTP/1.1 over any byte stream, and the TLS listener that remote nodes dial.
//!
//! | route | what |
//! | --- | --- |
//! | `POST /node/v1/enrol` | token and signing request for a certificate; the only one without a certificate |
//! | `POST /node/v1/hello` | inventory |
//! | `GET /node/v1/desired?after=N&wait_ms=N` | long poll |
//! | `POST /node/v1/report` | what is so |
//! | `POST /node/v1/renew` | a new certificate; the only one open to an expired certificate |
//! | `GET /node/v1/images/{id}` | an image's bytes |
//! | `PUT /node/v1/snapshots/{image}?format=F&frozen=B` | the bytes of a copy of a disk, as an image's content |
//! | `POST /node/v1/streams/{id}` | upgrade to raw bytes |
//! | `POST /node/v1/streams/{id}/refused` | why the stream cannot be opened |

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use nephos_types::{Error, ErrorKind, NodeId, Result, StreamId};
use rustls::ServerConfig;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    control::{Content, ControlPlane},
    message::SnapshotHeader,
    tls::NodeCertificate,
};

/// The protocol named in `Upgrade` when a connection becomes a raw stream.
pub(crate) const UPGRADE: &str = "nephos-stream";
/// The longest a poll is held open.
const MAX_WAIT: Duration = Duration::from_secs(60);
const SMALL_BODY: usize = 64 << 10;
const HELLO_BODY: usize = 256 << 10;
const REPORT_BODY: usize = 16 << 20;
const HEADERS_WITHIN: Duration = Duration::from_secs(60);
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Connections whose peer has not proved to be a node.
const MAX_STRANGERS: usize = 256;

/// Who is at the other end.
#[derive(Clone, Debug)]
pub enum Peer {
    /// Somebody without a certificate.
    Stranger {
        /// Where they call from.
        address: String,
    },
    /// A node, and until when the certificate is valid that it showed.
    Node {
        /// The node.
        node: NodeId,
        /// Where it calls from.
        address: String,
        /// `None` within a process, where nothing has to be proved.
        until: Option<SystemTime>,
    },
}

impl Peer {
    /// A node in this process.
    #[must_use]
    pub fn local(node: NodeId) -> Self {
        Self::Node { node, address: "in-process".to_owned(), until: None }
    }

    fn address(&self) -> String {
        match self {
            Self::Stranger { address } | Self::Node { address, .. } => address.clone(),
        }
    }

    /// The node, if its certificate is valid now.
    fn node(&self) -> Result<NodeId> {
        match self {
            Self::Node { until: Some(until), .. } if SystemTime::now() > *until => {
                Err(Error::new(ErrorKind::Unauthenticated, "certificate_expired", "The node's certificate has expired")
                    .next("renew it: POST /node/v1/renew over a connection that shows the expired one", None))
            }
            Self::Node { node, .. } => Ok(*node),
            Self::Stranger { .. } => Err(no_certificate()),
        }
    }

    /// The node, even if its certificate has expired.
    fn node_expired_too(&self) -> Result<NodeId> {
        match self {
            Self::Node { node, .. } => Ok(*node),
            Self::Stranger { .. } => Err(no_certificate()),
        }
    }
}

fn no_certificate() -> Error {
    Error::new(ErrorKind::Unauthenticated, "no_certificate", "Only nodes may call this, with their certificate")
}

/// Listens for nodes until `shutdown`; then lets what runs come to its end for a moment.
pub async fn listen(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    control: Arc<dyn ControlPlane>,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
    loop {
        let (socket, address) = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a node's connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        // Whoever comes while too many strangers are connected waits in the listen queue.
        let Ok(permit) = strangers.clone().acquire_owned().await else { return };
        let (acceptor, control, shutdown) = (acceptor.clone(), control.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            let stream = match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(socket)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%address, %error, "handshake failed"),
                Err(_) => return tracing::debug!(%address, "no handshake in time"),
            };
            let peer = match peer_of(stream.get_ref().1.peer_certificates(), address) {
                Ok(peer) => peer,
                Err(error) => return tracing::warn!(%address, %error, "a certificate names no node"),
            };
            if matches!(peer, Peer::Node { .. }) {
                drop(permit);
                serve_connection(stream, peer, control, shutdown).await;
            } else {
                // A stranger has one thing to say.
                let _ = tokio::time::timeout(HEADERS_WITHIN, serve_connection(stream, peer, control, shutdown)).await;
                drop(permit);
            }
        });
    }
}

fn peer_of(certificates: Option<&[rustls_pki_types::CertificateDer<'_>]>, address: SocketAddr) -> Result<Peer> {
    let address = address.ip().to_string();
    match certificates.and_then(<[_]>::first) {
        None => Ok(Peer::Stranger { address }),
        Some(certificate) => {
            let certificate = NodeCertificate::parse(certificate)?;
            Ok(Peer::Node { node: certificate.node, address, until: Some(certificate.not_after) })
        }
    }
}

/// Serves one connection until the peer leaves or `shutdown`.
pub async fn serve_connection<I>(io: I, peer: Peer, control: Arc<dyn ControlPlane>, shutdown: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handler = Arc::new(Handler { peer, control, shutdown: shutdown.clone() });
    let service = hyper::service::service_fn(move |request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(handler.handle(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a node's connection ended");
    }
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

struct Handler {
    peer: Peer,
    control: Arc<dyn ControlPlane>,
    shutdown: CancellationToken,
}

impl Handler {
    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        match self.clone().route(request).await {
            Ok(response) => response,
            Err(error) => {
                if error.kind == ErrorKind::Internal {
                    tracing::error!(error = %error.chain(), "a node's request failed");
                }
                let status =
                    StatusCode::from_u16(error.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                json(status, &error).unwrap_or_else(|_| empty(status))
            }
        }
    }

    async fn route(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>> {
        let path = request.uri().path().to_owned();
        let Some(path) = path.strip_prefix("/node/v1/") else { return Err(no_route()) };
        let mut parts = path.split('/');
        let route = (request.method().clone(), parts.next().unwrap_or_default(), parts.next(), parts.next());
        if parts.next().is_some() {
            return Err(no_route());
        }
        match route {
            (Method::POST, "enrol", None, _) => {
                let enrolment = read(request, SMALL_BODY).await?;
                json(StatusCode::OK, &self.control.enrol(self.peer.address(), enrolment).await?)
            }
            (Method::POST, "renew", None, _) => {
                let node = self.peer.node_expired_too()?;
                let renewal = read(request, SMALL_BODY).await?;
                json(StatusCode::OK, &self.control.renew(node, renewal).await?)
            }
            (Method::POST, "hello", None, _) => {
                let node = self.peer.node()?;
                let hello = read(request, HELLO_BODY).await?;
                json(StatusCode::OK, &self.control.hello(node, self.peer.address(), hello).await?)
            }
            (Method::POST, "report", None, _) => {
                let node = self.peer.node()?;
                let report = read(request, REPORT_BODY).await?;
                self.control.report(node, self.peer.address(), report).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            (Method::GET, "desired", None, _) => {
                let node = self.peer.node()?;
                let (after, wait) = poll_of(request.uri().query().unwrap_or_default())?;
                let desired = tokio::select! {
                    desired = self.control.desired(node, after, wait) => desired?,
                    () = self.shutdown.cancelled() => return Err(stopping()),
                };
                json(StatusCode::OK, &desired)
            }
            (Method::GET, "images", Some(image), None) => {
                let node = self.peer.node()?;
                Ok(stream(self.control.image(node, image.parse()?).await?))
            }
            (Method::GET, "programs", Some(sha256), None) => {
                let node = self.peer.node()?;
                Ok(stream(self.control.program(node, sha256.to_owned()).await?))
            }
            (Method::PUT, "snapshots", Some(image), None) => {
                let node = self.peer.node()?;
                let image = image.parse()?;
                let header = snapshot_of(request.uri().query().unwrap_or_default())?;
                let length = request
                    .headers()
                    .get(header::CONTENT_LENGTH)
                    .and_then(|value| value.to_str().ok()?.parse().ok())
                    .ok_or_else(|| Error::invalid("length_missing", "The length of the copy is not said"))?;
                let body = Box::pin(request.into_body().into_data_stream().map_err(std::io::Error::other));
                self.control.snapshot(node, image, header, Content { length, body }).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            (Method::POST, "streams", Some(stream), None) => {
                let node = self.peer.node()?;
                let stream = stream.parse()?;
                self.upgrade(node, stream, request)
            }
            (Method::POST, "streams", Some(stream), Some("refused")) => {
                let node = self.peer.node()?;
                let stream = stream.parse()?;
                let error = read(request, SMALL_BODY).await?;
                self.control.refuse_stream(node, stream, error).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            _ => Err(no_route()),
        }
    }

    fn upgrade(self: Arc<Self>, node: NodeId, stream: StreamId, request: Request<Incoming>) -> Result<Response<Body>> {
        let asked = request.headers().get(header::UPGRADE).is_some_and(|value| value == UPGRADE);
        if !asked {
            return Err(Error::invalid("upgrade_needed", "A stream is dialled with an HTTP upgrade")
                .detail(format!("the header `Upgrade: {UPGRADE}` is missing")));
        }
        tokio::spawn(async move {
            let upgraded = match hyper::upgrade::on(request).await {
                Ok(upgraded) => TokioIo::new(upgraded),
                Err(error) => return tracing::debug!(%error, "a stream was not upgraded"),
            };
            if let Err(error) = self.control.accept_stream(node, stream, Box::new(upgraded)).await {
                tracing::debug!(%stream, %error, "a stream was not taken");
            }
        });
        let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(UPGRADE));
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        Ok(response)
    }
}

fn no_route() -> Error {
    Error::new(ErrorKind::NotFound, "no_such_route", "The node protocol has no such call")
}

fn stopping() -> Error {
    Error::new(ErrorKind::Unavailable, "stopping", "The control plane is stopping")
}

fn poll_of(query: &str) -> Result<(Option<u64>, Duration)> {
    let mut after = None;
    let mut wait = Duration::ZERO;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = || {
            value.parse::<u64>().map_err(|_| {
                Error::invalid("invalid_query", "Not a usable query").detail(format!("`{key}` is not a whole number"))
            })
        };
        match key {
            "after" => after = Some(number()?),
            "wait_ms" => wait = Duration::from_millis(number()?).min(MAX_WAIT),
            _ => {}
        }
    }
    Ok((after, wait))
}

fn snapshot_of(query: &str) -> Result<SnapshotHeader> {
    let unusable = |what: &str| Error::invalid("invalid_query", "Not a usable query").detail(what.to_owned());
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let format = value("format").ok_or_else(|| unusable("`format` is missing"))?;
    let format = serde_json::from_value(format.into()).map_err(|_| unusable("`format` is not known"))?;
    Ok(SnapshotHeader { format, frozen: value("frozen") == Some("true") })
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>, limit: usize) -> Result<T> {
    let body = Limited::new(request.into_body(), limit).collect().await.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            Error::new(ErrorKind::TooLarge, "too_large", "The message is too large")
                .detail(format!("at most {limit} bytes are accepted"))
        } else {
            Error::invalid("incomplete", "The message did not arrive whole")
        }
    })?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Error::invalid("invalid_message", "The message cannot be read").detail(error.to_string()))
}

fn stream(content: Content) -> Response<Body> {
    let body = StreamBody::new(content.body.map_ok(Frame::data));
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(content.length));
    response
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Response<Body>> {
    let text = serde_json::to_vec(value).map_err(|error| Error::internal("an answer could not be rendered", error))?;
    let mut response = Response::new(whole(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(whole(Vec::new()));
    *response.status_mut() = status;
    response
}

fn whole(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

/// A pair of connected streams within the process; the far end is already being served.
#[must_use]
pub fn connect_locally(
    peer: Peer,
    control: Arc<dyn ControlPlane>,
    shutdown: CancellationToken,
) -> Pin<Box<tokio::io::DuplexStream>> {
    let (near, far) = tokio::io::duplex(LOCAL_BUFFER);
    tokio::spawn(serve_connection(far, peer, control, shutdown));
    Box::pin(near)
}

/// Bytes in flight on an in-process connection, each way; there may be 20,000 connections.
const LOCAL_BUFFER: usize = 8 << 10;
