//! A page of 1,000 of 100,000 servers on 10,000 nodes over REST. The servers are data only; nothing runs them.

use nephos_testkit::CloudProcess;
use tokio::time::Instant;

use crate::{
    Outcome,
    connection::Connection,
    creating::{active, create, ready_project},
    figure::{Figure, percentile},
    nephos, settings, starting,
};

const NODES: usize = 10_000;
const SERVERS: usize = 100_000;
const PAGES: usize = 100;
const MIB: f64 = 1024.0 * 1024.0;

pub(crate) async fn run() -> Outcome {
    let mut cloud = CloudProcess::start(nephos()?, settings(1)).await;
    let demo = ready_project(&cloud).await?;
    active(&demo, &create(&demo, "pattern", "blank").await?.resource).await?;
    cloud.stop().await;
    nephos_cloud::bench::multiply(&cloud.data(), NODES, SERVERS).await?;
    let begin = Instant::now();
    cloud.start_again().await;
    let started = begin.elapsed();
    let token = cloud.demo_token().await;
    let mut connection = Connection::open(&cloud, "/v1/servers?limit=1000", Some(&token)).await?;
    let (mut times, mut size) = (vec![], 0);
    for _ in 0..PAGES {
        let (time, bytes) = connection.ask().await?;
        times.push(time);
        size = bytes;
    }
    Ok(vec![
        Figure::time("list page of 1,000 of 100,000 servers, p50", percentile(&mut times, 0.5)).under(20.0),
        Figure::time("  p99", percentile(&mut times, 0.99)),
        Figure::amount("  size of the page", size as f64 / 1024.0, "KiB"),
        Figure::time("  `nephos up` with these data", started),
        Figure::amount("  resident memory with them", starting::resident(cloud.pid())? / MIB, "MiB"),
    ])
}
