//! Tunnels: a two-way byte stream over a WebSocket (RFC 6455) with binary frames.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use hyper::{
    Method, Response, StatusCode, Version,
    header::{
        CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
    http::request::Parts,
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use nephos_http::{Body, Running};
use nephos_ops::{Duplex, Tunnel};
use nephos_types::{Error, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{MissedTickBehavior, interval},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Bytes, Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::gate::{BEARER_PROTOCOL, protocols};

/// The largest message taken from a client, in bytes.
const MESSAGE_BYTES: usize = 256 * 1024;
/// How much is read from the stream at a time, in bytes.
const CHUNK_BYTES: usize = 32 * 1024;
/// The most that waits to be sent to a client, in bytes.
const WAITING_BYTES: usize = 1024 * 1024;

/// A client's wish for a WebSocket, found to be in order.
pub(crate) struct Handshake {
    upgrade: OnUpgrade,
    accept: String,
    protocol: Option<HeaderValue>,
}

impl Handshake {
    pub(crate) fn read(parts: &Parts, upgrade: Option<OnUpgrade>) -> Result<Self> {
        let refuse = |detail: &str| {
            Err(Error::invalid("websocket_required", "This path is a WebSocket")
                .detail(detail)
                .next("connect to it with a WebSocket client, version 13, over HTTP/1.1", None))
        };
        let headers = &parts.headers;
        if parts.method != Method::GET || parts.version != Version::HTTP_11 {
            return refuse("a WebSocket begins with GET over HTTP/1.1");
        }
        if !lists(headers, CONNECTION, "upgrade") || !lists(headers, UPGRADE, "websocket") {
            return refuse("the request does not ask to upgrade to `websocket`");
        }
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return refuse("`Sec-WebSocket-Version` is not 13");
        }
        let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
            return refuse("there is no `Sec-WebSocket-Key`");
        };
        let Some(upgrade) = upgrade else {
            return refuse("this connection cannot be upgraded");
        };
        // A browser fails the connection unless one of the protocols it offered is chosen.
        let chosen = protocols(headers)
            .find(|offered| !offered.starts_with(BEARER_PROTOCOL))
            .or_else(|| protocols(headers).next())
            .and_then(|offered| HeaderValue::try_from(offered).ok());
        Ok(Self { upgrade, accept: derive_accept_key(key.as_bytes()), protocol: chosen })
    }

    /// Switches protocols, and carries bytes until either side ends or the server stops.
    pub(crate) fn answer(self, tunnel: Tunnel, keep_alive: Duration, running: &Running) -> Result<Response<Body>> {
        let mut response = Response::new(nephos_http::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(
            SEC_WEBSOCKET_ACCEPT,
            HeaderValue::try_from(self.accept).map_err(|error| Error::internal("no WebSocket key", error))?,
        );
        if let Some(protocol) = self.protocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        let upgrade = self.upgrade;
        let stopped = running.stopped();
        running.spawn(async move {
            let upgraded = match upgrade.await {
                Ok(upgraded) => TokioIo::new(upgraded),
                Err(error) => return tracing::debug!(%error, "WebSocket did not open"),
            };
            let config = WebSocketConfig::default()
                .max_message_size(Some(MESSAGE_BYTES))
                .max_frame_size(Some(MESSAGE_BYTES))
                .max_write_buffer_size(WAITING_BYTES);
            let socket = WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await;
            carry(socket, tunnel.0, keep_alive, stopped).await;
        });
        Ok(response)
    }
}

fn lists(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(word))
}

/// Carries bytes both ways until one side ends.
///
/// The directions run beside each other: a stream whose other side waits until its output is taken (a terminal's echo)
/// would otherwise block both for good. A client from which nothing is heard between two pings counts as gone.
async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<S>,
    duplex: Box<dyn Duplex>,
    keep_alive: Duration,
    stopped: impl Future<Output = ()>,
) {
    let (mut to_client, mut from_client) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(duplex);
    let heard = AtomicBool::new(true);
    let outgoing = async {
        let mut pings = interval(keep_alive);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pings.tick().await;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let message = tokio::select! {
                read = reader.read(&mut chunk) => match read {
                    Ok(0) => return Some((CloseCode::Normal, "")),
                    Ok(count) => {
                        Message::Binary(Bytes::copy_from_slice(chunk.get(..count).unwrap_or_default()))
                    }
                    Err(error) => {
                        tracing::debug!(%error, "tunnel broke");
                        return Some((CloseCode::Error, "the stream broke"));
                    }
                },
                _ = pings.tick() => {
                    if !heard.swap(false, Relaxed) {
                        return None;
                    }
                    Message::Ping(Bytes::new())
                }
            };
            if to_client.send(message).await.is_err() {
                return None;
            }
        }
    };
    let incoming = async {
        loop {
            let message = from_client.next().await;
            heard.store(true, Relaxed);
            let bytes = match message {
                Some(Ok(Message::Binary(bytes))) => bytes,
                Some(Ok(Message::Text(text))) => text.into(),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => continue,
            };
            if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                return Some((CloseCode::Normal, ""));
            }
            // Taking the bytes may have taken its time, in which nobody listened for an answer to a ping.
            heard.store(true, Relaxed);
        }
    };
    let close = tokio::select! {
        close = outgoing => close,
        close = incoming => close,
        () = stopped => Some((CloseCode::Restart, "the server stops")),
    };
    if let Some((code, reason)) = close {
        let _ = to_client.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
    }
    let _ = writer.shutdown().await;
}
