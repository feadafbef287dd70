//! Commits: refusals, bounds on size, many at once.

use std::collections::BTreeMap;

use nephos_store::{Bound, CommitError, Draft, Kind, Kinds, Query, Revision, limits};
use nephos_types::{Error, ErrorKind, Labels, ServerId};
use serde::{Deserialize, Serialize};

use crate::fixture::{Engine, Fixture, Home, Server, both, id, kinds, server, tx};

async fn whoever_read_an_old_record_is_told(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    fixture.store.commit(tx().create(server(1, 0)).claim("name", "a").add("sum", 3, Bound::Any)).await.unwrap();
    let old = fixture.store.get::<Server>(id(1)).unwrap();
    fixture.store.commit(tx().update(&old, Server { size: 1, node: None })).await.unwrap();

    let conflict = CommitError::Conflict { kind: "server".to_owned(), id: id(1).to_string() };
    for stale in [tx().update(&old, old.body.clone()), tx().delete(&old), tx().expect(&old).create(server(2, 0))] {
        assert_eq!(fixture.store.commit(stale).await.unwrap_err(), conflict);
    }
    let exists = CommitError::Exists { kind: "server".to_owned(), id: id(1).to_string() };
    assert_eq!(fixture.store.commit(tx().create(server(1, 0))).await.unwrap_err(), exists);
    let taken = CommitError::Taken { key: "name".to_owned(), owner: "a".to_owned() };
    let both = tx().create(server(2, 0)).then(tx().claim("name", "b"));
    assert_eq!(fixture.store.commit(both).await.unwrap_err(), taken);
    let exceeded = CommitError::Exceeded { counter: "sum".to_owned(), value: 3, amount: 2, limit: 4 };
    let sum = tx().create(server(2, 0)).add("sum", 2, Bound::AtMost(4));
    assert_eq!(fixture.store.commit(sum).await.unwrap_err(), exceeded);

    assert_eq!(fixture.store.revision(), Revision(2));
    assert_eq!(fixture.store.count::<Server>(&Query::all()), 1);
    for (error, kind) in [
        (conflict, ErrorKind::Conflict),
        (exists, ErrorKind::Conflict),
        (taken, ErrorKind::Conflict),
        (exceeded, ErrorKind::Quota),
    ] {
        assert_eq!(Error::from(error).kind, kind);
    }
    fixture.sound().await;
}

async fn an_expectation_that_holds_changes_nothing(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    fixture.store.commit(tx().create(server(1, 0))).await.unwrap();
    let record = fixture.store.get::<Server>(id(1)).unwrap();
    fixture.store.commit(tx().expect(&record).create(server(2, 0))).await.unwrap();
    assert_eq!(fixture.store.commit(tx().expect(&record)).await.unwrap().revision, Revision(2));
    assert_eq!(fixture.store.commit(tx()).await.unwrap().revision, Revision(2));
    assert_eq!(fixture.store.get::<Server>(id(1)).unwrap(), record);
}

#[derive(Clone, Serialize, Deserialize)]
struct Blob(String);

impl Kind for Blob {
    type Id = ServerId;
    const NAME: &'static str = "blob";
    const INDEXES: &'static [&'static str] = &["text"];

    fn index(record: &nephos_store::Record<Self>, _: &str) -> Vec<String> {
        record.body.0.strip_prefix("index ").map(ToOwned::to_owned).into_iter().collect()
    }
}

/// Can be written but not read back.
#[derive(Clone, Serialize, Deserialize)]
struct OneWay {
    ratio: f64,
}

impl Kind for OneWay {
    type Id = ServerId;
    const NAME: &'static str = "one-way";
}

async fn what_is_too_large_or_malformed_is_refused_whole(engine: Engine) {
    let home = Home::new(engine);
    let store = home.open(kinds().with::<Blob>().with::<OneWay>()).await.unwrap();
    let blob = |n, length| Draft::new(id(n), Blob("x".repeat(length)));
    let many_labels = (0..=Labels::MAX).map(|n| (n.to_string(), String::new())).collect::<BTreeMap<_, _>>();

    let kind = |error: CommitError| match error {
        CommitError::Failed(error) => error.kind,
        other => panic!("{other:?}"),
    };
    for (transaction, expected) in [
        (tx().create(blob(1, limits::RECORD_BYTES)), ErrorKind::TooLarge),
        ((0..17).fold(tx(), |all, n| all.create(blob(n, limits::RECORD_BYTES - 1000))), ErrorKind::TooLarge),
        ((0..=1000).fold(tx(), |all, n| all.create(blob(n, 1))), ErrorKind::TooLarge),
        ((0..=1000).fold(tx(), |all, n| all.claim(n.to_string(), "me")), ErrorKind::TooLarge),
        (tx().create(Draft::new(id(1), Blob(format!("index {}", "x".repeat(513))))), ErrorKind::TooLarge),
        (tx().claim("x".repeat(513), "me"), ErrorKind::Invalid),
        (tx().claim("", "me"), ErrorKind::Invalid),
        (tx().claim("a\nb", "me"), ErrorKind::Invalid),
        (tx().claim("a", ""), ErrorKind::Invalid),
        (tx().add("", 1, Bound::Any), ErrorKind::Invalid),
        (tx().create(blob(1, 1)).create(blob(1, 1)), ErrorKind::Internal),
        (tx().create(Draft::new(id(1), OneWay { ratio: f64::NAN })), ErrorKind::Internal),
        (tx().create(server(1, 1).labels(Labels(many_labels))), ErrorKind::Internal),
    ] {
        let shown = format!("{transaction:?}").chars().take(200).collect::<String>();
        assert_eq!(kind(store.commit(transaction).await.unwrap_err()), expected, "{shown}");
    }
    assert_eq!(store.revision(), Revision::ZERO);
    store.commit((0..1000).fold(tx(), |all, n| all.create(blob(n, 1)))).await.unwrap();
    store.commit(tx().create(blob(5000, limits::RECORD_BYTES - 1000))).await.unwrap();
    assert!(store.verify().await.unwrap().is_sound());
}

