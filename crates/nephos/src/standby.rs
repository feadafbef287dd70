//! Waiting until controllers of another version have ended: the operators' routes answer, everything else is refused.

use std::{sync::Arc, time::Duration};

use nephos_cloud::{Succession, Successor};
use nephos_http::{Body, BoxFuture, Exchange, FrontEnd, Server, Status};
use nephos_store::Turn;
use nephos_types::{Error, ErrorKind, Result};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    config::Config,
    up::{Readiness, tls_config, wait_for_signal},
};

/// What `/readyz` says meanwhile.
pub(crate) const WAITING: &str = "waiting for controllers of another version to end";
/// How long requests of the waiting time have to end.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// How long the certificate is good for that is served meanwhile.
const CERTIFICATE_VALID: Duration = Duration::from_secs(7 * 24 * 3600);

/// What is served while waiting.
pub(crate) struct Waiting<'a> {
    pub(crate) config: &'a Config,
    pub(crate) listener: &'a std::net::TcpListener,
    /// The addresses and names that a certificate is needed for; none without TLS.
    pub(crate) names: &'a [String],
    pub(crate) readiness: &'a Arc<Readiness>,
    pub(crate) status: Arc<Status>,
}

impl Waiting<'_> {
    /// Waits until it is this process's turn to write to the database; `None` when it was told to stop.
    pub(crate) async fn turn(self, database: &str) -> Result<Option<Turn>> {
        let mut successor = Successor::new(database, self.config.take_over);
        let signal = std::pin::pin!(wait_for_signal());
        let mut signal = signal;
        let mut serving = None;
        loop {
            match (successor.look().await, &serving) {
                (Ok(Succession::Now(turn)), _) => {
                    if let Some((server, task)) = serving {
                        tracing::info!("the controllers of another version have ended; this one takes over");
                        self.readiness.starting();
                        stop(server, task).await;
                    }
                    return Ok(Some(turn));
                }
                (Ok(Succession::After(others)), None) => {
                    tracing::warn!(
                        others = others.join(", "),
                        "controllers of another version are at work; this one waits until they are stopped, or take over with --take-over"
                    );
                    self.readiness.waiting();
                    serving = Some(self.serve()?);
                }
                (Ok(Succession::After(_)), Some(_)) => {}
                (Err(error), Some(_)) if error.kind == ErrorKind::Unavailable => {
                    tracing::warn!(error = %error.chain(), "waiting for the database");
                }
                (Err(error), _) => return Err(error),
            }
            tokio::select! {
                signalled = &mut signal => return signalled.map(|()| None),
                () = tokio::time::sleep(Successor::EVERY) => {}
            }
        }
    }

    /// Serves the operators' routes. With TLS only by the authority of an earlier start: there are no keys yet.
    fn serve(&self) -> Result<(Server, JoinHandle<Result<()>>)> {
        let front_ends: Vec<Arc<dyn FrontEnd>> = vec![self.status.clone(), Arc::new(NotYet)];
        let server = Server::new(nephos_http::Settings::default(), front_ends, None)?;
        let authority = self.config.data.join("keys/authority");
        let tls = match self.names {
            [] => None,
            _ if !authority.exists() => return Ok((server, tokio::spawn(std::future::ready(Ok(()))))),
            names => {
                let certificate =
                    nephos_auth::Authority::open(&authority)?.server_certificate(names, CERTIFICATE_VALID)?;
                Some(tls_config(&certificate)?)
            }
        };
        let broken = |error| Error::internal("the listener cannot be shared", error);
        let listener = self.listener.try_clone().and_then(TcpListener::from_std).map_err(broken)?;
        let serving = server.clone();
        Ok((server, tokio::spawn(async move { serving.serve(listener, tls).await })))
    }
}

async fn stop(server: Server, task: JoinHandle<Result<()>>) {
    server.stop(STOP_LIMIT).await;
    if let Ok(Err(error)) = task.await {
        tracing::warn!(error = %error.chain(), "nothing was served while waiting");
    }
}

/// Refuses everything for a while.
struct NotYet;

impl FrontEnd for NotYet {
    fn name(&self) -> &'static str {
        "waiting"
    }

    fn prefixes(&self) -> &[&str] {
        &["/"]
    }

    fn handle(&self, exchange: Exchange) -> BoxFuture<'_, http::Response<Body>> {
        let error = Error::new(ErrorKind::Unavailable, "not_its_turn", "This controller waits for others to end")
            .detail("controllers of another version are at work")
            .next("ask one of those", None);
        Box::pin(std::future::ready(nephos_http::error(&error, exchange.id)))
    }
}
