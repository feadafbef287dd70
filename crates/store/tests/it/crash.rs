//! A child process commits at full speed and is killed with SIGKILL, again and again on one store: every acknowledged
//! transaction is there afterwards, and no half of any. The same when it is the PostgreSQL server that is killed; then
//! nothing may fail either, for nobody is to be told that a commit failed that happened.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nephos_store::{Bound, CommitError, Committed, Draft, Postgres, Query, Sqlite, Store};
use nephos_types::{Id, ImageId};

use crate::fixture::{Report, Server, id, kinds, server, tx};

/// Where the child finds its store: a file or a URL.
const PLACE: &str = "NEPHOS_STORE_CRASH_PLACE";
const KILLS: u64 = 100;
const TASKS: u64 = 8;

/// Transaction `n`: two kinds of records, a claim and two counters.
async fn commit(store: &Store, n: u64) -> Result<Committed, CommitError> {
    let report: ImageId = Id::from_bits(n);
    let transaction = tx()
        .create(server(n, u32::try_from(n % 1000).unwrap()))
        .create(Draft::new(report, Report { beat: n }))
        .claim(format!("n/{n}"), id(n))
        .add("all", 1, Bound::Any)
        .add(format!("by/{}", n % TASKS), 1, Bound::Any);
    store.commit(transaction).await
}

async fn open(place: &str) -> Store {
    if place.starts_with("postgres://") {
        Store::open(Postgres::open(place).await.unwrap(), kinds()).await.unwrap()
    } else {
        Store::open(Sqlite::open(place).await.unwrap(), kinds()).await.unwrap()
    }
}

/// The child: commits from where it left off and says each number after it was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by killed_again_and_again as a process of its own"]
async fn child() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let store = open(&place).await;
    let start = store.list::<Server>(&Query::all()).items.last().map_or(0, |last| last.id().bits() / TASKS + 1);
    let mut tasks = vec![];
    for task in 0..TASKS {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            for round in start.. {
                let n = round * TASKS + task;
                commit(&store, n).await.unwrap();
                // One write call for each line, so that a line is whole or not there.
                if std::io::stdout().write_all(format!("ack {n} .\n").as_bytes()).is_err() {
                    return;
                }
            }
        }));
    }
    for task in tasks {
        let _ = task.await;
    }
}

/// Runs a child until it has acknowledged some more and kills it; answers all that it acknowledged.
fn run_and_kill(place: &str, enough: usize) -> Vec<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(PLACE, place)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut acknowledged = vec![];
    let mut line = vec![];
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).unwrap() == 0 {
            break;
        }
        // The test harness writes to the same pipe without ending its line.
        let text = String::from_utf8_lossy(&line);
        let number = text.split_once("ack ").and_then(|(_, rest)| rest.strip_suffix(" .\n"));
        acknowledged.extend(number.map(|number| number.parse::<u64>().unwrap()));
        if acknowledged.len() == enough {
            // On Unix this is SIGKILL. What the child wrote before stays in the pipe and is read to its end.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(acknowledged.len() >= enough, "the child ended by itself");
    acknowledged
}

/// All that was acknowledged is there, and everything that is there is there whole.
fn assert_whole(store: &Store, acknowledged: &BTreeSet<u64>, when: &str) {
    let servers: BTreeSet<u64> =
        store.list::<Server>(&Query::all()).items.iter().map(|record| record.id().bits()).collect();
    let reports: BTreeSet<u64> =
        store.list::<Report>(&Query::all()).items.iter().map(|record| record.id().bits()).collect();
    let claims: BTreeSet<u64> = store
        .claims("n/", None, usize::MAX)
        .iter()
        .map(|(key, _)| key.trim_start_matches("n/").parse().unwrap())
        .collect();
    let lost: Vec<_> = acknowledged.difference(&servers).collect();
    assert!(lost.is_empty(), "{when} lost {lost:?}");
    assert_eq!(servers, reports, "{when} left a half");
    assert_eq!(servers, claims, "{when} left a half");
    let count = i64::try_from(servers.len()).unwrap();
    assert_eq!(store.counter("all"), count, "{when}");
    assert_eq!(store.counters("by/", None, usize::MAX).iter().map(|(_, value)| value).sum::<i64>(), count, "{when}");
    assert_eq!(store.revision().0, 2 * servers.len() as u64, "{when}");
}

async fn assert_sound(store: &Store) {
    let report = store.verify().await.unwrap();
    assert!(report.is_sound() && report.ownerless_claims.is_empty(), "{report:#?}");
}

async fn killed_again_and_again(place: String) {
    let mut acknowledged = BTreeSet::new();
    for kill in 0..KILLS {
        // Sometimes during the first flush after the start, sometimes well under way.
        let enough = usize::try_from(1 + kill * 7 % 30).unwrap();
        let child = place.clone();
        let new = tokio::task::spawn_blocking(move || run_and_kill(&child, enough)).await.unwrap();
        acknowledged.extend(new);

        let store = open(&place).await;
        assert_whole(&store, &acknowledged, &format!("kill {kill}"));
        if kill % 10 == 9 {
            assert_sound(&store).await;
        }
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_acknowledged_is_kept_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    killed_again_and_again(folder.path().join("store.db").display().to_string()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_acknowledged_is_kept_on_postgresql() {
    killed_again_and_again(nephos_testkit_postgres::shared().database()).await;
}

/// Two stores on one database commit while `strike` hits the server; every commit must succeed, exactly once.
async fn struck(url: &str, strikes: u64, strike: impl Fn(u64) + Send + 'static) {
    let stores = [open(url).await, open(url).await];
    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = vec![];
    for task in 0..TASKS {
        let store = stores[usize::from(task % 2 == 0)].clone();
        let (acknowledged, stop) = (acknowledged.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            for round in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let n = round * TASKS + task;
                let committed = commit(&store, n).await.unwrap();
                // One's own writes, at once.
                assert_eq!(store.get::<Server>(id(n)).map(|record| record.body.size), Some((n % 1000) as u32));
                assert!(committed.revision <= store.revision());
                acknowledged.lock().unwrap().insert(n);
            }
        }));
    }
    let count = || acknowledged.lock().unwrap().len();
    for number in 0..strikes {
        // Each strike meets commits, for there were some since the last one.
        let enough = count() + usize::try_from(3 + number * 5 % 17).unwrap();
        while count() < enough {
            assert!(tasks.iter().all(|task| !task.is_finished()), "a commit failed");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        tokio::task::block_in_place(|| strike(number));
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let acknowledged = acknowledged.lock().unwrap().clone();
    let newest = stores[0].revision().max(stores[1].revision());
    for store in &stores {
        while store.revision() < newest {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_whole(store, &acknowledged, "the server's end");
        // Not one more than was acknowledged: nothing was done twice or after it was given up.
        assert_eq!(store.count::<Server>(&Query::all()), acknowledged.len());
        assert_sound(store).await;
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_loses_and_doubles_nothing() {
    let server = Arc::new(nephos_testkit_postgres::Server::start());
    let url = server.database();
    struck(&url, 12, move |number| {
        if number % 2 == 0 {
            server.kill();
        } else {
            server.stop_immediately();
        }
        server.run();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_lose_and_double_nothing() {
    let server = nephos_testkit_postgres::shared();
    let url = server.database();
    let name = url.rsplit('/').next().unwrap().to_owned();
    struck(&url, 150, move |_| {
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'nephos'";
        let _ = server.query(&name, sql);
    })
    .await;
}
