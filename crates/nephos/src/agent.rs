//! `nephos agent`: this machine as a node of a control plane elsewhere.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Arg, ArgAction, Command};
use nephos_agent::{Ended, Join, Program, RemoteNode};
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
                        .help("Where the control plane is, further addresses after commas; needed once, and when it has moved"),
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
                .arg(
                    Arg::new("proxy")
                        .long("proxy")
                        .env("NEPHOS_PROXY")
                        .hide_env_values(true)
                        .value_name("URL")
                        .help("HTTP proxy on the way there, http://[USER:PASSWORD@]HOST:PORT; needed once; `none` for none any more"),
                )
                .arg(
                    Arg::new("check")
                        .long("check")
                        .action(ArgAction::SetTrue)
                        .help("Only look whether this machine could run as the node that it is, and say so"),
                )
                .after_help(
                    "On the control plane, `nephos node join-token` prints the whole command.\n\
                     The agent only dials out: it works behind NAT, and from an address that changes.\n\
                     SIGTERM or Ctrl-C stops the agent; its servers keep running.",
                ),
        ),
        run: |invocation: &Invocation<'_>| {
            let (levels, format) = config::logging(invocation.matches, None);
            logging::start(&levels, format)?;
            let data = config::data_folder(invocation.matches)?.join("node");
            let argument = |name| invocation.matches.get_one::<String>(name);
            let join = argument("join").map(|url| Join::parse(url, argument("token").map(String::as_str))).transpose()?;
            let way = (join, argument("proxy").cloned());
            let check = invocation.matches.get_flag("check");
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .map_err(|error| Error::internal("the program could not be set up", error))?;
            let outcome = runtime.block_on(run(&data, way, check));
            runtime.shutdown_timeout(Duration::from_millis(200));
            match outcome? {
                Some(program) => Err(become_another(&program)),
                None => Ok(0),
            }
        },
    }
}

/// Goes on as the program that has taken this one's place, with the same arguments and the same process id.
fn become_another(program: &Path) -> Error {
    // What is said here is what was asked for at first; what has been done since is remembered on disk.
    let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).exec();
    Error::internal("The new program could not be run", error)
        .detail(program.display().to_string())
        .next("start the agent again", Some("nephos agent".to_owned()))
}

/// Runs the agent until it is told to stop, or until there is another program to go on as.
async fn run(data: &Path, (join, proxy): (Option<Join>, Option<String>), check: bool) -> Result<Option<PathBuf>> {
    if check {
        // Nothing is joined, moved or kept.
        let node = RemoteNode::open(data, None, None).await?;
        node.check(data).await?;
        println!("✔ this machine is node {}; the control plane takes its calls", node.node());
        return Ok(None);
    }
    let program = Program::of_this_process(check_arguments()).await?;
    let node = RemoteNode::open(data, join.as_ref(), proxy.as_deref()).await?;
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
    let settings = nephos_agent::Config {
        data: Some(data.to_owned()),
        program: Some(program.clone()),
        ..nephos_agent::Config::default()
    };
    match node.run(settings, drivers, shutdown).await? {
        Ended::Stopped => Ok(None),
        Ended::Replaced => Ok(Some(program.path().to_owned())),
    }
}

/// With what another program shows that it works here: as this one was called, but only to look.
fn check_arguments() -> Vec<OsString> {
    std::env::args_os().skip(1).chain([OsString::from("--check")]).collect()
}
