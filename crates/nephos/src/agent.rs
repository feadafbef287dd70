//! `nephos agent`: this machine as a node of a control plane elsewhere.

use std::{path::Path, time::Duration};

use clap::{Arg, Command};
use nephos_agent::{Join, RemoteNode};
use nephos_cli::{Invocation, LocalCommand};
use nephos_types::{Error, Result};
use tokio_util::sync::CancellationToken;

use crate::{config, drivers, logging};

pub(crate) fn command() -> LocalCommand {
    LocalCommand {
        noun: None,
        command: config::common(
            Command::new("agent")
                .about("Make this machine a node of a cloud elsewhere, in the foreground")
                .arg(
                    Arg::new("join")
                        .long("join")
                        .value_name("URL")
                        .requires("token")
                        .help("Where the control plane is, further addresses after commas; needed once"),
                )
                .arg(
                    Arg::new("token")
                        .long("token")
                        .env("NEPHOS_JOIN_TOKEN")
                        .hide_env_values(true)
                        .value_name("TOKEN")
                        .requires("join")
                        .help("What `nephos node join-token` printed; needed once"),
                )
                .after_help(
                    "On the control plane, `nephos node join-token` prints the whole command.\n\
                     SIGTERM or Ctrl-C stops the agent; its servers keep running.",
                ),
        ),
        run: |invocation: &Invocation<'_>| {
            let (levels, format) = config::logging(invocation.matches, None);
            logging::start(&levels, format)?;
            let data = config::data_folder(invocation.matches)?.join("node");
            let argument = |name| invocation.matches.get_one::<String>(name);
            let join = match (argument("join"), argument("token")) {
                (Some(url), Some(token)) => Some(Join::parse(url, token)?),
                _ => None,
            };
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .map_err(|error| Error::internal("the program could not be set up", error))?;
            let outcome = runtime.block_on(run(&data, join));
            runtime.shutdown_timeout(Duration::from_millis(200));
            outcome.map(|()| 0)
        },
    }
}

async fn run(data: &Path, join: Option<Join>) -> Result<()> {
    let node = RemoteNode::open(data, join.as_ref()).await?;
    let drivers = drivers::open(data).await?;
    let shutdown = CancellationToken::new();
    let stopping = shutdown.clone();
    tokio::spawn(async move {
        if let Err(error) = crate::up::wait_for_signal().await {
            tracing::error!(error = %error.chain(), "stopping");
        }
        stopping.cancel();
    });
    println!("✔ this machine is node {}; Ctrl-C stops the agent, its servers keep running", node.node());
    let settings = nephos_agent::Config { data: Some(data.to_owned()), ..nephos_agent::Config::default() };
    node.run(settings, drivers, shutdown).await
}
