//! What is said, and what is refused.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::TryStreamExt;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use nephos_node_api::{
    Enrolment, Hello, Renewal, Report,
    server::{Peer, connect_locally},
};
use nephos_types::{Error, ErrorKind, ImageId, NodeId, StreamId, Timestamp};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::fake::{Fake, local};

pub(crate) fn hello() -> Hello {
    serde_json::from_value(json!({
        "protocol": 1, "agent_version": "1", "something_new": true,
        "inventory": {
            "hostname": "host", "kernel": "6.1", "architecture": "x86_64", "cpu_model": "fast", "cpus": 4,
            "memory": 1 << 30, "disk": 1_u64 << 40, "forward_ports": { "first": 20_000, "last": 20_009 },
            "compute": { "driver": "simulated", "version": "1", "accelerator": serde_json::to_value(nephos_driver::Accelerator::None).unwrap(), "disk_formats": ["raw"],
                         "console": true, "soft_stop": true, "features": [] },
        },
    }))
    .unwrap()
}

#[tokio::test]
async fn a_node_says_hello_reports_and_is_told_what_changes() {
    let (fake, node) = (Fake::new(), NodeId::new());
    let client = local(&fake, node);
    let answer = client.hello(&hello()).await.unwrap();
    assert_eq!((answer.node, answer.protocol), (node, 1));
    client.report(&Report { at: Timestamp::now(), full: true, servers: vec![], health: vec![] }).await.unwrap();
    assert_eq!(fake.asked(), [format!("hello {node} from in-process"), format!("report of 0 by {node}")]);

    // At once, after the wait, and when something changes.
    let minute = Duration::from_secs(60);
    assert_eq!(client.desired(None, minute).await.unwrap().revision, 1);
    assert_eq!(client.desired(Some(1), Duration::from_millis(20)).await.unwrap().revision, 1);
    let (told, ()) = tokio::join!(client.desired(Some(1), minute), async {
        while fake.asked().len() < 5 {
            tokio::task::yield_now().await;
        }
        fake.revision.send_replace(2);
    });
    assert_eq!(told.unwrap().revision, 2);
    // Nobody holds a poll open for ever.
    fake.revision.send_replace(3);
    client.desired(Some(2), Duration::from_secs(86_400)).await.unwrap();
    assert_eq!(fake.asked().last().unwrap(), "desired after Some(2) within 60000 ms");
}

#[tokio::test]
async fn images_and_streams_are_bytes() {
    let (fake, node) = (Fake::new(), NodeId::new());
    let client = local(&fake, node);
    let image = ImageId::new();
    let content = client.image(image).await.unwrap();
    let bytes: Vec<Bytes> = content.body.try_collect().await.unwrap();
    assert_eq!(bytes.concat(), format!("some {image}").as_bytes());
    assert_eq!(content.length, bytes.concat().len() as u64);

    let stream = StreamId::new();
    let mut duplex = client.open_stream(stream).await.unwrap();
    let mut greeting = [0; 5];
    duplex.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello");
    let sent: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
    let (mut read, mut write) = tokio::io::split(duplex);
    let mut back = vec![0; sent.len()];
    let (written, received) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
    written.unwrap();
    received.unwrap();
    assert_eq!(back, sent);

    client.refuse_stream(stream, &Error::conflict("guest_not_running", "It does not run")).await.unwrap();
    assert_eq!(fake.asked(), [format!("stream {stream} of {node}"), format!("refused {stream}: guest_not_running")]);
}