async fn a_kind_must_be_registered_once(engine: Engine) {
    let home = Home::new(engine);
    let store = home.open(Kinds::new()).await.unwrap();
    let error = store.commit(tx().create(server(1, 0))).await.unwrap_err();
    assert!(error.to_string().contains("`server` is not registered"), "{error}");
    store.close().await.unwrap();

    #[derive(Clone, Serialize, Deserialize)]
    struct Namesake;
    impl Kind for Namesake {
        type Id = ServerId;
        const NAME: &'static str = "server";
    }
    let kinds = Kinds::new().with::<Server>().with::<Namesake>();
    let error = home.open(kinds).await.unwrap_err();
    assert!(error.to_string().contains("one name"), "{error}");
}

/// 64 tasks take from one counter until its bound: exactly as many succeed as fit, and all that fails says why.
async fn sixty_four_at_once_never_oversubscribe(engine: Engine) {
    const LIMIT: i64 = 500;
    let mut fixture = Fixture::new(engine).await;
    let tasks: Vec<_> = (0..64_u64)
        .map(|task| {
            let store = fixture.store.clone();
            tokio::spawn(async move {
                let (mut taken, mut refused) = (0, 0);
                for n in 0..20 {
                    let new = id(task * 1000 + n);
                    let transaction = tx().create(Draft::new(new, Server { size: 1, node: None })).add(
                        "room",
                        1,
                        Bound::AtMost(LIMIT),
                    );
                    match store.commit(transaction).await {
                        Ok(committed) => {
                            taken += 1;
                            // Visible before the answer.
                            assert_eq!(store.get::<Server>(new), committed.record(new));
                            assert!(store.revision() >= committed.revision);
                        }
                        Err(CommitError::Exceeded { value: LIMIT, limit: LIMIT, .. }) => refused += 1,
                        Err(other) => panic!("{other}"),
                    }
                }
                (taken, refused)
            })
        })
        .collect();
    let mut sum = (0, 0);
    for task in tasks {
        let (taken, refused) = task.await.unwrap();
        sum = (sum.0 + taken, sum.1 + refused);
    }
    assert_eq!(sum, (LIMIT, 64 * 20 - LIMIT));
    let stats = fixture.store.stats();
    assert_eq!((stats.committed, stats.refused, stats.failed, stats.waiting), (500, 64 * 20 - 500, 0, 0));
    assert!(stats.batches < 64 * 20, "nobody shared a flush");
    fixture.sound().await;
    fixture.reopen().await;
    assert_eq!(fixture.store.counter("room"), LIMIT);
    assert_eq!(fixture.store.count::<Server>(&Query::all()), 500);
    assert_eq!(fixture.store.revision(), Revision(500));
}

async fn a_commit_whose_caller_left_is_still_decided(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let store = fixture.store.clone();
    let caller = tokio::spawn(async move { store.commit(tx().create(server(1, 0))).await });
    tokio::task::yield_now().await;
    caller.abort();
    let _ = caller.await;
    // Whatever became of it, memory and disk agree, and the next commit works.
    fixture.store.commit(tx().create(server(2, 0))).await.unwrap();
    fixture.sound().await;
}

async fn after_closing_reads_answer_and_commits_fail(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    fixture.store.commit(tx().create(server(1, 0))).await.unwrap();
    let mut watch = fixture.store.watch(None);
    fixture.store.close().await.unwrap();
    assert!(fixture.store.get::<Server>(id(1)).is_some());
    let error = fixture.store.commit(tx().create(server(2, 0))).await.unwrap_err();
    assert_eq!(Error::from(error).kind, ErrorKind::Unavailable);
    assert!(watch.next().await.is_err());
    assert!(fixture.store.close().await.is_err());
}

both!(
    whoever_read_an_old_record_is_told,
    an_expectation_that_holds_changes_nothing,
    what_is_too_large_or_malformed_is_refused_whole,
    a_kind_must_be_registered_once,
    sixty_four_at_once_never_oversubscribe,
    a_commit_whose_caller_left_is_still_decided,
    after_closing_reads_answer_and_commits_fail
);
