//! Structured logs on standard error: for people on a terminal, JSON lines otherwise.

use nephos_types::{Error, Result};
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::LogFormat;

/// Starts logging for the process.
pub(crate) fn start(levels: &str, format: LogFormat) -> Result<()> {
    let targets: Targets = levels.parse().map_err(|error| {
        Error::invalid("config", "The log levels are not valid")
            .detail(format!("`{levels}`: {error}"))
            .next("use a level (error, warn, info, debug, trace), or levels per target: info,nephos_cloud=debug", None)
    })?;
    let registry = tracing_subscriber::registry().with(targets);
    let started = match format {
        LogFormat::Pretty => registry.with(fmt::layer().with_writer(std::io::stderr).with_target(false)).try_init(),
        LogFormat::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).with_span_list(false))
            .try_init(),
    };
    started.map_err(|error| Error::internal("logging cannot be started", error))
}
