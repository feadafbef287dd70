//! What every backend must do, written against the trait.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::TryStreamExt;
use nephos_store::{
    Action, Author, Backend, Bound, Postgres, Revision, Sqlite,
    backend::{
        Accepted, ChangeFilter, Loaded, RawAdd, RawClaim, RawExpectation, RawRecord, RawTransaction, RawWrite, Refusal,
        Trim,
    },
};
use nephos_types::Timestamp;

/// A place where a backend can be opened again.
trait Place {
    type Engine: Backend;
    async fn open(&self) -> Self::Engine;
    fn backup_file(&self) -> std::path::PathBuf;
    /// A backup is an SQLite file, whatever it was made from.
    async fn open_backup(&self) -> Sqlite {
        Sqlite::open(self.backup_file()).await.unwrap()
    }
}

fn empty() -> RawTransaction {
    RawTransaction {
        author: Arc::new(Author::new("tester")),
        at: Timestamp::from_micros(1_000),
        expectations: vec![],
        writes: vec![],
        claims: vec![],
        adds: vec![],
    }
}

fn write(action: Action, id: &str, expected: u64, data: &str) -> RawWrite {
    RawWrite {
        kind: "thing",
        id: id.to_owned(),
        action,
        expected: Revision(expected),
        project: None,
        data: (action != Action::Deleted).then(|| data.to_owned()),
        audited: true,
    }
}

fn create(id: &str) -> RawWrite {
    write(Action::Created, id, 0, "\"new\"")
}

fn take(key: &str, owner: &str) -> RawClaim {
    RawClaim::Take { key: key.to_owned(), owner: owner.to_owned() }
}

fn release(key: &str, owner: &str) -> RawClaim {
    RawClaim::Release { key: key.to_owned(), owner: owner.to_owned() }
}

fn add(key: &str, amount: i64, bound: Bound) -> RawAdd {
    RawAdd { key: key.to_owned(), amount, bound }
}

async fn apply(backend: &impl Backend, batch: Vec<RawTransaction>) -> Vec<Result<u64, Refusal>> {
    let applied = backend.apply(batch.into_iter().map(Arc::new).collect()).await.unwrap();
    applied.results.into_iter().map(|result| result.map(|Accepted { last }| last.0)).collect()
}

async fn one(backend: &impl Backend, transaction: RawTransaction) -> Result<u64, Refusal> {
    apply(backend, vec![transaction]).await.pop().unwrap()
}

/// Everything, in an order that does not depend on the engine; the position first.
async fn contents(backend: &impl Backend) -> Vec<String> {
    let chunks: Vec<Vec<Loaded>> = backend.load().try_collect().await.unwrap();
    let mut items: Vec<Loaded> = chunks.into_iter().flatten().collect();
    let position = items.remove(0);
    let Loaded::Position { newest, compacted, .. } = position else { panic!("{position:?}") };
    let rest: BTreeSet<String> = items.iter().map(|item| format!("{item:?}")).collect();
    assert_eq!(rest.len(), items.len());
    std::iter::once(format!("{:?}", (newest, compacted))).chain(rest).collect()
}

async fn revisions(backend: &impl Backend, filter: ChangeFilter) -> Vec<u64> {
    backend.changes(filter).await.unwrap().into_iter().map(|change| change.revision.0).collect()
}

fn all() -> ChangeFilter {
    ChangeFilter { limit: 1000, ..ChangeFilter::default() }
}

async fn each_write_gets_the_next_revision(place: &impl Place) {
    let backend = place.open().await;
    let batch = vec![
        RawTransaction { writes: vec![create("a"), create("b")], ..empty() },
        RawTransaction { claims: vec![take("k", "a")], ..empty() },
        RawTransaction { writes: vec![create("a")], ..empty() },
        RawTransaction { writes: vec![create("c")], ..empty() },
    ];
    let exists = Refusal::Exists { kind: "thing".to_owned(), id: "a".to_owned() };
    assert_eq!(apply(&backend, batch).await, [Ok(2), Ok(2), Err(exists), Ok(3)]);
    let log = backend.changes(all()).await.unwrap();
    let seen: Vec<_> = log.iter().map(|change| (change.id.as_str(), change.revision.0, change.commit.0)).collect();
    assert_eq!(seen, [("a", 1, 2), ("b", 2, 2), ("c", 3, 3)]);
    let position = format!("{:?}", (Revision(3), Revision(0)));
    assert_eq!(contents(&backend).await[0], position);
}

