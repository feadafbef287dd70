//! 10,000 simulated nodes that all speak the node protocol, and 100,000 servers that were all asked for over REST.
//! The nodes' agents run in the cloud's process, so its memory includes theirs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use nephos_cli::client::Client;
use nephos_ops::{
    Operation,
    compute::{ListServers, ServerState, ShowServer, UpdateServer},
    node::{ListNodes, NodeState},
    placement::{ListCapacity, LoseNode, ShowCapacity},
    system::WatchEvents,
};
use nephos_testkit::CloudProcess;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    Outcome,
    connection::Connection,
    creating::{active, create, input, ready_project},
    figure::{Figure, percentile},
    nephos, settings, starting,
};

const NODES: u32 = 10_000;
const SERVERS: usize = 100_000;
const CREATORS: usize = 64;
const SAMPLES: usize = 200;
const MIB: f64 = 1024.0 * 1024.0;

pub(crate) async fn run() -> Outcome {
    let mut cloud = CloudProcess::start(nephos()?, settings(NODES)).await;
    let begin = Instant::now();
    let admin = cloud.admin().await;
    while nodes_up(&admin).await? < NODES as usize {
        sleep(Duration::from_millis(200)).await;
    }
    let joined = begin.elapsed();
    let idle = starting::resident(cloud.pid())? / MIB;

    let demo = ready_project(&cloud).await?;
    let asked = ask_for_servers(&demo).await?;
    let settled = all_active(&demo).await?;
    let full = starting::resident(cloud.pid())? / MIB;

    let mut creations = create_some(&demo).await?;
    let mut pages = read_pages(&cloud).await?;
    let mut delays = watch(&demo).await?;
    let reports = [
        report(&admin, input::<ShowCapacity>(json!({ "flavor": "tiny" }))?).await?,
        report(&admin, input::<ListCapacity>(json!({ "flavor": "tiny", "limit": 1000 }))?).await?,
        report(&admin, lose_a_node(&admin).await?).await?,
    ];

    let begin = Instant::now();
    cloud.stop().await;
    let stopped = begin.elapsed();
    let begin = Instant::now();
    cloud.start_again().await;
    let started = begin.elapsed();

    let rate = |time: Duration| SERVERS as f64 / time.as_secs_f64();
    Ok(vec![
        Figure::time("10,000 simulated nodes: from ready to all of them up", joined),
        Figure::amount("  resident memory, their agents included", idle, "MiB"),
        Figure::amount("100,000 servers asked for by 64 at once", rate(asked), "/s"),
        Figure::amount("  until the last is active", rate(asked + settled), "/s"),
        Figure::amount("  resident memory, agents and servers included", full, "MiB"),
        Figure::time("server.create to active among them, p50", percentile(&mut creations, 0.5)).under(20.0),
        Figure::time("  p99", percentile(&mut creations, 0.99)),
        Figure::time("list page of 1,000 of them, p50", percentile(&mut pages, 0.5)).under(20.0),
        Figure::time("  p99", percentile(&mut pages, 0.99)),
        Figure::time("from a change to the watcher's knowing, p50", percentile(&mut delays, 0.5)),
        Figure::time("  p99", percentile(&mut delays, 0.99)),
        Figure::time("capacity.show for a flavor, p50", reports[0]).under(50.0),
        Figure::time("capacity.list, 1,000 nodes a page, p50", reports[1]).under(50.0),
        Figure::time("node.what-if-lost, p50", reports[2]).under(50.0),
        Figure::time("SIGTERM to the end of the process", stopped),
        Figure::time("`nephos up` with all that to /readyz", started),
    ])
}

async fn nodes_up(admin: &Client) -> Outcome<usize> {
    let mut up = 0;
    let mut after = None;
    loop {
        let page = admin.call(input::<ListNodes>(json!({ "limit": 1000, "after": after }))?).await?;
        up += page.items.iter().filter(|node| node.state == NodeState::Up).count();
        match page.items.last() {
            Some(last) if page.next.is_some() => after = Some(last.id),
            _ => return Ok(up),
        }
    }
}

