//! The serial console over a WebSocket, with pipes for a terminal.

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use crate::fake::{Answer, Fake, Place};

#[tokio::test]
async fn bytes_go_both_ways_until_the_key_that_leaves() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let guest = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        socket.send(Message::Binary("login: ".into())).await.unwrap();
        let mut typed = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(bytes) = message {
                typed.extend_from_slice(&bytes);
                if typed.ends_with(b"\n") {
                    socket.send(Message::Binary(b"welcome\r\n\xff".to_vec().into())).await.unwrap();
                    socket.close(None).await.unwrap();
                }
            }
        }
        typed
    });
    let place = Place::new().with("NEPHOS_URL", &url).with("NEPHOS_TOKEN", "t").with("LC_ALL", "C");
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_nephos-client"))
        .args(["server", "console", "web-1"])
        .env_clear()
        .env("HOME", place.path())
        .envs(place.variables.iter().cloned())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    use tokio::io::AsyncWriteExt;
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"root\n").await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    drop(stdin);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"login: welcome\r\n\xff");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("Connected to the console of web-1. Ctrl-] leaves.\n"), "{said}");
    assert_eq!(guest.await.unwrap(), b"root\n");
}

#[tokio::test]
async fn leaving_sends_what_was_typed_before() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let guest = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let mut typed = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(bytes) = message {
                typed.extend_from_slice(&bytes);
            }
        }
        typed
    });
    let place = Place::new().with("NEPHOS_URL", &url);
    let ran = place.run_with("server console web-1", b"halt\x1dnot this").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(guest.await.unwrap(), b"halt");
}

#[tokio::test]
async fn a_refused_console_says_why() {
    let refusal = serde_json::json!({"error": {"code": "server_stopped", "title": "web-1 does not run"}});
    let fake = Fake::start([Answer::Json(409, refusal)]).await;
    let ran = Place::at(&fake).run("server console web-1").await;
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.contains("✖ web-1 does not run"), "{}", ran.err);
    fake.finish();
}
