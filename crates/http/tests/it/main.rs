//! The server over real connections.

#![allow(clippy::unwrap_used)] // helpers of tests are not seen as tests

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, StatusCode, body::Bytes};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nephos_http::{
    Body, BoxFuture, Exchange, FrontEnd, Health, Metrics, Peer, REQUEST_ID, Seen, Server, Settings, Status,
};
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

/// Answers with its name, the peer and the path; below `/slow` only when it is told to.
struct Echo {
    prefix: &'static str,
    arrived: Arc<Notify>,
    go: Arc<Notify>,
}

impl Echo {
    fn at(prefix: &'static str) -> Arc<Self> {
        Arc::new(Self { prefix, arrived: Arc::default(), go: Arc::default() })
    }
}

impl FrontEnd for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn prefixes(&self) -> &[&str] {
        std::slice::from_ref(&self.prefix)
    }

    fn handle(&self, exchange: Exchange) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async move {
            let path = exchange.request.uri().path();
            assert!(path != "/panic", "told to");
            if path == "/slow" {
                self.arrived.notify_one();
                self.go.notified().await;
            }
            let Peer { tls, certificates, .. } = &*exchange.peer;
            let text =
                format!("{} {path} {} tls={tls} certificates={}", self.prefix, exchange.peer, certificates.len());
            let mut response = Response::new(nephos_http::full(text));
            response.extensions_mut().insert(Seen { route: self.prefix.into(), ..Seen::default() });
            response
        })
    }
}

async fn listen(server: &Server, tls: Option<Arc<rustls::ServerConfig>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = server.clone();
    tokio::spawn(async move { server.serve(listener, tls).await.unwrap() });
    address
}

async fn get(address: SocketAddr, path: &str) -> (StatusCode, String, bool) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "x").body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, String::from_utf8(body.to_vec()).unwrap(), parts.headers.contains_key(REQUEST_ID))
}

/// Writes these bytes and reads until the server closes.
async fn talk(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = vec![];
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn the_longest_prefix_answers_and_every_answer_has_an_id() {
    let server =
        Server::new(Settings::default(), vec![Echo::at("/a"), Echo::at("/a/b"), Echo::at("/panic")], None).unwrap();
    let address = listen(&server, None).await;
    for (path, status, begin) in [
        ("/a", 200, "/a /a 127.0.0.1"),
        ("/a/c", 200, "/a /a/c"),
        ("/a/b?x", 200, "/a/b /a/b"),
        ("/ab", 404, "{\"error\":"),
        ("/", 404, "{\"error\":"),
        ("/panic", 500, "{\"error\":"),
    ] {
        let (answered, text, id) = get(address, path).await;
        assert_eq!(answered, status, "{path}");
        assert!(text.starts_with(begin) && !text.contains("told to"), "{path}: {text}");
        assert!(id, "{path}");
    }
    let twice = Server::new(Settings::default(), vec![Echo::at("/a"), Echo::at("/a/")], None);
    assert!(twice.is_err(), "two front ends for one path");
}

#[tokio::test]
async fn http_2_is_spoken_by_prior_knowledge() {
    let server = Server::new(Settings::default(), vec![Echo::at("/")], None).unwrap();
    let stream = TcpStream::connect(listen(&server, None).await).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://x/two").body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert!(response.headers().contains_key(REQUEST_ID));
    assert!(response.into_body().collect().await.unwrap().to_bytes().starts_with(b"/ /two"));
}

#[tokio::test]
async fn addresses_that_others_reach_are_not_served_in_plain_text() {
    let server = Server::new(Settings::default(), vec![], None).unwrap();
    let open = TcpListener::bind("0.0.0.0:0").await.unwrap();
    assert_eq!(server.serve(open, None).await.unwrap_err().code, "plain_text_refused");
}

#[tokio::test]
async fn tls_tells_who_the_client_is() {
    let issued = |name: &str| {
        let issued = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
        (issued.cert.der().clone(), key)
    };
    let roots = |certificate: &rustls::pki_types::CertificateDer<'static>| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        Arc::new(roots)
    };
    let (server_certificate, server_key) = issued("cloud.test");
    let (client_certificate, client_key) = issued("node.test");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots(&client_certificate), provider.clone())
            .build()
            .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![server_certificate.clone()], server_key)
        .unwrap();
    let server = Server::new(Settings::default(), vec![Echo::at("/")], None).unwrap();
    let address = listen(&server, Some(Arc::new(config))).await;

    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(&server_certificate))
        .with_client_auth_cert(vec![client_certificate], client_key)
        .unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect("cloud.test".try_into().unwrap(), stream)
        .await
        .unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = vec![];
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("tls=true certificates=1"), "{answer}");
    assert!(!talk(address, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("tls="), "plain text is not answered");
}

