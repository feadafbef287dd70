//! HTTP for the metadata service: bounded in size, time and number of connections.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use super::{MetadataSource, Request, Response, Tokens, answer};
use crate::{
    limit::{Limit, Open},
    serve::{Current, breathe},
};

/// How long a connection may be idle, and how long a request's headers may take.
const IDLE: Duration = Duration::from_secs(15);
/// How long a connection may last: who has more to ask opens another.
const LONGEST: Duration = Duration::from_secs(120);
/// Most of a request's line and headers.
const HEADERS: usize = 16 * 1024;
/// Longest password that a guest may leave, encrypted: as Nova's.
const PASSWORD: usize = 1020;
/// What the kernel begins with.
const HOPS: u8 = 64;

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TOKEN_SECONDS: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Answers connections until it is dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    view: Current,
    source: Arc<dyn MetadataSource>,
    tokens: Arc<Tokens>,
    limit: Limit,
) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                breathe("metadata", &error).await;
                continue;
            }
        };
        if view.now().port_at(from.ip()).is_none() {
            continue;
        }
        let Some(open) = limit.open(from.ip()) else { continue };
        let asker = Asker { from, view: view.clone(), source: source.clone(), tokens: tokens.clone() };
        connections.spawn(connection(stream, asker, open));
    }
}

#[derive(Clone)]
struct Asker {
    from: SocketAddr,
    view: Current,
    source: Arc<dyn MetadataSource>,
    tokens: Arc<Tokens>,
}

async fn connection(stream: TcpStream, asker: Asker, _open: Open) {
    let _ = stream.set_nodelay(true);
    let hops = Arc::new(AtomicU8::new(HOPS));
    let stream = Hops { stream, wanted: hops.clone(), set: HOPS };
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (asker, hops) = (asker.clone(), hops.clone());
        async move { Ok::<_, Infallible>(asker.answer(request, &hops).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEADERS)
        .max_headers(64)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(LONGEST, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a guest's connection for metadata broke"),
        Err(_) => tracing::debug!("a guest's connection for metadata lasted too long"),
    }
}

impl Asker {
    async fn answer(&self, request: hyper::Request<Incoming>, hops: &AtomicU8) -> hyper::Response<Full<Bytes>> {
        hops.store(HOPS, Ordering::Relaxed);
        let Some((server, port)) = self.view.now().port_at(self.from.ip()).map(|port| (port.server, port.id)) else {
            return refuse(StatusCode::NOT_FOUND);
        };
        let Some(told) = self.source.server(server) else {
            let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return response;
        };
        let header = |name: HeaderName| request.headers().get(name).map(HeaderValue::as_bytes);
        let asked = Request {
            method: request.method().as_str(),
            path: request.uri().path(),
            token: header(TOKEN),
            token_seconds: header(TOKEN_SECONDS),
            forwarded: request.headers().contains_key(FORWARDED),
        };
        let without_body = request.method() == Method::HEAD;
        let mut response = match answer(&told, port, &self.tokens, asked) {
            Response::Found { content_type, content } => found(content_type, content),
            Response::Token { token, seconds, hop_limit } => {
                hops.store(hop_limit, Ordering::Relaxed);
                let mut response = found("text/plain", token);
                response.headers_mut().insert(TOKEN_SECONDS, seconds.into());
                response
            }
            Response::Password => match self.source.password(server).await {
                Ok(password) => found("text/plain", password.unwrap_or_default()),
                Err(error) => failed(&error),
            },
            Response::SetPassword => {
                let body = Limited::new(request.into_body(), PASSWORD).collect();
                match timeout(IDLE, body).await {
                    Ok(Ok(body)) => self.set_password(server, &body.to_bytes()).await,
                    Ok(Err(_)) => refuse(StatusCode::BAD_REQUEST),
                    Err(_) => refuse(StatusCode::REQUEST_TIMEOUT),
                }
            }
            Response::Refused(status) => refuse(StatusCode::from_u16(status).unwrap_or(StatusCode::NOT_FOUND)),
            Response::Method(allowed) => {
                let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED);
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
                response
            }
        };
        if without_body {
            *response.body_mut() = Full::default();
        }
        response
    }

    async fn set_password(&self, server: nephos_types::ServerId, body: &[u8]) -> hyper::Response<Full<Bytes>> {
        let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
        let password = std::str::from_utf8(body)
            .ok()
            .filter(|text| !text.is_empty() && body.iter().all(printable) && !text.trim().is_empty());
        let Some(password) = password else { return refuse(StatusCode::BAD_REQUEST) };
        match self.source.set_password(server, password.to_owned()).await {
            Ok(true) => found("text/plain", String::new()),
            Ok(false) => refuse(StatusCode::CONFLICT),
            Err(error) => failed(&error),
        }
    }
}

fn found(content_type: &'static str, content: String) -> hyper::Response<Full<Bytes>> {
    let mut response = hyper::Response::new(Full::from(content));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn refuse(status: StatusCode) -> hyper::Response<Full<Bytes>> {
    let mut response = found("text/plain", status.to_string());
    *response.status_mut() = status;
    response
}

fn failed(error: &nephos_types::Error) -> hyper::Response<Full<Bytes>> {
    tracing::warn!(error = %error.chain(), "a guest's password");
    refuse(StatusCode::SERVICE_UNAVAILABLE)
}

/// A stream whose answers get as many hops far as its service says.
struct Hops {
    stream: TcpStream,
    wanted: Arc<AtomicU8>,
    set: u8,
}

impl Hops {
    fn limit(&mut self) -> io::Result<()> {
        let wanted = self.wanted.load(Ordering::Relaxed);
        if wanted != self.set {
            let socket = SockRef::from(&self.stream);
            match self.stream.local_addr()?.ip() {
                IpAddr::V4(_) => socket.set_ttl_v4(wanted.into())?,
                IpAddr::V6(_) => socket.set_unicast_hops_v6(wanted.into())?,
            }
            self.set = wanted;
        }
        Ok(())
    }
}

impl AsyncRead for Hops {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Hops {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.limit()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.limit()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn an_answer_gets_as_far_as_it_may() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let wanted = Arc::new(AtomicU8::new(HOPS));
        let mut hops = Hops { stream, wanted: wanted.clone(), set: HOPS };
        for most in [1, HOPS, 2] {
            wanted.store(most, Ordering::Relaxed);
            hops.write_all(b"x").await.unwrap();
            assert_eq!(SockRef::from(&hops.stream).ttl_v4().unwrap(), u32::from(most));
        }
    }
}
