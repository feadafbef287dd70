//! Random operations through a load balancer while controllers, agents and PostgreSQL are killed: a ledger that the test
//! keeps and the database agree in the end.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use nephos_cli::client::{Client, is_unreachable};
use nephos_driver::simulated::{Behaviour, Verb};
use nephos_ops::{
    Operation, Started,
    compute::{DeleteServer, ListServers, Server, ServerState, ShowQuota, ShowServer, StartServer, StopServer},
    node::ListNodes,
    workflow::{ListWorkflows, ShowWorkflow, Workflow, WorkflowState},
};
use nephos_testkit::until;
use nephos_types::{Error, ErrorKind, ServerId, WorkflowId};
use rand::RngExt;
use serde::de::DeserializeOwned;

use super::plane::Plane;
use crate::help::{blank_image, create_server};

/// Operations in all; the whole figure of 2,000 is for a machine with time.
const OPERATIONS: &str = "NEPHOS_LEDGER_OPERATIONS";
const FEWER: u64 = 150;
const WORKERS: u64 = 6;
/// Servers of one worker: together more than the quota has room for.
const MOST: usize = 4;

/// What has been acknowledged.
#[derive(Default)]
struct Ledger {
    /// What must exist, and whether it was left running.
    servers: BTreeMap<String, (ServerId, bool)>,
    /// How many were made in all.
    made: u64,
    removed: Vec<ServerId>,
}

/// Whether the outcome of a call is open: nobody has said yes or no.
fn is_open(error: &Error) -> bool {
    is_unreachable(error) || matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::RateLimited)
}

/// Asks until somebody says yes or no.
async fn decided<O>(client: &Client, input: O) -> Result<O::Output, Error>
where
    O: Operation + Clone,
    O::Output: DeserializeOwned,
{
    loop {
        match client.call(input.clone()).await {
            Err(error) if is_open(&error) => tokio::time::sleep(Duration::from_millis(100)).await,
            decided => return decided,
        }
    }
}

async fn outcome(client: &Client, workflow: WorkflowId) -> Workflow {
    until("a workflow to end", || async move {
        let run = decided(client, ShowWorkflow { workflow }).await.unwrap();
        run.state.is_final().then_some(run)
    })
    .await
}

async fn look(client: &Client, name: &str) -> Option<Server> {
    match decided(client, ShowServer { server: name.parse().unwrap() }).await {
        Ok(server) => Some(server),
        Err(error) if error.kind == ErrorKind::NotFound => None,
        Err(error) => panic!("{name}: {error:?}"),
    }
}

/// Waits until nothing is being done to a server; an attempt whose answer was lost may have begun something.
async fn at_rest(client: &Client, name: &str) -> Option<Server> {
    until("a server to come to rest", || async move {
        match look(client, name).await {
            Some(server) if server.task.is_some() => None,
            other => Some(other),
        }
    })
    .await
}

async fn create(client: &Client, ledger: &Mutex<Ledger>, name: &str) {
    let created = match decided(client, create_server(name, "blank")).await {
        Ok(Started { workflow, resource: _, .. }) => {
            // Whoever is told of it finds it everywhere.
            assert!(look(client, name).await.is_some(), "{name} was acknowledged and is not there");
            let run = outcome(client, workflow).await;
            assert_eq!(run.state, WorkflowState::Succeeded, "{run:#?}");
            true
        }
        // A former attempt, whose answer was lost.
        Err(error) if error.code == "name_taken" => true,
        Err(error) if matches!(error.kind, ErrorKind::Quota | ErrorKind::Capacity) => false,
        Err(error) => panic!("{name}: {error:?}"),
    };
    let there = at_rest(client, name).await;
    assert_eq!(there.is_some(), created, "{name}");
    if let Some(server) = there {
        assert_eq!(server.state, ServerState::Active, "{server:#?}");
        let mut ledger = ledger.lock().unwrap();
        ledger.made += 1;
        assert!(ledger.servers.insert(name.to_owned(), (server.id, true)).is_none());
    }
}