#[tokio::test]
async fn stopping_finishes_what_runs_and_cuts_what_does_not_end() {
    let echo = Echo::at("/");
    let server = Server::new(Settings::default(), vec![echo.clone()], None).unwrap();
    let address = listen(&server, None).await;
    let asking = tokio::spawn(async move { get(address, "/slow").await });
    echo.arrived.notified().await;
    let stopping = tokio::spawn({
        let server = server.clone();
        async move { server.stop(Duration::from_secs(60)).await }
    });
    while TcpStream::connect(address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!stopping.is_finished(), "a request is still being answered");
    echo.go.notify_one();
    assert_eq!(asking.await.unwrap().0, 200);
    assert_eq!(stopping.await.unwrap(), 0);

    let server = Server::new(Settings::default(), vec![echo.clone()], None).unwrap();
    let address = listen(&server, None).await;
    let asking = tokio::spawn(talk(address, b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"));
    echo.arrived.notified().await;
    assert_eq!(server.stop(Duration::from_millis(10)).await, 1);
    assert_eq!(asking.await.unwrap(), "", "cut off");
}

#[tokio::test]
async fn nobody_holds_a_connection_by_doing_nothing() {
    let settings = Settings {
        opening: Duration::from_millis(50),
        idle: Duration::from_millis(50),
        header_bytes: 8192,
        ..Settings::default()
    };
    let server = Server::new(settings, vec![Echo::at("/")], None).unwrap();
    let address = listen(&server, None).await;
    // Each of these would hang if the server did not close.
    talk(address, b"").await;
    talk(address, b"PRI * HTTP/2").await;
    talk(address, b"GET / HTTP/1.1\r\nhost: x\r\nx-slow-header: never end").await;
    assert!(talk(address, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("200 OK"), "idle after an answer");
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    assert!(!talk(address, long.as_bytes()).await.contains("200 OK"));
}

struct Unwell;
impl Health for Unwell {
    fn alive(&self) -> Result<(), &'static str> {
        Ok(())
    }
    fn ready(&self) -> Result<(), &'static str> {
        Err("starting")
    }
}

#[tokio::test]
async fn operators_tools_get_their_answers() {
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::register(&mut registry));
    let status = Status::new(Arc::new(Unwell), Arc::new(registry), serde_json::json!({ "version": "1" }));
    let front_ends: Vec<Arc<dyn FrontEnd>> = vec![Arc::new(status), Echo::at("/a")];
    let server = Server::new(Settings::default(), front_ends, Some(metrics)).unwrap();
    let address = listen(&server, None).await;
    assert_eq!(get(address, "/healthz").await.1, "ok\n");
    assert_eq!(get(address, "/readyz").await.0, 503);
    assert_eq!(get(address, "/version").await.1, r#"{"version":"1"}"#);
    get(address, "/a/x").await;
    get(address, "/made/up/by/a/caller").await;
    let text = get(address, "/metrics").await.1;
    for line in [
        r#"nephos_api_requests_total{dialect="echo",method="GET",route="/a",code="200"} 1"#,
        r#"nephos_api_requests_total{dialect="none",method="GET",route="none",code="404"} 1"#,
        r#"nephos_api_request_seconds_count{dialect="status",method="GET",route="/readyz"} 1"#,
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(talk(address, b"POST /metrics HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 405"));
}
