//! Server-sent events and tunnels.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use nephos_api_native::Settings;
use nephos_http::rate::Rates;
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::fake::{Running, TOKEN, start, start_with};

/// Reads an event stream until it has said this.
async fn read_until(server: &Running, path: &str, headers: &[(&str, &str)], wanted: &str) -> String {
    let response = server.open("GET", path, headers).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let mut text = String::new();
    while !text.contains(wanted) {
        let frame = body.frame().await.unwrap_or_else(|| panic!("ended with {text}")).unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    text
}

#[tokio::test]
async fn events_continue_where_the_client_left_off() {
    let server = start().await;
    let token = ("x-auth-token", TOKEN);
    let text = read_until(&server, "/v1/probe-events", &[token], "data: 2\n\n").await;
    assert!(text.contains("id: 1\nevent: tick\ndata: 0\n\n"), "{text}");
    let text = read_until(&server, "/v1/probe-events?from=1", &[token, ("last-event-id", "7")], "data: 9\n\n").await;
    assert!(text.contains("id: 8\nevent: tick\ndata: 7\n\n"), "{text}");
    let answer = server.send("GET", "/v1/probe-events", &[token, ("last-event-id", "x")], "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "invalid_input"));
}

#[tokio::test]
async fn silent_streams_say_that_they_live_and_end_when_the_server_stops() {
    let settings = Settings { keep_alive: Duration::from_millis(20), ..Settings::default() };
    let server = start_with(settings, Rates::default()).await;
    read_until(&server, "/v1/probe-events", &[("x-auth-token", TOKEN)], "data: 2\n\n: alive\n\n: alive\n\n").await;

    let response = server.open("GET", "/v1/probe-events", &[("x-auth-token", TOKEN)]).await;
    let reading = tokio::spawn(response.into_body().collect());
    assert_eq!(server.server.stop(Duration::from_secs(60)).await, 0, "nothing had to be cut");
    reading.await.unwrap().expect("a proper end");
}

#[tokio::test]
async fn tunnels_carry_bytes_both_ways() {
    let server = start().await;
    let url = format!("ws://{}/v1/probe-console", server.address);
    assert!(connect_async(&url).await.unwrap_err().to_string().contains("401"));

    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", format!("bearer.{TOKEN}").parse().unwrap());
    let (mut socket, response) = connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], format!("bearer.{TOKEN}").as_str());
    assert!(response.headers().contains_key(nephos_http::REQUEST_ID));

    // More than the stream holds, sent without reading: only works if the directions do not wait for each other.
    let sent: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
    for part in sent.chunks(50_000) {
        socket.send(Message::binary(part.to_vec())).await.unwrap();
    }
    let mut received = vec![];
    while received.len() < sent.len() {
        if let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() {
            received.extend_from_slice(&bytes);
        }
    }
    assert_eq!(received, sent);

    socket.send(Message::binary(vec![0; 1024 * 1024])).await.unwrap();
    let mut end = socket.next().await;
    while matches!(end, Some(Ok(Message::Binary(_) | Message::Ping(_)))) {
        end = socket.next().await;
    }
    assert!(matches!(end, None | Some(Err(_) | Ok(Message::Close(_)))), "a message too large ends it: {end:?}");
}

#[tokio::test]
async fn tunnels_close_when_the_server_stops() {
    let server = start().await;
    let mut request = format!("ws://{}/v1/probe-console", server.address).into_client_request().unwrap();
    request.headers_mut().insert("x-auth-token", TOKEN.parse().unwrap());
    let (mut socket, _) = connect_async(request).await.unwrap();
    let stopping = tokio::spawn(async move { server.server.stop(Duration::from_secs(60)).await });
    let close = loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Close(close) => break close,
            _ => continue,
        }
    };
    assert_eq!(close.unwrap().reason, "the server stops");
    drop(socket);
    assert_eq!(stopping.await.unwrap(), 0);
}