async fn later_transactions_of_a_batch_see_earlier_ones(place: &impl Place) {
    let backend = place.open().await;
    let batch = vec![
        RawTransaction { writes: vec![create("a")], ..empty() },
        RawTransaction { writes: vec![write(Action::Updated, "a", 1, "2")], ..empty() },
        RawTransaction { writes: vec![write(Action::Updated, "a", 1, "3")], ..empty() },
        RawTransaction { writes: vec![write(Action::Deleted, "a", 2, "")], ..empty() },
        RawTransaction { writes: vec![create("a")], ..empty() },
    ];
    let conflict = Refusal::Conflict { kind: "thing".to_owned(), id: "a".to_owned() };
    assert_eq!(apply(&backend, batch).await, [Ok(1), Ok(2), Err(conflict), Ok(3), Ok(4)]);
}

async fn a_refused_transaction_leaves_nothing(place: &impl Place) {
    let backend = place.open().await;
    let first = RawTransaction {
        writes: vec![create("a")],
        claims: vec![take("taken", "a")],
        adds: vec![add("sum", 5, Bound::Any)],
        ..empty()
    };
    one(&backend, first).await.unwrap();
    let before = (contents(&backend).await, backend.changes(all()).await.unwrap());

    // Each would write a record, take a claim and add to a counter, but for one thing that stands against it.
    let good = || RawTransaction {
        writes: vec![create("b")],
        claims: vec![take("free", "b")],
        adds: vec![add("sum", 1, Bound::AtMost(6))],
        ..empty()
    };
    let stale = |id: &str, revision| RawExpectation { kind: "thing", id: id.to_owned(), revision: Revision(revision) };
    let conflict = |id: &str| Refusal::Conflict { kind: "thing".to_owned(), id: id.to_owned() };
    let mut cases = vec![];
    cases.push((RawTransaction { expectations: vec![stale("a", 2)], ..good() }, conflict("a")));
    cases.push((RawTransaction { expectations: vec![stale("none", 1)], ..good() }, conflict("none")));
    for (bad, refusal) in [
        (create("a"), Refusal::Exists { kind: "thing".to_owned(), id: "a".to_owned() }),
        (write(Action::Updated, "a", 7, "1"), conflict("a")),
        (write(Action::Deleted, "a", 0, "1"), conflict("a")),
        (write(Action::Updated, "none", 1, "1"), conflict("none")),
    ] {
        let mut case = good();
        case.writes.push(bad);
        cases.push((case, refusal));
    }
    let mut case = good();
    case.claims.push(take("taken", "b"));
    cases.push((case, Refusal::Taken { key: "taken".to_owned(), owner: "a".to_owned() }));
    for (amount, bound, value, limit) in
        [(1, Bound::AtMost(6), 6, 6), (-7, Bound::AtLeast(0), 6, 0), (i64::MAX, Bound::Any, 6, i64::MAX)]
    {
        let mut case = good();
        case.adds.push(add("sum", amount, bound));
        cases.push((case, Refusal::Exceeded { counter: "sum".to_owned(), value, amount, limit }));
    }
    for (case, refusal) in cases {
        assert_eq!(one(&backend, case).await, Err(refusal));
        assert_eq!((contents(&backend).await, backend.changes(all()).await.unwrap()), before);
    }
    assert_eq!(one(&backend, good()).await, Ok(2));
}

async fn claims_have_one_owner(place: &impl Place) {
    let backend = place.open().await;
    let claims = |claims| RawTransaction { claims, ..empty() };
    let taken = |owner: &str| Err(Refusal::Taken { key: "k".to_owned(), owner: owner.to_owned() });
    assert_eq!(one(&backend, claims(vec![take("k", "a"), take("k", "a")])).await, Ok(0));
    assert_eq!(one(&backend, claims(vec![take("k", "a")])).await, Ok(0));
    assert_eq!(one(&backend, claims(vec![release("k", "b"), take("k", "b")])).await, taken("a"));
    // Handed over within one transaction.
    assert_eq!(one(&backend, claims(vec![release("k", "a"), take("k", "b")])).await, Ok(0));
    assert_eq!(one(&backend, claims(vec![take("k", "a")])).await, taken("b"));
    // Taken and given back within one transaction.
    assert_eq!(one(&backend, claims(vec![release("k", "b"), take("k", "c"), release("k", "c")])).await, Ok(0));
    assert_eq!(one(&backend, claims(vec![release("k", "c")])).await, Ok(0));
    assert_eq!(contents(&backend).await.len(), 1);
}

