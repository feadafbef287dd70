//! One HTTP request over a connection of its own, to an address that was looked at before it is dialled.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{Request, Response, Uri};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use nephos_types::{Error, ErrorKind, Result};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// How long it may take to look a name up, to dial, and to agree on TLS, each.
const DIAL_WITHIN: Duration = Duration::from_secs(15);
/// How long an answer's beginning may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn unreachable(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unavailable, "url_unreachable", "The URL cannot be reached").detail(detail)
}

/// Host, port and whether it is TLS.
pub(crate) fn target(uri: &Uri) -> Option<(String, u16, bool)> {
    let secure = match uri.scheme_str()? {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some((host, uri.port_u16().unwrap_or(if secure { 443 } else { 80 }), secure))
}

/// Sends a request to a host of which `permitted` says which addresses may be reached.
pub(crate) async fn send<B>(
    request: Request<B>,
    (host, port, secure): (&str, u16, bool),
    permitted: impl Fn(SocketAddr) -> bool,
) -> Result<Response<Incoming>>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let late = |what: &str| unreachable(format!("{host}: {what} took too long"));
    let found = timeout(DIAL_WITHIN, tokio::net::lookup_host((host, port))).await.map_err(|_| late("looking it up"))?;
    let found: Vec<SocketAddr> = found.map_err(|error| unreachable(format!("{host}: {error}")))?.collect();
    let addresses: Vec<SocketAddr> = found.into_iter().filter(|address| permitted(*address)).collect();
    if addresses.is_empty() {
        return Err(Error::new(ErrorKind::Forbidden, "url_not_allowed", "The URL's address may not be reached")
            .detail(format!("`{host}` is inside the cloud's own networks, or special"))
            .next("an operator can allow it: import_allow in nephos.toml", None));
    }
    // What was looked at is what is dialled: the name is not looked up again.
    let dialled = timeout(DIAL_WITHIN, TcpStream::connect(&*addresses)).await.map_err(|_| late("dialling"))?;
    let stream = dialled.map_err(|error| unreachable(format!("{host}: {error}")))?;
    if secure {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| unreachable(format!("{host}: {error}")))?;
        let shaken = TlsConnector::from(tls()?).connect(name, stream);
        let stream = timeout(DIAL_WITHIN, shaken).await.map_err(|_| late("agreeing on TLS"))?;
        exchange(request, stream.map_err(|error| unreachable(format!("{host}: {error}")))?, host).await
    } else {
        exchange(request, stream, host).await
    }
}

async fn exchange<B, S>(request: Request<B>, stream: S, host: &str) -> Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let failed = |error: hyper::Error| unreachable(format!("{host}: {error}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with the answer's body: nothing else is sent here.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %error, "a connection for images ended early");
        }
    });
    let answer = timeout(ANSWER_WITHIN, sender.send_request(request)).await;
    answer.map_err(|_| unreachable(format!("{host} does not answer")))?.map_err(failed)
}

/// TLS as the machine trusts it.
fn tls() -> Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(unreachable("this machine trusts no certificate authority")
            .next("install the package ca-certificates on the control plane's machine", None));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal("TLS cannot be used", error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}
