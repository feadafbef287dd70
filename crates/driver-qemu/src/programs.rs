//! The programs that the driver runs: whether they are there, and which version.

use std::{path::Path, process::Stdio, time::Duration};

use nephos_types::{Error, ErrorKind};
use tokio::{process::Command, time::timeout};

/// What the program says about its version.
pub(crate) async fn first_line(program: &Path) -> Result<String, Error> {
    let missing = |why: String| {
        Error::new(ErrorKind::Unsupported, "qemu_missing", "QEMU cannot be run on this node")
            .detail(why)
            .next("install it", Some("apt-get install --no-install-recommends qemu-system-x86 qemu-utils".to_owned()))
    };
    let name = program.display();
    let running = Command::new(program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match timeout(Duration::from_secs(30), running).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(missing(format!("{name}: {error}"))),
        Err(_) => return Err(missing(format!("{name} does not answer"))),
    };
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// QEMU's version: `7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
pub(crate) async fn version(program: &Path) -> Result<String, Error> {
    let line = first_line(program).await?;
    Ok(line.split_once("version ").map_or(line.as_str(), |(_, version)| version).to_owned())
}

pub(crate) async fn version_of_disk_tool(program: &Path) -> Result<(), Error> {
    first_line(program).await.map(drop)
}
