//! The native front end: REST with its OpenAPI document, server-sent events and WebSocket tunnels under `/v1`, and
//! XML-RPC under `/xmlrpc`. All of it is derived from `nephos_ops::table()`; nothing here knows any one operation.
//!
//! Invariants: parse, call, render — no state, no policy, no retries. Every error has the one shape, and every body,
//! depth, count and rate that a caller controls is bounded.
//!
//! Must not know: how anything is done, or by whom it is stored.

mod events;
mod gate;
mod input;
mod openapi;
mod rest;
mod route;
mod tunnel;
mod xmlrpc;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{
    Method, Response, StatusCode,
    header::{ALLOW, HeaderValue},
};
use nephos_http::{Body, BoxFuture, Exchange, FrontEnd, Seen, rate::Limiter};
use nephos_ops::{Cloud, Entry};
use nephos_types::{Error, ErrorKind, Result};

use crate::{gate::Gate, route::Routes, xmlrpc::Methods};

/// The path of the OpenAPI document.
const OPENAPI: &str = "/openapi.json";

/// The front end's bounds.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of a JSON or XML body.
    pub body_bytes: usize,
    /// How long a sender may pause within its body.
    pub pause: Duration,
    /// How often an idle event stream or tunnel says that it is alive.
    pub keep_alive: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { body_bytes: 1024 * 1024, pause: Duration::from_secs(30), keep_alive: Duration::from_secs(15) }
    }
}

/// The native front end.
pub struct Native {
    gate: Gate,
    routes: Routes,
    methods: Methods,
    openapi: Bytes,
    settings: Settings,
}

impl Native {
    /// The front end for these operations: in a cloud `nephos_ops::table()`.
    pub fn new(table: &'static [Entry], cloud: Cloud, limiter: Arc<Limiter>, settings: Settings) -> Result<Self> {
        Ok(Self {
            gate: Gate::new(cloud, limiter),
            routes: Routes::new(table)?,
            methods: Methods::new(table),
            openapi: openapi::document(table, settings.body_bytes).to_string().into(),
            settings,
        })
    }
}

impl FrontEnd for Native {
    fn name(&self) -> &'static str {
        "rest"
    }

    fn prefixes(&self) -> &[&str] {
        &["/v1", OPENAPI, xmlrpc::PATH]
    }

    fn handle(&self, exchange: Exchange) -> BoxFuture<'_, Response<Body>> {
        let path = exchange.request.uri().path();
        if path.starts_with(xmlrpc::PATH) {
            Box::pin(self.xmlrpc(exchange))
        } else if path == OPENAPI {
            Box::pin(std::future::ready(self.openapi(&exchange)))
        } else {
            Box::pin(self.rest(exchange))
        }
    }
}

impl Native {
    fn openapi(&self, exchange: &Exchange) -> Response<Body> {
        let mut response = match self.gate.anonymous(&exchange.peer) {
            Err(error) => nephos_http::error(&error, exchange.id),
            Ok(()) if exchange.request.method() == Method::GET || exchange.request.method() == Method::HEAD => {
                nephos_http::json(StatusCode::OK, self.openapi.clone())
            }
            Ok(()) => {
                let error = Error::new(ErrorKind::MethodNotAllowed, "method_not_allowed", "This path is only read");
                let mut response = nephos_http::error(&error, exchange.id);
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                response
            }
        };
        if exchange.request.method() == Method::HEAD {
            rest::strip(&mut response);
        }
        response.extensions_mut().insert(Seen { route: OPENAPI.into(), ..Seen::default() });
        response
    }
}
