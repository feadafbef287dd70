//! The server: connections in, requests to the front end whose prefix is longest, everything answered and counted.

use std::{
    borrow::Cow,
    convert::Infallible,
    io,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use hyper::{Method, Request, Response, body::Incoming, header::HeaderValue, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use nephos_types::{Error, ErrorKind, RequestId, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    REQUEST_ID, answer,
    body::Body,
    front_end::{Exchange, FrontEnd, Peer, Running, Seen},
    guard::Guarded,
    metrics::{Observer, Record},
};

/// The server's bounds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connections open at once; further ones wait to be accepted.
    pub connections: usize,
    /// Bytes of one request's line and headers.
    pub header_bytes: usize,
    /// How long a connection may be idle between requests, and how long a request's headers may take.
    pub idle: Duration,
    /// How long a new connection has for its TLS handshake and for its first bytes.
    pub opening: Duration,
    /// How long an answer may make no progress because the client does not read.
    pub stall: Duration,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// Serve addresses other than loopback without TLS; for networks that are private by other means.
    pub plain_anywhere: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections: 8192,
            header_bytes: 64 * 1024,
            idle: Duration::from_secs(75),
            opening: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            streams: 128,
            plain_anywhere: false,
        }
    }
}

/// Serves front ends on any number of listeners. Cheap to clone; clones are one server.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    front_ends: Vec<Arc<dyn FrontEnd>>,
    /// Prefix and index of its front end, longest prefix first.
    mounts: Vec<(String, usize)>,
    settings: Settings,
    observer: Option<Arc<dyn Observer>>,
    http: auto::Builder<TokioExecutor>,
    connections: Arc<Semaphore>,
    running: Running,
    /// Ends what did not finish in time.
    abort: CancellationToken,
}

impl Server {
    /// A server for these front ends; two that claim the same prefix are refused.
    pub fn new(
        settings: Settings,
        front_ends: Vec<Arc<dyn FrontEnd>>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Self> {
        let mut mounts: Vec<(String, usize)> = Vec::new();
        for (index, front_end) in front_ends.iter().enumerate() {
            for prefix in front_end.prefixes() {
                let prefix = prefix.trim_end_matches('/').to_owned();
                if mounts.iter().any(|(taken, _)| *taken == prefix) {
                    return Err(Error::bug(format!("two front ends claim the path `{prefix}/`")));
                }
                mounts.push((prefix, index));
            }
        }
        mounts.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.idle)
            .max_buf_size(settings.header_bytes.max(8192))
            .max_headers(128)
            .pipeline_flush(true)
            .half_close(false);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(settings.streams)
            .max_header_list_size(u32::try_from(settings.header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(settings.idle)
            .keep_alive_timeout(settings.opening);
        Ok(Self(Arc::new(Inner {
            front_ends,
            mounts,
            connections: Arc::new(Semaphore::new(settings.connections.min(Semaphore::MAX_PERMITS))),
            settings,
            observer,
            http,
            running: Running::default(),
            abort: CancellationToken::new(),
        })))
    }

    /// Accepts connections until [`Self::stop`]. With `tls` every connection is encrypted; its ALPN protocols should be
    /// `h2` and `http/1.1`.
    pub async fn serve(&self, listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>) -> Result<()> {
        let address = listener.local_addr().map_err(|error| Error::internal("the listener has no address", error))?;
        if tls.is_none() && !address.ip().is_loopback() && !self.0.settings.plain_anywhere {
            return Err(Error::invalid("plain_text_refused", "This address is served with TLS only")
                .detail(format!("{address} can be reached from other machines"))
                .next("listen on 127.0.0.1, or configure a certificate", None));
        }
        let tls = tls.map(TlsAcceptor::from);
        let stopping = self.0.running.stopping.clone();
        loop {
            // Waiting here leaves newcomers in the kernel's queue instead of turning them away.
            let permit = tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                permit = self.0.connections.clone().acquire_owned() => match permit {
                    Ok(permit) => permit,
                    Err(_) => return Ok(()),
                },
            };
            let accepted = tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    let server = self.clone();
                    let tls = tls.clone();
                    self.0.running.spawn(async move {
                        let peer = Peer { address: Some(address), ..Peer::default() };
                        server.open(stream, peer, tls, permit).await;
                    });
                }
                Err(error) => {
                    // Out of file descriptors, or a connection that died in the queue: the next one may do.
                    tracing::warn!(%error, "accept failed");
                    if !transient(&error) {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
    }

    /// Serves one stream that is already there, e.g. one inside the process, until it closes.
    pub async fn serve_stream(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, peer: Peer) {
        let server = self.clone();
        let work = async move { server.connection(stream, peer).await };
        // Tracked, so that stopping waits for it.
        let _ = self.0.running.tasks.spawn(work).await;
    }

    /// Stops accepting, tells clients to go, waits for what is being answered for at most `limit`, then cuts the rest.
    /// Returns how many connections had to be cut.
    pub async fn stop(&self, limit: Duration) -> usize {
        self.0.running.stopping.cancel();
        self.0.running.tasks.close();
        if timeout(limit, self.0.running.tasks.wait()).await.is_ok() {
            return 0;
        }
        let cut = self.0.running.tasks.len();
        self.0.abort.cancel();
        // Upgraded connections see `stopping` themselves; none may keep the process.
        let _ = timeout(Duration::from_secs(1), self.0.running.tasks.wait()).await;
        cut
    }

    async fn open(&self, stream: TcpStream, mut peer: Peer, tls: Option<TlsAcceptor>, _permit: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        let Some(acceptor) = tls else { return self.connection(stream, peer).await };
        let shaken = tokio::select! {
            () = self.0.running.stopping() => return,
            shaken = timeout(self.0.settings.opening, acceptor.accept(stream)) => shaken,
        };
        match shaken {
            Ok(Ok(stream)) => {
                peer.tls = true;
                peer.certificates = stream
                    .get_ref()
                    .1
                    .peer_certificates()
                    .unwrap_or_default()
                    .iter()
                    .map(|certificate| certificate.clone().into_owned())
                    .collect();
                self.connection(stream, peer).await;
            }
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
        }
    }

    async fn connection(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, peer: Peer) {
        let inner = &self.0;
        if let Some(observer) = &inner.observer {
            observer.connections(1);
        }
        let peer = Arc::new(peer);
        let guarded = Guarded::new(stream, inner.settings.opening, inner.settings.stall);
        let service = service_fn(|request: Request<Incoming>| {
            let inner = inner.clone();
            let peer = peer.clone();
            async move { Ok::<_, Infallible>(inner.answer(request, peer).await) }
        });
        let mut connection = pin!(inner.http.serve_connection_with_upgrades(TokioIo::new(guarded), service));
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = inner.running.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    outcome = connection.as_mut() => outcome,
                    () = inner.abort.cancelled() => Ok(()),
                }
            }
        };
        if let Err(error) = outcome {
            // A client that leaves or talks nonsense is not the operator's business.
            tracing::debug!(%peer, %error, "connection ended");
        }
        if let Some(observer) = &inner.observer {
            observer.connections(-1);
        }
    }
}