async fn bounds_stand_only_against_steps_towards_them(place: &impl Place) {
    let backend = place.open().await;
    let adds = |adds| RawTransaction { adds, ..empty() };
    assert_eq!(one(&backend, adds(vec![add("n", 10, Bound::Any)])).await, Ok(0));
    assert_eq!(one(&backend, adds(vec![add("n", -2, Bound::AtMost(5))])).await, Ok(0));
    assert_eq!(one(&backend, adds(vec![add("n", 1, Bound::AtLeast(100))])).await, Ok(0));
    // Steps apply in order: 9 + 1 - 10 passes a limit of 10 on its way to nothing.
    assert_eq!(
        one(&backend, adds(vec![add("n", 1, Bound::AtMost(10)), add("n", -10, Bound::AtLeast(0))])).await,
        Ok(0)
    );
    assert_eq!(contents(&backend).await.len(), 1, "a counter at zero is not kept");
}

async fn what_was_acknowledged_is_there_again(place: &impl Place) {
    let backend = place.open().await;
    let transaction = RawTransaction {
        writes: vec![create("a"), create("ä/\"'\u{1f980}")],
        claims: vec![take("k", "a"), take("l", "b")],
        adds: vec![add("n", -3, Bound::Any)],
        ..empty()
    };
    one(&backend, transaction).await.unwrap();
    let before = contents(&backend).await;
    assert_eq!(before.len(), 6);
    backend.close().await.unwrap();
    assert!(backend.apply(vec![Arc::new(empty())]).await.is_err());
    assert!(backend.changes(all()).await.is_err());
    backend.close().await.unwrap();

    let again = place.open().await;
    assert_eq!(contents(&again).await, before);
    assert_eq!(one(&again, RawTransaction { writes: vec![create("c")], ..empty() }).await, Ok(3));
    assert_eq!(again.check().await.unwrap(), Vec::<String>::new());
}

async fn the_log_tells_before_and_after(place: &impl Place) {
    let backend = place.open().await;
    let quiet = |write: RawWrite| RawWrite { audited: false, ..write };
    let owned = |write: RawWrite| RawWrite { project: Some("p".to_owned()), ..write };
    let by = |actor: &str, writes| RawTransaction { author: Arc::new(Author::new(actor)), writes, ..empty() };
    let batch = vec![
        by("ann", vec![create("a"), quiet(create("q"))]),
        by("bob", vec![owned(write(Action::Updated, "a", 1, "2")), quiet(write(Action::Updated, "q", 2, "2"))]),
        by("ann", vec![write(Action::Deleted, "a", 3, "")]),
    ];
    assert_eq!(apply(&backend, batch).await, [Ok(2), Ok(4), Ok(5)]);
    let log = backend.changes(all()).await.unwrap();
    let told: Vec<_> = log
        .iter()
        .map(|c| (c.action, c.before_revision.map(|r| r.0), c.before.as_deref(), c.after.as_deref()))
        .collect();
    assert_eq!(
        told,
        [
            (Action::Created, None, None, Some("\"new\"")),
            (Action::Created, None, None, Some("\"new\"")),
            (Action::Updated, Some(1), Some("\"new\""), Some("2")),
            (Action::Updated, Some(2), None, Some("2")),
            (Action::Deleted, Some(3), Some("2"), None),
        ]
    );
    assert_eq!((log[2].author.actor.as_str(), log[2].project.as_deref()), ("bob", Some("p")));

    let text = |text: &str| Some(text.to_owned());
    for (filter, expected) in [
        (ChangeFilter { after: Revision(3), ..all() }, vec![4, 5]),
        (ChangeFilter { after: Revision(1), before: Some(Revision(4)), ..all() }, vec![2, 3]),
        (ChangeFilter { id: text("a"), ..all() }, vec![1, 3, 5]),
        (ChangeFilter { id: text("a"), newest_first: true, limit: 2, ..all() }, vec![5, 3]),
        (ChangeFilter { project: text("p"), ..all() }, vec![3]),
        (ChangeFilter { actor: text("bob"), id: text("q"), ..all() }, vec![4]),
        (ChangeFilter { kind: text("other"), ..all() }, vec![]),
    ] {
        assert_eq!(revisions(&backend, filter.clone()).await, expected, "{filter:?}");
    }
}

