//! Containers: from asking for a server over REST until it is active, and until it asks for a login.

use std::time::Duration;

use futures_util::StreamExt;
use nephos_cli::client::Client;
use nephos_ops::{
    compute::{DeleteServer, ReadConsoleLog},
    node::ListNodes,
};
use nephos_testkit::{CloudProcess, until};
use tokio::time::{Instant, sleep};

use crate::{
    Outcome,
    creating::{active, create, upload},
    figure::{Figure, percentile},
    nephos, settings,
};

const ROUNDS: usize = 10;
/// The micro container's prompt.
const PROMPT: &[u8] = b"login: ";
const LOOK: Duration = Duration::from_millis(1);

pub(crate) async fn run() -> Outcome {
    let cloud = CloudProcess::start(nephos()?, settings(0)).await;
    let nodes = cloud.admin().await.call(ListNodes::default()).await?.items;
    if !nodes.iter().flat_map(|node| &node.drivers).any(|driver| driver.name == "container") {
        eprintln!("no figures of containers: {:?}", nodes.iter().flat_map(|node| &node.missing_drivers).next());
        return Ok(vec![]);
    }
    let image = tokio::task::spawn_blocking(|| nephos_image_build::micro_container(&Default::default(), |_| {}));
    let demo = cloud.demo().await;
    upload(&demo, "box", "tar", &image.await??).await?;
    let (mut first, mut to_active, mut to_login) = (Duration::ZERO, vec![], vec![]);
    for round in 0..=ROUNDS {
        let name = format!("box-{round}");
        let begin = Instant::now();
        let started = create(&demo, &name, "box").await?;
        active(&demo, &started.resource).await?;
        let time = begin.elapsed();
        while !shows_prompt(&demo, &name).await? {
            sleep(LOOK).await;
        }
        let login = begin.elapsed();
        // The first one brings the image to the node and unpacks it.
        if round == 0 {
            first = time;
        } else {
            to_active.push(time);
            to_login.push(login);
        }
        demo.call(DeleteServer { server: name.parse()?, now: false, keep_hours: None }).await?;
        until("the container to be gone", || {
            let gone = cloud.guests().is_empty();
            async move { gone.then_some(()) }
        })
        .await;
    }
    Ok(vec![
        Figure::time("container: server.create to active, p50", percentile(&mut to_active, 0.5)).under(500.0),
        Figure::time("  to its login prompt, p50", percentile(&mut to_login, 0.5)).under(1000.0),
        Figure::time("  to active, the first one of an image on a node", first),
    ])
}

async fn shows_prompt(client: &Client, server: &str) -> Outcome<bool> {
    let mut log = client.download(ReadConsoleLog { server: server.parse()?, bytes: None }).await?.body;
    let mut text = vec![];
    while let Some(chunk) = log.next().await {
        text.extend_from_slice(&chunk?);
    }
    Ok(text.windows(PROMPT.len()).any(|window| window == PROMPT))
}
