//! Prints what the store does on this machine: `cargo run --release -p nephos-store --example bench`.
//!
//! Figures only; nothing here asserts a time. The folder is in `TMPDIR`; durable commits need it on a real disk.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nephos_store::{Author, Bound, Draft, Kind, Kinds, Postgres, Query, Record, Sqlite, Store, Transaction};
use nephos_types::{Id, Labels, NodeId, ProjectId, Result, ServerId};
use serde::{Deserialize, Serialize};

const RECORDS: u64 = 100_000;
const COMMITTERS: u64 = 64;
const READERS: u64 = 2;
const SPAN: Duration = Duration::from_secs(3);

/// About what a server is: half a kilobyte, two indexes.
#[derive(Clone, Serialize, Deserialize)]
struct Server {
    node: NodeId,
    image: String,
    state: String,
    vcpus: u32,
    memory: u64,
    note: String,
}

impl Kind for Server {
    type Id = ServerId;
    const NAME: &'static str = "server";
    const INDEXES: &'static [&'static str] = &["node", "image"];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        vec![if index == "node" { record.body.node.to_string() } else { record.body.image.clone() }]
    }
}

fn id<I: Id>(n: u64) -> I {
    I::from_bits(n)
}

fn draft(n: u64) -> Draft<Server> {
    let body = Server {
        node: id(n % 1000),
        image: format!("image-{}", n % 50),
        state: "active".to_owned(),
        vcpus: 2,
        memory: 4096,
        note: "x".repeat(300),
    };
    let labels = Labels(BTreeMap::from([("tier".to_owned(), format!("t{}", n % 4))]));
    Draft::new(id(n), body).project(id::<ProjectId>(n % 100)).labels(labels)
}

fn transaction() -> Transaction {
    Transaction::new(Author::new("bench").source("bench").operation("bench.run"))
}

fn say(what: &str, value: impl std::fmt::Display) {
    println!("{what:<62} {value:>12}");
}

/// Runs `work` in `tasks` tasks until the time is over; how often a second it ended, and the median time of one.
async fn rate<F>(tasks: u64, work: impl Fn(u64, u64) -> F) -> (f64, Duration)
where
    F: Future<Output = Result<()>> + Send + 'static,
    // Each task gets its number and the number of its round.
{
    let start = Instant::now();
    let mut times = vec![];
    let mut rounds = vec![0; tasks as usize];
    let mut running = tokio::task::JoinSet::new();
    let begin = |task: u64, round: u64, running: &mut tokio::task::JoinSet<_>| {
        let work = work(task, round);
        running.spawn(async move {
            let begin = Instant::now();
            work.await.map(|()| (task, begin.elapsed()))
        });
    };
    for task in 0..tasks {
        begin(task, 0, &mut running);
    }
    while let Some(done) = running.join_next().await {
        let Ok(Ok((task, time))) = done else { continue };
        times.push(time);
        rounds[task as usize] += 1;
        if start.elapsed() < SPAN {
            begin(task, rounds[task as usize], &mut running);
        }
    }
    times.sort();
    (times.len() as f64 / start.elapsed().as_secs_f64(), times.get(times.len() / 2).copied().unwrap_or_default())
}

