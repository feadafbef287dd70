//! From asking for a server over REST until it is active, with the simulated driver, one after the other.

use std::time::Duration;

use nephos_cli::client::{Client, Upload};
use nephos_ops::{
    Started,
    compute::{CreateServer, Server, ServerState, ShowServer, UpdateQuota},
    image::{CreateImage, UploadImage},
};
use nephos_testkit::CloudProcess;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    Outcome,
    figure::{Figure, percentile},
    nephos, settings,
};

const SERVERS: usize = 300;
/// So many are made before it counts.
const WARM_UP: usize = 20;

pub(crate) async fn run() -> Outcome {
    let cloud = CloudProcess::start(nephos()?, settings(4)).await;
    let demo = ready_project(&cloud).await?;
    let mut times = vec![];
    for number in 0..SERVERS + WARM_UP {
        let begin = Instant::now();
        let started = create(&demo, &format!("server-{number}"), "blank").await?;
        active(&demo, &started.resource).await?;
        if number >= WARM_UP {
            times.push(begin.elapsed());
        }
    }
    Ok(vec![
        Figure::time("server.create to active, simulated driver, p50", percentile(&mut times, 0.5)).under(20.0),
        Figure::time("  p99", percentile(&mut times, 0.99)),
    ])
}

/// An input as a program would send it.
pub(crate) fn input<T: serde::de::DeserializeOwned>(value: Value) -> Outcome<T> {
    Ok(serde_json::from_value(value)?)
}

/// A client for `demo`, with quotas that do not matter and the image `blank`.
pub(crate) async fn ready_project(cloud: &CloudProcess) -> Outcome<Client> {
    let demo = cloud.demo().await;
    let raise = json!({ "project": "demo", "servers": 1_000_000, "vcpus": 1_000_000, "memory_mib": 1_000_000_000 });
    cloud.admin().await.call(input::<UpdateQuota>(raise)?).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("blank.raw");
    std::fs::File::create(&file)?.set_len(1 << 20)?;
    upload(&demo, "blank", "raw", &file).await?;
    Ok(demo)
}

/// Uploads an image.
pub(crate) async fn upload(client: &Client, name: &str, format: &str, file: &std::path::Path) -> Outcome<()> {
    client.call(input::<CreateImage>(json!({ "name": name, "format": format }))?).await?;
    client.call_upload(input::<UploadImage>(json!({ "image": name }))?, Upload::file(file).await?).await?;
    Ok(())
}

/// Asks for a server of the smallest flavor.
pub(crate) async fn create(client: &Client, name: &str, image: &str) -> Outcome<Started<Server>> {
    let create = input::<CreateServer>(json!({ "name": name, "image": image, "flavor": "tiny" }))?;
    Ok(client.call(create).await?)
}

/// Waits until a server is active.
pub(crate) async fn active(client: &Client, server: &Server) -> Outcome<()> {
    loop {
        let seen = client.call(ShowServer { server: server.id.to_string().parse()? }).await?;
        match seen.state {
            ServerState::Active => return Ok(()),
            ServerState::Error => return Err(format!("server {} failed: {:?}", seen.name, seen.fault).into()),
            _ => sleep(Duration::from_micros(500)).await,
        }
    }
}
