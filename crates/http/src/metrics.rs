//! What the server counts: requests and their times, by dialect, method, route and code.

use std::{borrow::Cow, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// One answered request.
#[derive(Debug)]
pub struct Record<'a> {
    /// `rest`, `xmlrpc`, …
    pub dialect: &'static str,
    /// The HTTP method; `other` for what is not a usual one.
    pub method: &'static str,
    /// The route's pattern.
    pub route: &'a Cow<'static, str>,
    /// The HTTP status.
    pub code: u16,
    /// From the end of the request's headers to the beginning of the answer.
    pub elapsed: Duration,
}

/// Is told of every answered request.
pub trait Observer: Send + Sync + 'static {
    /// A request was answered.
    fn answered(&self, record: &Record<'_>);
    /// The number of open connections changed by this much.
    fn connections(&self, change: i64);
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    dialect: &'static str,
    method: &'static str,
    route: Cow<'static, str>,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TimeLabels {
    dialect: &'static str,
    method: &'static str,
    route: Cow<'static, str>,
}

/// The observer that feeds `/metrics`.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<TimeLabels, Histogram>,
    connections: Gauge,
}

impl Metrics {
    /// Registers `nephos_api_requests_total`, `nephos_api_request_seconds` and `nephos_api_connections`.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| {
                Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
            }),
            connections: Gauge::default(),
        };
        registry.register("nephos_api_requests", "Requests answered", this.requests.clone());
        registry.register("nephos_api_request_seconds", "Time to the beginning of the answer", this.seconds.clone());
        registry.register("nephos_api_connections", "Open connections", this.connections.clone());
        this
    }
}

impl Observer for Metrics {
    fn answered(&self, record: &Record<'_>) {
        let Record { dialect, method, route, code, elapsed } = *record;
        self.requests.get_or_create(&RequestLabels { dialect, method, route: route.clone(), code }).inc();
        self.seconds
            .get_or_create(&TimeLabels { dialect, method, route: route.clone() })
            .observe(elapsed.as_secs_f64());
    }

    fn connections(&self, change: i64) {
        self.connections.inc_by(change);
    }
}