/// Asks for all servers, 64 at once; returns how long the asking took.
async fn ask_for_servers(demo: &Client) -> Outcome<Duration> {
    let begin = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut creators = JoinSet::new();
    for _ in 0..CREATORS {
        let (next, demo) = (next.clone(), demo.clone());
        creators.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= SERVERS {
                    return Outcome::Ok(());
                }
                create(&demo, &format!("server-{number}"), "blank").await?;
            }
        });
    }
    while let Some(ended) = creators.join_next().await {
        ended??;
    }
    Ok(begin.elapsed())
}

/// Waits until all servers are active.
async fn all_active(demo: &Client) -> Outcome<Duration> {
    let begin = Instant::now();
    let mut after = None;
    loop {
        let page = demo.call(input::<ListServers>(json!({ "limit": 1000, "after": after }))?).await?;
        if let Some(failed) = page.items.iter().find(|server| server.state == ServerState::Error) {
            return Err(format!("server {} failed: {:?}", failed.name, failed.fault).into());
        }
        if page.items.iter().any(|server| server.state != ServerState::Active) {
            sleep(Duration::from_millis(100)).await;
            continue;
        }
        match page.items.last() {
            Some(last) if page.next.is_some() => after = Some(last.id),
            _ => return Ok(begin.elapsed()),
        }
    }
}

/// Creates a few more, one after the other.
async fn create_some(demo: &Client) -> Outcome<Vec<Duration>> {
    let mut times = vec![];
    for number in 0..SAMPLES {
        let begin = Instant::now();
        let started = create(demo, &format!("late-{number}"), "blank").await?;
        active(demo, &started.resource).await?;
        times.push(begin.elapsed());
    }
    Ok(times)
}

/// How long a report takes, p50.
async fn report<O>(admin: &Client, question: O) -> Outcome<Duration>
where
    O: Operation + Clone,
    O::Output: DeserializeOwned,
{
    let mut times = vec![];
    for _ in 0..SAMPLES {
        let begin = Instant::now();
        admin.call(question.clone()).await?;
        times.push(begin.elapsed());
    }
    Ok(percentile(&mut times, 0.5))
}

/// The question what would become of some node's servers.
async fn lose_a_node(admin: &Client) -> Outcome<LoseNode> {
    let node = admin.call(input::<ListNodes>(json!({ "limit": 1 }))?).await?.items.pop().ok_or("there is no node")?;
    input::<LoseNode>(json!({ "node": node.id }))
}

async fn read_pages(cloud: &CloudProcess) -> Outcome<Vec<Duration>> {
    let token = cloud.demo_token().await;
    let mut connection = Connection::open(cloud, "/v1/servers?limit=1000", Some(&token)).await?;
    let mut times = vec![];
    for _ in 0..SAMPLES {
        times.push(connection.ask().await?.0);
    }
    Ok(times)
}

/// From asking for a change until a watcher is told. Nothing else changes meanwhile.
async fn watch(demo: &Client) -> Outcome<Vec<Duration>> {
    let server = demo.call(input::<ShowServer>(json!({ "server": "late-0" }))?).await?.id.to_string();
    let mut events = demo.events(input::<WatchEvents>(json!({ "kind": "server" }))?).await?;
    let mut times = vec![];
    for number in 0..SAMPLES {
        let change = input::<UpdateServer>(json!({ "server": server, "labels": { "bench": number.to_string() } }))?;
        let begin = Instant::now();
        let changing = tokio::spawn({
            let demo = demo.clone();
            async move { demo.call(change).await }
        });
        loop {
            let event = events.0.next().await.ok_or("the stream of events ended")??;
            if event.data.contains(&server) {
                break;
            }
        }
        times.push(begin.elapsed());
        changing.await??;
    }
    Ok(times)
}
