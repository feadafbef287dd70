//! `nephos backup`: the whole cloud's state into a file, while it runs.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, Command, value_parser};
use nephos_cli::{Invocation, LocalCommand};
use nephos_ops::{Download, system::BackUp};
use nephos_types::{Bytes, Error, Result};
use tokio::io::AsyncWriteExt;
use tokio_util::io::StreamReader;

pub(crate) fn command() -> LocalCommand {
    LocalCommand {
        noun: None,
        command: Command::new("backup")
            .about("Copy the state of the whole cloud into a file, while it runs")
            .arg(
                Arg::new("file")
                    .required(true)
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .help("The archive to write; it holds secrets and is for its owner only"),
            )
            .arg(
                Arg::new("without-images")
                    .long("without-images")
                    .action(ArgAction::SetTrue)
                    .help("Leave out the images' bytes"),
            )
            .after_help(
                "Needs an administrator: nephos --cloud nephos-admin backup cloud.tar\n\
                 `nephos restore FILE` makes a data folder of it. Disks of servers are not in it.",
            ),
        run: |invocation: &Invocation<'_>| {
            let Some(file) = invocation.matches.get_one::<PathBuf>("file") else {
                return Err(Error::bug("the argument parser let a missing file through"));
            };
            let without_images = invocation.matches.get_flag("without-images");
            let bytes = invocation.block_on(async {
                let download = invocation.client().await?.download(BackUp { without_images }).await?;
                save(download, file).await
            })?;
            eprintln!("✔ {} in {}", Bytes(bytes), file.display());
            Ok(0)
        },
    }
}

/// Writes beside the file and renames at the end, so that the name stands for a whole backup only.
async fn save(download: Download, file: &Path) -> Result<u64> {
    let refuse = |error: io::Error| {
        Error::invalid("backup", "The backup could not be written").detail(format!("{}: {error}", file.display()))
    };
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let outcome = async {
        let target = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        let mut target = tokio::fs::File::from_std(target);
        let bytes = tokio::io::copy(&mut StreamReader::new(download.body), &mut target).await?;
        target.flush().await?;
        target.sync_all().await?;
        fs::rename(&part, file)?;
        Ok(bytes)
    }
    .await;
    if outcome.is_err() {
        let _ = fs::remove_file(&part);
    }
    outcome.map_err(refuse)
}
