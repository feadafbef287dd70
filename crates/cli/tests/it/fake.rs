//! A scripted HTTP server and a way to run the command line against it.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    header::HeaderMap,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::TcpListener, process::Command};

/// What the server does with one request.
pub(crate) enum Answer {
    /// Answers with this status and JSON.
    Json(u16, Value),
    /// Answers with nothing.
    Empty(u16),
    /// Answers with this content type and these parts; `Err` breaks the connection.
    Stream(&'static str, Vec<Result<Bytes, ()>>),
    /// Closes the connection without an answer.
    HangUp,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// A server that answers requests in the order of its script and remembers them.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    script: Arc<Mutex<VecDeque<Answer>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub(crate) async fn start(script: impl IntoIterator<Item = Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(script.into_iter().collect::<VecDeque<_>>()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = (script.clone(), seen.clone());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(request, shared.clone()));
                    // A connection that the script breaks ends in an error here.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, script, seen, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far; all of the script must have been used.
    pub(crate) fn finish(self) -> Vec<Seen> {
        assert_eq!(self.script.lock().unwrap().len(), 0, "answers left in the script");
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

async fn answer(
    request: Request<Incoming>,
    (script, seen): (Arc<Mutex<VecDeque<Answer>>>, Arc<Mutex<Vec<Seen>>>),
) -> Result<Response<UnsyncBoxBody<Bytes, std::io::Error>>, std::io::Error> {
    let line = format!("{} {}", request.method(), request.uri());
    let headers = request.headers().clone();
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    seen.lock().unwrap().push(Seen { line: line.clone(), headers, body });
    let next = script.lock().unwrap().pop_front();
    let (status, content_type, parts) = match next {
        Some(Answer::Json(status, value)) => (status, "application/json", vec![Ok(Bytes::from(value.to_string()))]),
        Some(Answer::Empty(status)) => (status, "application/json", vec![]),
        Some(Answer::Stream(content_type, parts)) => (200, content_type, parts),
        Some(Answer::HangUp) => return Err(std::io::Error::other("as the script wants")),
        None => {
            let text = format!(r#"{{"error":{{"code":"unexpected","title":"not in the script: {line}"}}}}"#);
            (418, "application/json", vec![Ok(Bytes::from(text))])
        }
    };
    let parts = futures_util::stream::iter(parts).then(|part| async move {
        // Lets what came before reach the client before the connection breaks.
        tokio::task::yield_now().await;
        part.map(Frame::data).map_err(|()| std::io::Error::other("as the script wants"))
    });
    let body = BodyExt::boxed_unsync(StreamBody::new(parts));
    let response = Response::builder()
        .status(status)
        .header("content-type", content_type)
        .header("x-nephos-request-id", "req-0123456789abc")
        .body(body);
    Ok::<_, Infallible>(response.unwrap()).map_err(|never| match never {})
}

/// What the program printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: i32,
}

/// A clean place to run the command line in.
pub(crate) struct Place {
    home: tempfile::TempDir,
    pub(crate) variables: Vec<(String, String)>,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), variables: vec![] }
    }

    /// A place where `NEPHOS_URL` and `NEPHOS_TOKEN` are set.
    pub(crate) fn at(fake: &Fake) -> Self {
        Self::new().with("NEPHOS_URL", &fake.url()).with("NEPHOS_TOKEN", "token-1")
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.home.path()
    }

    pub(crate) async fn run(&self, line: &str) -> Ran {
        self.run_with(line, b"").await
    }

    pub(crate) async fn run_with(&self, line: &str, input: &[u8]) -> Ran {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nephos-client"))
            .args(shlex::split(line).unwrap())
            .env_clear()
            .env("HOME", self.path())
            .env("NEPHOS_DATA", self.path().join("data"))
            .envs(self.variables.iter().cloned())
            .current_dir(self.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // The program need not read what it is given.
        let _ = stdin.write_all(input).await;
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        Ran {
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code().unwrap_or(-1),
        }
    }
}
