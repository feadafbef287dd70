//! From the start of the process to `/readyz`, what it then takes, and how large the binary is; and how fast servers
//! start that are containers.

use std::{fs, process::Command, time::Duration};

use nephos_testkit::CloudProcess;
use tokio::time::{Instant, sleep};

use crate::{Outcome, connection::Connection, containers, figure::Figure, nephos, settings};

/// After this long nothing of the start goes on any more.
const SETTLE: Duration = Duration::from_secs(6);
const MIB: f64 = 1024.0 * 1024.0;

pub(crate) async fn run() -> Outcome {
    let binary = nephos()?;
    let begin = Instant::now();
    let mut cloud = CloudProcess::start(&binary, settings(0)).await;
    Connection::open(&cloud, "/readyz", None).await?.ask().await?;
    let first = begin.elapsed();
    sleep(SETTLE).await;
    let resident = resident(cloud.pid())?;

    let mut again = Duration::MAX;
    for _ in 0..3 {
        cloud.stop().await;
        let begin = Instant::now();
        cloud.start_again().await;
        Connection::open(&cloud, "/readyz", None).await?.ask().await?;
        again = again.min(begin.elapsed());
    }
    drop(cloud);
    let mut figures = vec![
        Figure::time("`nephos up` on existing data to /readyz (best of 3)", again).under(1000.0),
        Figure::time("first start on an empty folder to /readyz", first).under(3000.0),
        Figure::amount("resident memory, idle, all in one", resident / MIB, "MiB").under(80.0),
        Figure::amount("binary, stripped", stripped_size(&binary)? / MIB, "MiB").under(60.0),
    ];
    figures.extend(containers::run().await?);
    Ok(figures)
}

/// Resident memory of a process in bytes.
pub(crate) fn resident(pid: u32) -> Outcome<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0)
}

fn stripped_size(binary: &std::path::Path) -> Outcome<f64> {
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("stripped");
    let status = Command::new("strip").arg("-o").arg(&copy).arg(binary).status()?;
    if !status.success() {
        return Err(format!("strip failed: {status}").into());
    }
    Ok(fs::metadata(copy)?.len() as f64)
}
