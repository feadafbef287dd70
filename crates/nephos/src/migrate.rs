//! `nephos migrate`: a cloud of one process becomes one of several controllers.

use std::path::PathBuf;

use clap::{Arg, Command, value_parser};
use nephos_cli::{Invocation, LocalCommand};
use nephos_types::{Error, Result};

use crate::config;

pub(crate) fn command() -> LocalCommand {
    LocalCommand {
        noun: None,
        command: Command::new("migrate")
            .about("Move a stopped cloud from its data folder into a PostgreSQL database")
            .arg(
                Arg::new("from")
                    .long("from")
                    .required(true)
                    .value_name("DIR")
                    .value_parser(value_parser!(PathBuf))
                    .help("The data folder; its cloud must be stopped"),
            )
            .arg(
                Arg::new("to")
                    .long("to")
                    .required(true)
                    .value_name("URL")
                    .help("The database, which must hold nothing yet: postgres://USER:PASSWORD@HOST/DATABASE"),
            )
            .arg(
                Arg::new("secret-file")
                    .long("secret-file")
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .help("The key to the cloud's secrets; made if it is not there [default: secret.key in the data folder]"),
            )
            .after_help(
                "Records, claims, counters, the audit trail and the cloud's keys are moved; all of it or nothing. The data\n\
                 folder stays as it is. Afterwards, start the first controller on the same folder, where the images are:\n  \
                   nephos controller --data DIR --database URL",
            ),
        run,
    }
}

fn run(invocation: &Invocation<'_>) -> Result<u8> {
    let missing = || Error::bug("the argument parser let a missing argument through");
    let from = invocation.matches.get_one::<PathBuf>("from").ok_or_else(missing)?;
    let to = invocation.matches.get_one::<String>("to").ok_or_else(missing)?;
    let secret = invocation.matches.get_one::<PathBuf>("secret-file").cloned();
    let secret = secret.unwrap_or_else(|| from.join(config::SECRET));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::internal("the program could not be set up", error))?;
    let moved = runtime.block_on(nephos_cloud::migrate(from, to, &secret))?;
    println!(
        "✔ moved and compared: {} records, {} claims, {} counters, {} entries of the change log",
        moved.records, moved.claims, moved.counters, moved.changes
    );
    println!("start a controller: nephos controller --data {} --database URL", from.display());
    Ok(0)
}