async fn delete(client: &Client, ledger: &Mutex<Ledger>, name: &str) {
    match decided(client, DeleteServer { server: name.parse().unwrap(), now: false, keep_hours: None }).await {
        Ok(Started { workflow, .. }) => {
            let run = outcome(client, workflow).await;
            assert_eq!(run.state, WorkflowState::Succeeded, "{run:#?}");
        }
        Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Conflict) => {}
        Err(error) => panic!("{name}: {error:?}"),
    }
    until("the server to be gone", || async move { look(client, name).await.is_none().then_some(()) }).await;
    let mut ledger = ledger.lock().unwrap();
    let (id, _) = ledger.servers.remove(name).unwrap();
    ledger.removed.push(id);
}

async fn power(client: &Client, ledger: &Mutex<Ledger>, name: &str, on: bool) {
    let server = name.parse().unwrap();
    let answer = if on {
        decided(client, StartServer { server }).await
    } else {
        decided(client, StopServer { server, hard: true, grace_seconds: None }).await
    };
    match answer {
        Ok(Started { workflow, .. }) => {
            let run = outcome(client, workflow).await;
            assert_eq!(run.state, WorkflowState::Succeeded, "{run:#?}");
        }
        // It is so already, or a former attempt is at it.
        Err(error) if error.kind == ErrorKind::Conflict => {}
        Err(error) => panic!("{name}: {error:?}"),
    }
    let server = at_rest(client, name).await.unwrap();
    assert_eq!(server.state == ServerState::Active, on, "{server:#?}");
    ledger.lock().unwrap().servers.get_mut(name).unwrap().1 = on;
}

async fn work(worker: u64, client: Client, ledger: Arc<Mutex<Ledger>>, left: Arc<AtomicU64>) {
    let mut mine: Vec<(String, bool)> = vec![];
    for round in 0.. {
        if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return;
        }
        let roll = rand::rng().random_range(0..10);
        let chosen = if mine.is_empty() { None } else { Some(rand::rng().random_range(0..mine.len())) };
        match chosen {
            Some(index) if roll < 3 || mine.len() >= MOST => {
                let (name, _) = mine.swap_remove(index);
                delete(&client, &ledger, &name).await;
            }
            Some(index) if roll < 6 => {
                let (name, on) = &mut mine[index];
                *on = !*on;
                power(&client, &ledger, name, *on).await;
            }
            _ => {
                let name = format!("w{worker}-{round}");
                create(&client, &ledger, &name).await;
                if ledger.lock().unwrap().servers.contains_key(&name) {
                    mine.push((name, true));
                }
            }
        }
    }
}