async fn trimming_keeps_the_audit_longer_than_the_feed(place: &impl Place) {
    let backend = place.open().await;
    for n in 0..20_u64 {
        let at = Timestamp::from_micros(i64::try_from(n).unwrap());
        let write = RawWrite { audited: n % 2 == 0, ..create(&format!("t{n:02}")) };
        one(&backend, RawTransaction { at, writes: vec![write], ..empty() }).await.unwrap();
    }
    let nothing = Trim { watch: Revision(0), audit: Revision(0), before: Timestamp::from_micros(0), rows: 100 };
    let trim = async |trim: Trim| {
        let trimmed = backend.trim(trim).await.unwrap();
        assert_eq!(backend.check().await.unwrap(), Vec::<String>::new());
        (trimmed.rows >= trim.rows, trimmed.compacted.0)
    };
    assert_eq!(trim(nothing).await, (false, 0));
    // Revisions 1, 3, 5, … are audited.
    assert_eq!(trim(Trim { watch: Revision(6), ..nothing }).await, (false, 6));
    assert_eq!(revisions(&backend, all()).await[..5], [1, 3, 5, 7, 8]);
    assert_eq!(trim(Trim { watch: Revision(6), audit: Revision(3), ..nothing }).await, (false, 6));
    assert_eq!(revisions(&backend, all()).await[..3], [5, 7, 8]);
    // A few at a time.
    let few = Trim { watch: Revision(12), rows: 3, ..nothing };
    let mut more = (true, 0);
    while more.0 {
        more = trim(few).await;
    }
    assert_eq!(more.1, 12);
    assert_eq!(revisions(&backend, all()).await, [5, 7, 9, 11, 13, 14, 15, 16, 17, 18, 19, 20]);
    // By time: revision n was made at n - 1.
    assert_eq!(trim(Trim { before: Timestamp::from_micros(17), ..nothing }).await, (false, 17));
    assert_eq!(revisions(&backend, all()).await, [18, 19, 20]);
    // Never past the newest, and the order goes on.
    assert_eq!(trim(Trim { watch: Revision(99), audit: Revision(99), ..nothing }).await, (false, 20));
    assert_eq!(one(&backend, RawTransaction { writes: vec![create("z")], ..empty() }).await, Ok(21));
}

async fn a_backup_is_one_moment(place: &impl Place) {
    let backend = Arc::new(place.open().await);
    // Each transaction writes a record and raises a counter, so a copy of one moment has as many of one as of the other.
    let writing = async {
        for n in 0..200 {
            let adds = vec![add("n", 1, Bound::Any)];
            one(&*backend, RawTransaction { writes: vec![create(&format!("t{n}"))], adds, ..empty() }).await.unwrap();
        }
    };
    let copying = async {
        while contents(&*backend).await.len() < 20 {}
        backend.backup(place.backup_file()).await.unwrap();
    };
    tokio::join!(writing, copying);
    assert!(backend.backup(place.backup_file()).await.is_err(), "an existing file is not overwritten");

    let copy = place.open_backup().await;
    let chunks: Vec<Vec<Loaded>> = copy.load().try_collect().await.unwrap();
    let (mut records, mut counter) = (0, 0);
    for item in chunks.into_iter().flatten() {
        match item {
            Loaded::Record(RawRecord { .. }) => records += 1,
            Loaded::Counter { value, .. } => counter = value,
            _ => {}
        }
    }
    assert!((18..=200).contains(&records));
    assert_eq!(records, counter);
    assert_eq!(copy.check().await.unwrap(), Vec::<String>::new());
    copy.close().await.unwrap();
}

macro_rules! contract {
    ($engine:ident, $place:expr) => {
        mod $engine {
            contract!(@ $place,
                each_write_gets_the_next_revision, later_transactions_of_a_batch_see_earlier_ones,
                a_refused_transaction_leaves_nothing, claims_have_one_owner,
                bounds_stand_only_against_steps_towards_them, what_was_acknowledged_is_there_again,
                the_log_tells_before_and_after, trimming_keeps_the_audit_longer_than_the_feed, a_backup_is_one_moment
            );
        }
    };
    (@ $place:expr, $($name:ident),*) => {$(
        #[tokio::test]
        async fn $name() {
            super::$name(&$place).await;
        }
    )*};
}

impl Place for tempfile::TempDir {
    type Engine = Sqlite;

    async fn open(&self) -> Sqlite {
        Sqlite::open(self.path().join("store.db")).await.unwrap()
    }

    fn backup_file(&self) -> std::path::PathBuf {
        self.path().join("copy.db")
    }
}

contract!(sqlite, tempfile::tempdir().unwrap());

/// A database of its own, and a folder for its backup.
struct Database {
    url: String,
    folder: tempfile::TempDir,
}

impl Database {
    fn new() -> Self {
        Self { url: nephos_testkit_postgres::shared().database(), folder: tempfile::tempdir().unwrap() }
    }
}

impl Place for Database {
    type Engine = Postgres;

    async fn open(&self) -> Postgres {
        Postgres::open(&self.url).await.unwrap()
    }

    fn backup_file(&self) -> std::path::PathBuf {
        self.folder.path().join("copy.db")
    }
}

contract!(postgres, super::Database::new());
