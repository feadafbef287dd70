//! `nephos restore`: a data folder out of a backup.

use std::{fs::File, io::BufReader, path::PathBuf};

use clap::{Arg, Command, value_parser};
use nephos_cli::{Invocation, LocalCommand};
use nephos_types::{Error, Result};

use crate::config;

pub(crate) fn command() -> LocalCommand {
    LocalCommand {
        noun: None,
        command: config::common(
            Command::new("restore").about("Make a data folder out of a backup").arg(
                Arg::new("file")
                    .required(true)
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .help("The archive that `nephos system backup` wrote"),
            ),
        ),
        run,
    }
}

fn run(invocation: &Invocation<'_>) -> Result<u8> {
    let data = config::data_folder(invocation.matches)?;
    let Some(path) = invocation.matches.get_one::<PathBuf>("file") else {
        return Err(Error::bug("the argument parser let a missing file through"));
    };
    let file = File::open(path).map_err(|error| {
        Error::invalid("restore", format!("{} cannot be read", path.display())).detail(error.to_string())
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| Error::internal("the program could not be set up", error))?;
    let files = runtime.block_on(nephos_cloud::system::restore(BufReader::new(file), &data))?;
    eprintln!("restored {files} files into {}", data.display());
    eprintln!("start the cloud: nephos up --data {}", data.display());
    Ok(0)
}
