//! What the process counts and logs of workflows and requests: the metrics registry and the engine's observers.

use std::sync::Arc;

use nephos_http::Metrics;
use nephos_workflow::{Event, Observer, Point};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, info::Info},
    registry::Registry,
};

use crate::kill_point::KillPoint;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RunLabels {
    kind: String,
    result: String,
}

/// Counts and logs what workflows come to.
struct Workflows {
    runs: Family<RunLabels, Counter>,
}

impl Observer for Workflows {
    fn observe(&self, event: &Event<'_>) {
        let run = event.run;
        let step = event.step.and_then(|step| run.steps.get(step)).map(|step| &*step.name);
        match event.point {
            Point::Settled => {
                let result = format!("{:?}", run.state).to_lowercase();
                self.runs.get_or_create(&RunLabels { kind: run.definition.to_string(), result: result.clone() }).inc();
                tracing::info!(workflow = %run.id, kind = %run.definition, subject = %run.subject, result, "workflow ended");
            }
            point => {
                tracing::debug!(workflow = %run.id, kind = %run.definition, step, point = ?point, "workflow");
            }
        }
    }
}

/// Starts observing: observers for the engine, the registry for `/metrics`, and the HTTP server's own observer.
pub(crate) fn start() -> (Vec<Arc<dyn Observer>>, Arc<Registry>, Metrics) {
    let mut registry = Registry::default();
    let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("nephos_build", "What runs here", build);
    let runs = Family::default();
    registry.register("nephos_workflow_runs", "Workflows that ended, by kind and result", runs.clone());
    let metrics = Metrics::register(&mut registry);
    let mut observers: Vec<Arc<dyn Observer>> = vec![Arc::new(Workflows { runs })];
    if let Some(point) = KillPoint::from_environment() {
        observers.push(Arc::new(point));
    }
    (observers, Arc::new(registry), metrics)
}
