//! Two-way byte streams over WebSocket (RFC 6455), one binary frame per write.

use futures_util::{SinkExt, StreamExt};
use http::{Request, header};
use nephos_ops::Tunnel;
use nephos_types::{Error, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};

use super::{Client, Prepared, connect::Stream, error, request};

/// How much may be under way in each direction.
const BUFFER: usize = 64 << 10;

pub(super) async fn open(client: &Client, prepared: &Prepared) -> Result<Tunnel> {
    client.observe(&super::Traffic::Request { request: prepared });
    let authority = client.authority()?;
    let stream = client
        .connector
        .clone()
        .connect(authority.clone())
        .await
        .map_err(|why| error::unreachable(client.url(), &why.to_string()))?;
    let url = prepared.uri.to_string().replacen("http", "ws", 1);
    let mut handshake = Request::builder()
        .uri(url)
        .header(header::HOST, authority.authority().map_or("", http::uri::Authority::as_str))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, tungstenite::handshake::client::generate_key());
    if let Some(token) = &client.token {
        handshake = handshake.header(header::AUTHORIZATION, request::bearer(token)?);
    }
    let handshake = handshake.body(()).map_err(|error| Error::internal("a request could not be built", error))?;
    match tokio_tungstenite::client_async(handshake, stream).await {
        Ok((socket, _)) => {
            let (near, far) = tokio::io::duplex(BUFFER);
            tokio::spawn(pump(socket, far));
            Ok(Tunnel(Box::new(near)))
        }
        Err(tungstenite::Error::Http(response)) => {
            let (parts, body) = response.into_parts();
            Err(error::decode(parts.status, &parts.headers, &body.unwrap_or_default()))
        }
        Err(why) => Err(error::broken_off(&why.to_string())),
    }
}

/// Carries bytes both ways until either side is done.
async fn pump(mut socket: WebSocketStream<Stream>, mut local: DuplexStream) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    if local.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
                Some(Ok(Message::Text(text))) => {
                    if local.write_all(text.as_bytes()).await.is_err() {
                        break;
                    }
                }
                // The library answers pings; pongs need no answer.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            },
            read = local.read(&mut buffer) => match read {
                Ok(length @ 1..) => {
                    let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                    if socket.send(Message::Binary(bytes.into())).await.is_err() {
                        break;
                    }
                }
                Ok(_) | Err(_) => {
                    // Nothing can be done about a connection that is gone before its close was sent.
                    let _ = socket.close(None).await;
                    break;
                }
            },
        }
    }
}
