//! `nephos controller`: the control plane without an agent, on a database that it shares with other controllers.

use std::time::Duration;

use clap::Command;
use nephos_cli::{Invocation, LocalCommand};
use nephos_types::{Error, Result};

use crate::{config, config::Config, logging, up::up};

pub(crate) fn command() -> LocalCommand {
    LocalCommand {
        noun: None,
        command: config::controller(
            Command::new("controller")
                .about("Run a control plane that shares a PostgreSQL database with others, in the foreground")
                .after_help(
                    "Start as many as you like, on one database and behind any load balancer; each answers everything.\n\
                     The first one makes the key to the cloud's secrets (secret.key in its data folder); copy that file to\n\
                     the data folders of the others. Machines that run servers run `nephos agent`.\n\n\
                     Example:\n  \
                       nephos controller --database postgres://nephos@db.example/nephos --listen 192.0.2.10:6780",
                ),
        ),
        run,
    }
}

fn run(invocation: &Invocation<'_>) -> Result<u8> {
    let config = Config::of(invocation.matches)?;
    if config.shared.is_none() {
        return Err(Error::invalid("database_missing", "A controller needs a database to share")
            .next("name it with --database postgres://USER:PASSWORD@HOST/DATABASE", None)
            .next("for a cloud of one process", Some("nephos up".to_owned())));
    }
    logging::start(&config.log, config.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::internal("the program could not be set up", error))?;
    let outcome = runtime.block_on(up(config));
    runtime.shutdown_timeout(Duration::from_millis(200));
    outcome.map(|()| 0)
}