/// Kills one thing after another until it is told to stop; answers how often.
async fn havoc(plane: &mut Plane, stop: &AtomicBool) -> (u32, u32, u32) {
    let mut kills = (0, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let pause = rand::rng().random_range(500..2500);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        match rand::rng().random_range(0..6) {
            0..3 => {
                let number = rand::rng().random_range(0..plane.controllers.len());
                plane.controllers[number].kill();
                let dead_for = rand::rng().random_range(0..3000);
                tokio::time::sleep(Duration::from_millis(dead_for)).await;
                plane.controllers[number].start_again().await;
                kills.0 += 1;
            }
            3 => {
                let server = plane.server.clone();
                let hard = rand::rng().random_bool(0.5);
                let again = move || {
                    if hard {
                        server.kill();
                    } else {
                        server.stop_immediately();
                    }
                    server.run();
                };
                tokio::task::spawn_blocking(again).await.unwrap();
                kills.1 += 1;
            }
            _ => {
                let number = rand::rng().random_range(0..plane.machines.len());
                plane.machines[number].kill_agent();
                let dead_for = rand::rng().random_range(0..2000);
                tokio::time::sleep(Duration::from_millis(dead_for)).await;
                plane.machines[number].start_agent().await;
                kills.2 += 1;
            }
        }
    }
    kills
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_and_the_database_agree_whoever_is_killed() {
    let mut plane = Plane::start(3, 3).await;
    blank_image(&plane.demo(0).await, "blank").await;
    for machine in &plane.machines {
        for verb in [Verb::Define, Verb::Start, Verb::Stop, Verb::Remove] {
            let behaviour = Behaviour {
                latency: Duration::from_millis(1),
                jitter: Duration::from_millis(20),
                failures_per_million: 30_000,
            };
            machine.host.behave(verb, behaviour);
        }
    }
    let operations = std::env::var(OPERATIONS).ok().and_then(|text| text.parse().ok()).unwrap_or(FEWER);
    let (ledger, left) = (Arc::new(Mutex::new(Ledger::default())), Arc::new(AtomicU64::new(operations)));
    let client = plane.balanced().await;
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        workers.spawn(work(worker, client.clone(), ledger.clone(), left.clone()));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let working = async move {
        while let Some(ended) = workers.join_next().await {
            ended.unwrap();
        }
        stopping.store(true, Ordering::Relaxed);
    };
    let begin = std::time::Instant::now();
    let (kills, ()) = tokio::join!(havoc(&mut plane, &stop), working);
    eprintln!(
        "{operations} operations in {:.0} s; killed: controllers {}, PostgreSQL {}, agents {}",
        begin.elapsed().as_secs_f64(),
        kills.0,
        kills.1,
        kills.2
    );

    let Ledger { servers, made, removed } = std::mem::take(&mut *ledger.lock().unwrap());
    let servers: Vec<_> = servers.into_iter().collect();
    let count = servers.len() as u64;
    for controller in 0..plane.controllers.len() {
        let (demo, admin) = (plane.demo(controller).await, plane.admin(controller).await);
        until("nothing to go on", || async {
            let open: ListWorkflows = serde_json::from_value(serde_json::json!({ "open": true })).unwrap();
            demo.call(open).await.unwrap().items.is_empty().then_some(())
        })
        .await;
        let mut listed: Vec<_> = demo
            .call(ListServers::default())
            .await
            .unwrap()
            .items
            .into_iter()
            .map(|server| (server.name.to_string(), (server.id, server.state == ServerState::Active)))
            .collect();
        listed.sort();
        assert_eq!(listed, servers, "controller {controller}");
        let quota = demo.call(ShowQuota::default()).await.unwrap();
        assert_eq!((quota.servers.used, quota.vcpus.used), (count, count), "controller {controller}");
        assert_eq!(quota.memory_mib.used, count * 256);
        let nodes = admin.call(ListNodes::default()).await.unwrap().items;
        let sum = nodes
            .iter()
            .fold((0, 0, 0), |sum, node| (sum.0 + node.servers, sum.1 + node.vcpus_used, sum.2 + node.memory_mib_used));
        assert_eq!(sum, (count, count, count * 256), "controller {controller}");
    }
    // In the database itself: as many as the ledger has, each made once.
    let name = plane.database.rsplit('/').next().unwrap();
    let sql = |text: &str| plane.server.query(name, text);
    assert_eq!(sql("SELECT count(*) FROM nephos.record WHERE kind = 'server'"), count.to_string());
    let log = "SELECT count(*) FROM nephos.change WHERE kind = 'server' AND action =";
    assert_eq!(sql(&format!("{log} 0")), made.to_string(), "made");
    assert_eq!(sql(&format!("{log} 2")), removed.len().to_string(), "removed");
    // And on the machines: each guest on one, and no others.
    for (name, (id, _)) in &servers {
        let on = plane.machines.iter().filter(|machine| machine.host.spec(*id).is_some()).count();
        assert_eq!(on, 1, "{name} is on {on} machines");
    }
    for id in removed {
        assert!(plane.machines.iter().all(|machine| machine.host.spec(id).is_none()), "{id} was removed");
    }
}