/// One request as anybody may send it; status and the error's code.
async fn send(peer: Peer, fake: &Arc<Fake>, method: &str, path: &str, body: impl Into<Bytes>) -> (StatusCode, String) {
    let io = connect_locally(peer, fake.clone(), CancellationToken::new());
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "control").body(Full::new(body.into()));
    let response = sender.send_request(request.unwrap()).await.unwrap();
    let status = response.status();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let error: Value = serde_json::from_slice(&text).unwrap_or_default();
    (status, error["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn what_is_malformed_too_large_or_unknown_is_refused_and_not_passed_on() {
    let (fake, node) = (Fake::new(), NodeId::new());
    let hello = serde_json::to_value(hello()).unwrap();
    let mut wrong_type = hello.clone();
    wrong_type["inventory"]["cpus"] = json!("many");
    let large = |bytes: usize| format!("{{\"x\": \"{}\"}}", "x".repeat(bytes));
    for (method, path, body, status, code) in [
        ("POST", "/node/v1/hello", String::new(), 400, "invalid_message"),
        ("POST", "/node/v1/hello", "{".to_owned(), 400, "invalid_message"),
        ("POST", "/node/v1/hello", "[1, 2]".to_owned(), 400, "invalid_message"),
        ("POST", "/node/v1/hello", "[".repeat(100_000), 400, "invalid_message"),
        ("POST", "/node/v1/hello", wrong_type.to_string(), 400, "invalid_message"),
        ("POST", "/node/v1/report", "null".to_owned(), 400, "invalid_message"),
        ("POST", "/node/v1/renew", "{}".to_owned(), 400, "invalid_message"),
        ("POST", "/node/v1/hello", large(256 << 10), 413, "too_large"),
        ("POST", "/node/v1/enrol", large(64 << 10), 413, "too_large"),
        ("POST", "/node/v1/renew", large(64 << 10), 413, "too_large"),
        ("POST", "/node/v1/report", large(16 << 20), 413, "too_large"),
        ("GET", "/node/v1/desired?after=soon", String::new(), 400, "invalid_query"),
        ("GET", "/node/v1/desired?wait_ms=-1", String::new(), 400, "invalid_query"),
        ("GET", "/node/v1/images/nothing", String::new(), 400, "invalid_id"),
        ("POST", "/node/v1/streams/nothing", String::new(), 400, "invalid_id"),
        ("POST", "/node/v1/hello/again", hello.to_string(), 404, "no_such_route"),
        ("GET", "/node/v1/hello", String::new(), 404, "no_such_route"),
        ("GET", "/node/v2/desired", String::new(), 404, "no_such_route"),
        ("GET", "/", String::new(), 404, "no_such_route"),
    ] {
        let got = send(Peer::local(node), &fake, method, path, body).await;
        assert_eq!((got.0.as_u16(), got.1.as_str()), (status, code), "{method} {path}");
    }
    let stream = format!("/node/v1/streams/{}", StreamId::new());
    assert_eq!(send(Peer::local(node), &fake, "POST", &stream, "").await.1, "upgrade_needed");
    assert_eq!(fake.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn who_proves_nothing_may_only_enrol() {
    let fake = Fake::new();
    let stranger = || Peer::Stranger { address: "192.0.2.1".to_owned() };
    let image = format!("/node/v1/images/{}", ImageId::new());
    let stream = format!("/node/v1/streams/{}", StreamId::new());
    let renewal = serde_json::to_string(&Renewal { signing_request: String::new() }).unwrap();
    for (method, path) in [
        ("POST", "/node/v1/hello"),
        ("POST", "/node/v1/report"),
        ("POST", "/node/v1/renew"),
        ("GET", "/node/v1/desired"),
        ("GET", &image),
        ("POST", &stream),
        ("POST", &format!("{stream}/refused")),
    ] {
        let got = send(stranger(), &fake, method, path, renewal.clone()).await;
        assert_eq!((got.0.as_u16(), got.1.as_str()), (401, "no_certificate"), "{method} {path}");
    }
    // One whose certificate has expired may renew it, and nothing else.
    let until = Some(std::time::SystemTime::now() - Duration::from_secs(1));
    let node = NodeId::new();
    let expired = || Peer::Node { node, address: "192.0.2.1".to_owned(), until };
    assert_eq!(send(expired(), &fake, "GET", "/node/v1/desired", "").await.1, "certificate_expired");
    assert_eq!(send(expired(), &fake, "POST", "/node/v1/renew", renewal).await.0, StatusCode::OK);
    for (token, status) in [("good", 200), ("bad", 401)] {
        let name = "machine".to_owned();
        let enrolment = Enrolment { token: token.to_owned(), name, signing_request: String::new() };
        let body = serde_json::to_string(&enrolment).unwrap();
        assert_eq!(send(stranger(), &fake, "POST", "/node/v1/enrol", body).await.0.as_u16(), status);
    }
    assert_eq!(fake.asked(), [format!("renew {node}"), "enrol machine".to_owned(), "enrol machine".to_owned()]);
}

#[tokio::test]
async fn refusals_arrive_whole() {
    let fake = Fake::new();
    let client = local(&fake, NodeId::new());
    let name = "machine".to_owned();
    let refused = client.enrol(&Enrolment { token: "bad".to_owned(), name, signing_request: String::new() }).await;
    let error = refused.unwrap_err();
    assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Unauthenticated, "join_token_refused"));
}
