//! What operators' tools ask without logging in: `/healthz`, `/readyz`, `/version`, `/metrics`.

use std::sync::Arc;

use hyper::{
    Method, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
};
use nephos_types::{Error, ErrorKind};
use prometheus_client::registry::Registry;

use crate::{
    answer,
    body::{self, Body},
    front_end::{BoxFuture, Exchange, FrontEnd, Seen},
};

/// Says how the process is. Answers must be immediate; they say a word, details need a login.
pub trait Health: Send + Sync + 'static {
    /// Whether the process can still do its work; otherwise what ails it.
    fn alive(&self) -> Result<(), &'static str>;
    /// Whether everything that is offered answers; otherwise what is missing.
    fn ready(&self) -> Result<(), &'static str>;
}

/// The front end for operators' tools.
pub struct Status {
    health: Arc<dyn Health>,
    metrics: Arc<Registry>,
    version: serde_json::Value,
}

impl Status {
    /// `version` is the document at `/version`.
    #[must_use]
    pub fn new(health: Arc<dyn Health>, metrics: Arc<Registry>, version: serde_json::Value) -> Self {
        Self { health, metrics, version }
    }

    fn answer(&self, exchange: &Exchange) -> (Response<Body>, &'static str) {
        let request = &exchange.request;
        let (response, route) = match request.uri().path() {
            "/healthz" => (word(self.health.alive()), "/healthz"),
            "/readyz" => (word(self.health.ready()), "/readyz"),
            "/version" => (answer::json(StatusCode::OK, self.version.to_string()), "/version"),
            "/metrics" => (self.metrics(exchange), "/metrics"),
            _ => {
                let error = Error::new(ErrorKind::NotFound, "path_not_found", "No such path");
                return (answer::error(&error, exchange.id), "none");
            }
        };
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let error = Error::new(ErrorKind::MethodNotAllowed, "method_not_allowed", "This path is only read")
                .next("use GET", None);
            let mut refusal = answer::error(&error, exchange.id);
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return (refusal, route);
        }
        (response, route)
    }

    fn metrics(&self, exchange: &Exchange) -> Response<Body> {
        let mut text = String::with_capacity(16 * 1024);
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.metrics) {
            return answer::error(&Error::internal("The metrics could not be rendered", error), exchange.id);
        }
        let mut response = Response::new(body::full(text));
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
        );
        response
    }
}

fn word(state: Result<(), &'static str>) -> Response<Body> {
    let (status, word) = match state {
        Ok(()) => (StatusCode::OK, "ok"),
        Err(word) => (StatusCode::SERVICE_UNAVAILABLE, word),
    };
    let mut response = Response::new(body::full(format!("{word}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

impl FrontEnd for Status {
    fn name(&self) -> &'static str {
        "status"
    }

    fn prefixes(&self) -> &[&str] {
        &["/healthz", "/readyz", "/version", "/metrics"]
    }

    fn handle(&self, exchange: Exchange) -> BoxFuture<'_, Response<Body>> {
        let (mut response, route) = self.answer(&exchange);
        response.extensions_mut().insert(Seen { route: route.into(), ..Seen::default() });
        Box::pin(std::future::ready(response))
    }
}
