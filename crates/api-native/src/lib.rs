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
mod rest;
mod route;
mod tunnel;

use std::{sync::Arc, time::Duration};

use hyper::Response;
use nephos_http::{Body, BoxFuture, Exchange, FrontEnd, rate::Limiter};
use nephos_ops::{Cloud, Entry};
use nephos_types::Result;

use crate::{gate::Gate, route::Routes};

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
    settings: Settings,
}

impl Native {
    /// The front end for these operations: in a cloud `nephos_ops::table()`.
    pub fn new(table: &'static [Entry], cloud: Cloud, limiter: Arc<Limiter>, settings: Settings) -> Result<Self> {
        Ok(Self { gate: Gate::new(cloud, limiter), routes: Routes::new(table)?, settings })
    }
}

impl FrontEnd for Native {
    fn name(&self) -> &'static str {
        "rest"
    }

    fn prefixes(&self) -> &[&str] {
        &["/v1"]
    }

    fn handle(&self, exchange: Exchange) -> BoxFuture<'_, Response<Body>> {
        Box::pin(self.rest(exchange))
    }
}
