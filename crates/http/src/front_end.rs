//! The seam between the server and its front ends.

use std::{borrow::Cow, fmt, future::Future, net::SocketAddr, pin::Pin, sync::Arc};

use hyper::{Request, Response, body::Incoming};
use nephos_types::RequestId;
use rustls::pki_types::CertificateDer;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::body::Body;

/// A boxed future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A dialect that the server speaks under some paths.
pub trait FrontEnd: Send + Sync + 'static {
    /// Its name in metrics and logs, e.g. `rest`.
    fn name(&self) -> &'static str;
    /// The paths it serves: `/v1` stands for itself and everything below it; `/` for whatever nobody else serves.
    fn prefixes(&self) -> &[&str];
    /// Answers one request. For the metrics and the access log it may put a [`Seen`] into the answer's extensions.
    fn handle(&self, exchange: Exchange) -> BoxFuture<'_, Response<Body>>;
}

/// One request and what is known around it.
pub struct Exchange {
    /// The request.
    pub request: Request<Incoming>,
    /// Its id; the server puts it into the answer's headers.
    pub id: RequestId,
    /// The other end of the connection.
    pub peer: Arc<Peer>,
    /// Tells when the server stops, and keeps it waiting for work that outlives the answer.
    pub running: Running,
}

/// The other end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Its address; `None` for a stream inside the process.
    pub address: Option<SocketAddr>,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The certificate chain it proved to hold, leaf first; empty if it showed none.
    pub certificates: Vec<CertificateDer<'static>>,
}

impl fmt::Display for Peer {
    /// The address without the port, for audit and throttling.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{}", address.ip().to_canonical()),
            None => f.write_str("internal"),
        }
    }
}

/// The server's life: streams that never end by themselves watch it.
#[derive(Clone, Debug, Default)]
pub struct Running {
    pub(crate) stopping: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl Running {
    /// Ready once the server has begun to stop.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Like [`Self::stopping`], for what outlives the request.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        self.stopping.clone().cancelled_owned()
    }

    /// Runs work that outlives the answer, e.g. an upgraded connection; a stopping server waits for it within its limit.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }
}

/// What a front end tells the metrics and the access log about a request.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The dialect, where one front end speaks several.
    pub dialect: Option<&'static str>,
    /// The route's pattern or the method's name: one of a bounded set, never what a caller made up.
    pub route: Cow<'static, str>,
    /// The status that the answer amounts to, where a protocol tells of failures in a 200.
    pub code: Option<u16>,
    /// Whether the request may have changed something.
    pub changes: bool,
    /// Who asked.
    pub actor: Option<String>,
    /// In which project.
    pub project: Option<String>,
}