fn transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

impl Inner {
    fn front_end(&self, path: &str) -> Option<&Arc<dyn FrontEnd>> {
        let (_, index) = self.mounts.iter().find(|(prefix, _)| {
            path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })?;
        self.front_ends.get(*index)
    }

    async fn answer(&self, request: Request<Incoming>, peer: Arc<Peer>) -> Response<Body> {
        let begun = Instant::now();
        let id = RequestId::new();
        let method = request.method().clone();
        let uri = request.uri().clone();
        let (name, mut response) = match self.front_end(uri.path()) {
            Some(front_end) => {
                let exchange = Exchange { request, id, peer: peer.clone(), running: self.running.clone() };
                let response = AssertUnwindSafe(front_end.handle(exchange)).catch_unwind().await.unwrap_or_else(|_| {
                    answer::error(&Error::bug("The request met a defect").detail("its handler panicked"), id)
                });
                (front_end.name(), response)
            }
            None => {
                let error = Error::new(ErrorKind::NotFound, "path_not_found", "No such path")
                    .next("see what there is: GET /openapi.json", None);
                ("none", answer::error(&error, id))
            }
        };
        if let Ok(value) = HeaderValue::try_from(id.to_string()) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        let seen = response.extensions_mut().remove::<Seen>().unwrap_or_default();
        self.record(&Access { id, peer: &peer, method: &method, path: uri.path(), name, seen, begun }, &response);
        response
    }

    fn record(&self, access: &Access<'_>, response: &Response<Body>) {
        let elapsed = access.begun.elapsed();
        let code = access.seen.code.unwrap_or(response.status().as_u16());
        let unknown = Cow::Borrowed("none");
        let route = if access.seen.route.is_empty() { &unknown } else { &access.seen.route };
        let dialect = access.seen.dialect.unwrap_or(access.name);
        if let Some(observer) = &self.observer {
            let method = label(access.method);
            observer.answered(&Record { dialect, method, route, code, elapsed });
        }
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    target: "api.access",
                    request_id = %access.id,
                    dialect,
                    method = %access.method,
                    path = %loggable(access.path),
                    route = %route,
                    code,
                    dur_ms = elapsed.as_secs_f64() * 1000.0,
                    peer = %access.peer,
                    actor = access.seen.actor.as_deref(),
                    project = access.seen.project.as_deref(),
                    "request"
                )
            };
        }
        if code >= 500 && code != 501 {
            log!(warn);
        } else if access.seen.changes {
            log!(info);
        } else {
            log!(debug);
        }
    }
}

/// What is known of a request when it is answered.
struct Access<'a> {
    id: RequestId,
    peer: &'a Peer,
    method: &'a Method,
    path: &'a str,
    name: &'static str,
    seen: Seen,
    begun: Instant,
}

/// A path for the access log: not all of a long one, and nothing of a part so long that it may be a secret.
fn loggable(path: &str) -> Cow<'_, str> {
    const PART: usize = 120;
    const MOST: usize = 256;
    let short: Cow<'_, str> = if path.split('/').any(|part| part.len() > PART) {
        let parts: Vec<_> = path.split('/').map(|part| if part.len() > PART { "…" } else { part }).collect();
        parts.join("/").into()
    } else {
        path.into()
    };
    if short.len() > MOST { short.chars().take(MOST).collect::<String>().into() } else { short }
}

/// The method as a metric's label: a bounded set.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_paths_are_not_logged() {
        let ticket = "A".repeat(150);
        assert_eq!(loggable(&format!("/v1/consoles/{ticket}")), "/v1/consoles/…");
        assert_eq!(loggable("/v1/servers/web"), "/v1/servers/web");
        assert_eq!(loggable(&"/abc".repeat(100)).len(), 256);
    }
}