/// How many times a second `work` runs on all reading threads together.
async fn read_rate(store: &Store, work: fn(&Store, u64)) -> f64 {
    let stop = Arc::new(AtomicBool::new(false));
    let total = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..READERS)
        .map(|reader| {
            let (store, stop, total) = (store.clone(), stop.clone(), total.clone());
            std::thread::spawn(move || {
                let mut n = reader;
                while !stop.load(Ordering::Relaxed) {
                    work(&store, n);
                    n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    total.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    tokio::time::sleep(SPAN).await;
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        let _ = thread.join();
    }
    total.load(Ordering::Relaxed) as f64 / SPAN.as_secs_f64()
}

fn median(times: usize, work: impl Fn(u64)) -> Duration {
    let mut all: Vec<_> = (0..times as u64)
        .map(|n| {
            let start = Instant::now();
            work(n);
            start.elapsed()
        })
        .collect();
    all.sort();
    all[times / 2]
}

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|error| nephos_types::Error::internal("No folder", error))?;
    let path = folder.path().join("store.db");
    let kinds = || Kinds::new().with::<Server>();
    let store = Store::open(Sqlite::open(&path).await?, kinds()).await?;

    let start = Instant::now();
    for first in (0..RECORDS).step_by(1000) {
        let batch = (first..first + 1000).fold(transaction(), |all, n| all.create(draft(n)));
        store.commit(batch).await?;
    }
    say("records created a second, 1,000 a transaction", format!("{:.0}", 100_000.0 / start.elapsed().as_secs_f64()));

    let (alone, median_alone) = rate(1, |_, round| {
        let store = store.clone();
        async move { store.commit(transaction().create(draft(1_000_000 + round))).await.map(drop).map_err(Into::into) }
    })
    .await;
    say("durable commits a second, 1 committer", format!("{alone:.0}"));
    say("  median", format!("{median_alone:.2?}"));

    let step = |task: u64, round: u64| step(store.clone(), task, round);
    let (together, median_together) = rate(COMMITTERS, step).await;
    say("durable commits a second, 64 committers", format!("{together:.0}"));
    say("  median", format!("{median_together:.2?}"));

    let get: fn(&Store, u64) = |store, n| {
        std::hint::black_box(store.get::<Server>(id(n % RECORDS)));
    };
    let gets = read_rate(&store, get).await;
    say("gets a second, 2 threads", format!("{gets:.0}"));
    let (gets, (commits, _)) = tokio::join!(read_rate(&store, get), rate(COMMITTERS, step));
    say("gets a second, 2 threads, during commits", format!("{gets:.0}"));
    say("  commits a second meanwhile, 64 committers", format!("{commits:.0}"));

    let page = |query: Query| {
        let store = &store;
        median(200, move |n| {
            let query = query.clone().after(id::<ServerId>(n * 397)).limit(1000);
            std::hint::black_box(store.list::<Server>(&query));
        })
    };
    say("list 1,000 of 100,000, median", format!("{:.2?}", page(Query::all())));
    say("  by project (1 of 100), median", format!("{:.2?}", page(Query::all().project(id(7)))));
    say(
        "  by node and label, median",
        format!("{:.2?}", page(Query::all().index("node", id::<NodeId>(7)).label("tier", "t3"))),
    );

    let start = Instant::now();
    store.backup(folder.path().join("copy.db")).await?;
    say("backup", format!("{:.2?}", start.elapsed()));
    store.close().await?;
    let start = Instant::now();
    let store = Store::open(Sqlite::open(&path).await?, kinds()).await?;
    say("open with 100,000 records", format!("{:.2?}", start.elapsed()));
    say("  records", store.count::<Server>(&Query::all()));
    store.close().await?;
    if nephos_testkit_postgres::installed() {
        println!("\nthe same on PostgreSQL, on this machine");
        return postgres().await;
    }
    Ok(())
}

/// A workflow's step: a record of its own, read and written again.
async fn step(store: Store, task: u64, round: u64) -> Result<()> {
    let own = id::<ServerId>(2_000_000 + task);
    let transaction = match store.get::<Server>(own) {
        None => transaction().create(draft(2_000_000 + task)),
        Some(record) => transaction().save(record.edit().modify(|body| body.vcpus = u32::try_from(round).unwrap_or(0))),
    };
    store.commit(transaction.add("steps", 1, Bound::Any)).await.map(drop).map_err(Into::into)
}

async fn postgres() -> Result<()> {
    let server = nephos_testkit_postgres::Server::start();
    let url = server.database();
    let open = async || Store::open(Postgres::open(&url).await?, Kinds::new().with::<Server>()).await;
    let stores = [open().await?, open().await?, open().await?];

    let start = Instant::now();
    for first in (0..RECORDS).step_by(1000) {
        let batch = (first..first + 1000).fold(transaction(), |all, n| all.create(draft(n)));
        stores[0].commit(batch).await?;
    }
    say("records created a second, 1,000 a transaction", format!("{:.0}", 100_000.0 / start.elapsed().as_secs_f64()));
    for store in &stores {
        store.catch_up().await?;
    }
    let (alone, median) = rate(1, |task, round| step(stores[0].clone(), task, round)).await;
    say("durable commits a second, 1 committer", format!("{alone:.0}"));
    say("  median", format!("{median:.2?}"));
    let (together, median) = rate(COMMITTERS, |task, round| step(stores[0].clone(), task, round)).await;
    say("durable commits a second, 64 committers", format!("{together:.0}"));
    say("  median", format!("{median:.2?}"));
    let spread = |task: u64, round| step(stores[task as usize % stores.len()].clone(), task, round);
    let (together, median) = rate(COMMITTERS, spread).await;
    say("durable commits a second, 64 committers in 3 processes", format!("{together:.0}"));
    say("  median", format!("{median:.2?}"));
    let (asked, median) = rate(16, |_, _| {
        let store = stores[1].clone();
        async move { store.catch_up().await }
    })
    .await;
    say("times a second that 16 callers see all that was acknowledged", format!("{asked:.0}"));
    say("  median", format!("{median:.2?}"));

    let mut delays = vec![];
    for n in 0..200 {
        let mut watch = stores[1].watch(None);
        stores[0].commit(transaction().create(draft(3_000_000 + n))).await?;
        let begin = Instant::now();
        let _ = watch.next().await;
        delays.push(begin.elapsed());
    }
    delays.sort();
    say("from the answer in one process to the watch in another, median", format!("{:.2?}", delays[delays.len() / 2]));
    for store in &stores {
        store.close().await?;
    }
    let start = Instant::now();
    let store = open().await?;
    say("open with 100,000 records", format!("{:.2?}", start.elapsed()));
    store.close().await
}
