//! Controllers of another version on the same database.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use nephos_store::{Author, Draft, Kind, Kinds, Postgres, Store, Transaction, Turn};
use nephos_testkit::{CloudProcess, Settings, until};
use nephos_types::{ControllerId, Error};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use super::plane::free_port;
use crate::NEPHOS;

/// The record by which controllers of any version know each other.
#[derive(Clone, Serialize, Deserialize)]
struct Controller {
    name: String,
    node_address: String,
    beats: u64,
}

impl Kind for Controller {
    type Id = ControllerId;
    const NAME: &'static str = "controller";
    const AUDITED: bool = false;
}

/// A controller of an older version: it beats until it is told to stop, then falls silent. Answers why it ended before.
async fn older(database: &str, silent: Arc<AtomicBool>) -> (Store, JoinHandle<Option<Error>>) {
    let backend = Postgres::open_in_turn(database, Turn::new("0.0.9-0123456789ab", None)).await.unwrap();
    let store = Store::open(backend, Kinds::new().with::<Controller>()).await.unwrap();
    let id = ControllerId::new();
    let body = Controller { name: id.to_string(), node_address: "old.example:6782".to_owned(), beats: 1 };
    store.commit(Transaction::new(Author::new("old")).create(Draft::new(id, body))).await.unwrap();
    let beating = store.clone();
    let task = tokio::spawn(async move {
        while !silent.load(Ordering::Relaxed) {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            let record = beating.get::<Controller>(id).unwrap();
            let beat = record.edit().modify(|body| body.beats += 1);
            if let Err(error) = beating.commit(Transaction::new(Author::new("old")).save(beat)).await {
                return Some(error.into());
            }
        }
        None
    });
    (store, task)
}

async fn get(port: u16, path: &str) -> Option<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_controller_waits_until_older_ones_have_ended() {
    let database = nephos_testkit_postgres::shared().database();
    let silent = Arc::new(AtomicBool::new(false));
    let (old, beating) = older(&database, silent.clone()).await;
    let port = free_port();
    let settings = Settings { database: Some(database), ports: (port, free_port()), ..Settings::default() };
    let mut new = CloudProcess::new(NEPHOS, settings);
    new.spawn();
    let ready = until("the newer one to say that it waits", || async {
        get(port, "/readyz").await.filter(|answer| answer.contains("waiting for controllers of another version"))
    })
    .await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    let refused = get(port, "/v1/servers").await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("not_its_turn"), "{refused}");
    assert!(get(port, "/healthz").await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(new.log_text().contains("old.example:6782"), "{}", new.log_text());
    assert!(!beating.is_finished(), "the older one works on");

    // It ends without a word.
    silent.store(true, Ordering::Relaxed);
    assert!(beating.await.unwrap().is_none());
    until("the newer one to be ready", || async {
        get(port, "/readyz").await.filter(|answer| answer.starts_with("HTTP/1.1 200"))
    })
    .await;
    new.demo().await;
    // Should it come back, it writes nothing any more.
    let late = Draft::new(ControllerId::new(), Controller { name: "x".into(), node_address: "x".into(), beats: 1 });
    assert!(old.commit(Transaction::new(Author::new("old")).create(late)).await.is_err());
    assert!(new.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_controller_takes_over_when_it_is_told_to() {
    let database = nephos_testkit_postgres::shared().database();
    let (_old, beating) = older(&database, Arc::default()).await;
    let settings = Settings { database: Some(database), flags: vec!["--take-over".to_owned()], ..Settings::default() };
    let mut new = CloudProcess::start(NEPHOS, settings).await;
    assert!(beating.await.unwrap().is_some(), "the older one cannot write any more");
    new.demo().await;
    assert!(new.stop().await.success());
}
