//! Two-way byte streams over WebSocket (RFC 6455), one binary frame per write.

use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use nephos_ops::Tunnel;
use nephos_types::{Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::Role,
    },
};

use super::{Client, Prepared, accept, error};

/// How much may be under way in each direction.
const BUFFER: usize = 64 << 10;

pub(super) async fn open(client: &Client, prepared: &Prepared) -> Result<Tunnel> {
    let key = generate_key();
    let body = BodyExt::boxed_unsync(Empty::new().map_err(|never| match never {}));
    let mut request = client.request(prepared, body)?;
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    let unusable = |error| Error::internal("a request could not be built", error);
    headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).map_err(unusable)?);
    let response = client.send(prepared, request).await.map_err(|failure| failure.into_error(client.url()))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        accept(response).await?;
        return Err(Error::bug("The cloud did not open a WebSocket"));
    }
    let expected = derive_accept_key(key.as_bytes());
    let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
    if accepted != Some(expected.as_bytes()) {
        return Err(Error::bug("The cloud's WebSocket handshake is not valid"));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|why| error::broken_off(&why.to_string()))?;
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    let (near, far) = tokio::io::duplex(BUFFER);
    tokio::spawn(pump(socket, far));
    Ok(Tunnel(Box::new(near)))
}

/// Carries bytes both ways until either side is done. The directions do not wait for each other: a side that writes
/// much before it reads is not blocked for ever.
async fn pump<S: AsyncRead + AsyncWrite + Unpin>(socket: WebSocketStream<S>, local: DuplexStream) {
    let (mut to_cloud, mut from_cloud) = socket.split();
    let (mut from_local, mut to_local) = tokio::io::split(local);
    let inward = async {
        while let Some(Ok(message)) = from_cloud.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => break,
                // The library answers pings; pongs need no answer.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            if to_local.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    let outward = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from_local.read(&mut buffer).await {
            let bytes = buffer.get(..length).unwrap_or_default().to_vec();
            if to_cloud.send(Message::Binary(bytes.into())).await.is_err() {
                break;
            }
        }
        // Nothing can be done about a connection that is gone before its close was sent.
        let _ = to_cloud.close().await;
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}
