//! A child process commits at full speed and is killed with SIGKILL, again and again on one file: every acknowledged
//! transaction is there afterwards, and no half of any.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nephos_store::{Bound, Draft, Query, Sqlite, Store};
use nephos_types::{Id, ImageId};

use crate::fixture::{Report, Server, id, kinds, server, tx};

const FILE: &str = "NEPHOS_STORE_CRASH_FILE";
const KILLS: u64 = 100;
const TASKS: u64 = 8;

/// Transaction `n`: two kinds of records, a claim and two counters.
async fn commit(store: &Store, n: u64) {
    let report: ImageId = Id::from_bits(n);
    let transaction = tx()
        .create(server(n, u32::try_from(n % 1000).unwrap()))
        .create(Draft::new(report, Report { beat: n }))
        .claim(format!("n/{n}"), id(n))
        .add("all", 1, Bound::Any)
        .add(format!("by/{}", n % TASKS), 1, Bound::Any);
    store.commit(transaction).await.unwrap();
}

/// The child: commits from where it left off and says each number after it was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by what_a_killed_process_acknowledged_is_kept as a process of its own"]
async fn child() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let store = Store::open(Sqlite::open(PathBuf::from(file)).await.unwrap(), kinds()).await.unwrap();
    let start = store.list::<Server>(&Query::all()).items.last().map_or(0, |last| last.id().bits() / TASKS + 1);
    let mut tasks = vec![];
    for task in 0..TASKS {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            for round in start.. {
                let n = round * TASKS + task;
                commit(&store, n).await;
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
fn run_and_kill(file: &Path, enough: usize) -> Vec<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(FILE, file)
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_acknowledged_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.db");
    let mut acknowledged = BTreeSet::new();
    for kill in 0..KILLS {
        // Sometimes during the first flush after the start, sometimes well under way.
        let enough = usize::try_from(1 + kill * 7 % 30).unwrap();
        let path = file.clone();
        let new = tokio::task::spawn_blocking(move || run_and_kill(&path, enough)).await.unwrap();
        acknowledged.extend(new);

        let store = Store::open(Sqlite::open(&file).await.unwrap(), kinds()).await.unwrap();
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
        assert!(lost.is_empty(), "kill {kill} lost {lost:?}");
        assert_eq!(servers, reports, "kill {kill} left a half");
        assert_eq!(servers, claims, "kill {kill} left a half");
        let count = i64::try_from(servers.len()).unwrap();
        assert_eq!(store.counter("all"), count);
        assert_eq!(store.counters("by/", None, usize::MAX).iter().map(|(_, value)| value).sum::<i64>(), count);
        assert_eq!(store.revision().0, 2 * servers.len() as u64);
        if kill % 10 == 9 {
            let report = store.verify().await.unwrap();
            assert!(report.is_sound() && report.ownerless_claims.is_empty(), "{report:#?}");
        }
        store.close().await.unwrap();
    }
}
