//! What is PostgreSQL's own: several processes on one database, its schema, the way to it.

use std::time::Duration;

use nephos_store::{Bound, CommitError, Draft, Postgres, Query, Revision, Sqlite, Store, Turn};
use nephos_testkit_postgres::shared;
use nephos_types::ErrorKind;

use crate::fixture::{Engine, Fixture, Report, Server, id, kinds, server, tx};

async fn open(url: &str) -> Store {
    Store::open(Postgres::open(url).await.unwrap(), kinds()).await.unwrap()
}

async fn until(what: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(60), async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn each_process_sees_what_the_others_do() {
    let url = shared().database();
    let (one, other) = (open(&url).await, open(&url).await);
    let mut watch = other.watch(None);
    one.commit(tx().create(server(1, 4)).claim("name", id(1)).add("sum", 3, Bound::Any)).await.unwrap();

    // By itself.
    let change = watch.next().await.unwrap();
    assert_eq!((change.id::<Server>(), change.revision), (Some(id(1)), Revision(1)));
    assert_eq!(change.author.operation, "test.run");
    assert_eq!(other.get::<Server>(id(1)), one.get::<Server>(id(1)));
    until(|| other.owner("name") == Some(id(1).to_string()) && other.counter("sum") == 3).await;
    assert_eq!(other.list::<Server>(&Query::all().index("parity", "even")).items.len(), 1);

    // What was before is told as well, and indexes follow.
    let record = other.get::<Server>(id(1)).unwrap();
    other.commit(tx().save(record.edit().modify(|body| body.size = 5)).release("name", id(1))).await.unwrap();
    let mut behind = one.watch(Some(Revision(1)));
    let change = behind.next().await.unwrap();
    assert_eq!((change.before::<Server>().unwrap().body.size, change.after::<Server>().unwrap().body.size), (4, 5));
    assert_eq!(one.list::<Server>(&Query::all().index("parity", "even")).items.len(), 0);
    until(|| one.owner("name").is_none()).await;

    // Counters that go back to nothing, and kinds that are not audited.
    let report = nephos_types::Id::from_bits(9);
    one.commit(tx().create(Draft::new(report, Report { beat: 1 })).add("sum", -3, Bound::AtLeast(0))).await.unwrap();
    until(|| other.get::<Report>(report).is_some() && other.counters("", None, 9).is_empty()).await;
    for store in [&one, &other] {
        assert!(store.verify().await.unwrap().is_sound());
    }
}

/// Whoever is told by one process finds it in another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_catches_up_sees_all_that_was_acknowledged_before() {
    let url = shared().database();
    let (one, other) = (open(&url).await, open(&url).await);
    let tasks: Vec<_> = (0..8_u64)
        .map(|task| {
            let (one, other) = (one.clone(), other.clone());
            tokio::spawn(async move {
                for n in 0..50 {
                    let new = id(task * 1000 + n);
                    one.commit(tx().create(Draft::new(new, Server { size: 1, node: None }))).await.unwrap();
                    other.catch_up().await.unwrap();
                    assert!(other.get::<Server>(new).is_some());
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!((one.followed(), other.followed() > 0), (0, true));
}

/// A refusal can rest on what another process just did; whoever is refused must be able to read that at once, or would
/// decide on the same again.
#[tokio::test]
async fn whoever_is_refused_can_read_why() {
    let url = shared().database();
    let (one, other) = (open(&url).await, open(&url).await);
    one.commit(tx().create(server(1, 0))).await.unwrap();
    until(|| other.get::<Server>(id(1)).is_some()).await;
    for round in 0..200_u32 {
        let record = one.get::<Server>(id(1)).unwrap();
        let stale = other.get::<Server>(id(1)).unwrap();
        let key = format!("key/{round}");
        one.commit(tx().update(&record, Server { size: round + 1, node: None }).claim(&key, "one").add(
            "n",
            1,
            Bound::Any,
        ))
        .await
        .unwrap();
        let refused = other.commit(tx().update(&stale, stale.body.clone())).await;
        if let Err(error) = refused {
            assert!(error.is_conflict(), "{error}");
            assert_eq!(other.get::<Server>(id(1)).unwrap().body.size, round + 1);
        } else {
            panic!("a stale update went through");
        }
        let taken = other.commit(tx().claim(&key, "other")).await.unwrap_err();
        assert_eq!(taken, CommitError::Taken { key: key.clone(), owner: "one".to_owned() });
        assert_eq!(other.owner(&key).as_deref(), Some("one"));
        let over = other.commit(tx().add("n", 1, Bound::AtMost(i64::from(round) + 1))).await.unwrap_err();
        assert!(matches!(over, CommitError::Exceeded { .. }));
        assert_eq!(other.counter("n"), i64::from(round) + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_watchers_in_all_processes_see_one_order() {
    const EACH: u64 = 60;
    const STORES: u64 = 3;
    let url = shared().database();
    let mut stores = vec![];
    for _ in 0..STORES {
        stores.push(open(&url).await);
    }
    let followers: Vec<_> = stores
        .iter()
        .map(|store| {
            let mut watch = store.watch(Some(Revision::ZERO));
            tokio::spawn(async move {
                let mut seen = vec![];
                while seen.len() < usize::try_from(STORES * 4 * EACH * 2).unwrap() {
                    let change = watch.next().await.unwrap();
                    seen.push((change.revision, change.commit, change.id.clone()));
                }
                seen
            })
        })
        .collect();
    let writers: Vec<_> = (0..STORES * 4)
        .map(|writer| {
            let store = stores[usize::try_from(writer % STORES).unwrap()].clone();
            tokio::spawn(async move {
                for n in 0..EACH {
                    let n = writer * 1000 + n * 2;
                    let add = tx().create(server(n, 0)).create(server(n + 1, 0)).add("room", 1, Bound::AtMost(1000));
                    store.commit(add).await.unwrap();
                    assert!(store.get::<Server>(id(n + 1)).is_some());
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut orders = vec![];
    for follower in followers {
        orders.push(follower.await.unwrap());
    }
    assert!(orders[0].iter().zip(1..).all(|((revision, ..), due)| revision.0 == due));
    assert!(orders.iter().all(|order| *order == orders[0]));
    for store in stores {
        assert_eq!(store.counter("room"), i64::try_from(STORES * 4 * EACH).unwrap());
        assert!(store.verify().await.unwrap().is_sound());
        store.close().await.unwrap();
    }
}

/// 64 tasks in three processes take from one counter until its bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn together_they_never_oversubscribe() {
    const LIMIT: i64 = 300;
    let url = shared().database();
    let stores = [open(&url).await, open(&url).await, open(&url).await];
    let tasks: Vec<_> = (0..64_u64)
        .map(|task| {
            let store = stores[usize::try_from(task % 3).unwrap()].clone();
            tokio::spawn(async move {
                let mut taken = 0;
                for n in 0..10 {
                    let add = tx().create(server(task * 1000 + n, 1)).add("room", 1, Bound::AtMost(LIMIT));
                    match store.commit(add).await {
                        Ok(_) => taken += 1,
                        Err(CommitError::Exceeded { value: LIMIT, limit: LIMIT, .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
                taken
            })
        })
        .collect();
    let mut sum = 0;
    for task in tasks {
        sum += task.await.unwrap();
    }
    assert_eq!(sum, LIMIT);
    for store in stores {
        until(|| store.counter("room") == LIMIT && store.count::<Server>(&Query::all()) == 300).await;
    }
}

#[tokio::test]
async fn a_database_from_the_future_is_refused() {
    let url = shared().database();
    Postgres::open(&url).await.unwrap();
    let name = url.rsplit('/').next().unwrap();
    let _ = shared().query(name, "UPDATE nephos.format SET version = 999");
    assert_eq!(Postgres::open(&url).await.err().unwrap().code, "newer_data");
}

#[tokio::test]
async fn what_cannot_be_reached_is_said() {
    let error = Postgres::open(&shared().url("none")).await.err().unwrap();
    assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Invalid, "database_refused"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = Postgres::open(&format!("postgres://u:secret@127.0.0.1:{port}/d")).await.err().unwrap();
    assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Unavailable, "database_unreachable"));
    assert!(!error.chain().contains("secret") && !error.next.is_empty());
}

/// The connection is encrypted, and only with the server that the authority vouches for.
#[tokio::test]
async fn the_server_must_prove_who_it_is() {
    let signed = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (right, wrong) = (file("right.pem", signed.cert.pem()), file("wrong.pem", other.cert.pem()));
    let encrypting =
        nephos_testkit_postgres::Server::start_encrypted(&signed.cert.pem(), &signed.signing_key.serialize_pem());
    let name = encrypting.database().rsplit('/').next().unwrap().to_owned();
    let url = encrypting.url_by_port(&name);
    let encrypted = || {
        let sql =
            "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'nephos'";
        encrypting.query(&name, sql)
    };
    let refused = Postgres::open(&format!("{url}?sslmode=verify-full&sslrootcert={wrong}")).await.err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused:?}");
    let by_name = url.replace("127.0.0.1", "localhost");
    let refused = Postgres::open(&format!("{by_name}?sslmode=require&sslrootcert={right}")).await.err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused:?}");

    let store = open(&format!("{url}?sslmode=require&sslrootcert={right}")).await;
    store.commit(tx().create(server(1, 0))).await.unwrap();
    assert_eq!(encrypted(), "t");
    store.close().await.unwrap();
    let store = open(&url).await;
    assert!(store.get::<Server>(id(1)).is_some());
    store.close().await.unwrap();
}

/// A server that settles for less than the disk is told otherwise.
#[tokio::test]
async fn commits_are_on_disk_whatever_the_server_was_set_to() {
    let url = shared().database();
    let name = url.rsplit('/').next().unwrap();
    let _ = shared().query(name, &format!("ALTER DATABASE {name} SET synchronous_commit = off"));
    let store = open(&url).await;
    let _ = shared().query(
        name,
        "CREATE TABLE public.seen (setting text);
         CREATE FUNCTION public.look() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO public.seen VALUES (current_setting(''synchronous_commit'')); RETURN NULL; END';
         CREATE TRIGGER look AFTER INSERT ON nephos.batch EXECUTE FUNCTION public.look()",
    );
    store.commit(tx().create(server(1, 0))).await.unwrap();
    assert_eq!(shared().query(name, "SELECT DISTINCT setting FROM public.seen"), "on");
}

#[tokio::test]
async fn who_cannot_follow_any_more_says_so() {
    let url = shared().database();
    let name = url.rsplit('/').next().unwrap();
    let store = open(&url).await;
    store.commit(tx().create(server(1, 0))).await.unwrap();
    let mut watch = store.watch(None);
    // A kind that only a newer version knows.
    let _ = shared().query(
        name,
        "SET search_path = nephos;
         INSERT INTO change SELECT 2, 2, at, actor, source, operation, request, 'novelty', 'x-1', NULL, 0, true, NULL,
             NULL, '{}' FROM change;
         INSERT INTO batch VALUES (2, 'somebody', 1, 2, '{}', '{}', '{}', '{}');
         UPDATE position SET newest = 2, sequence = 2;
         SELECT pg_notify('nephos', '2')",
    );
    let error = store.ended().await;
    assert_eq!(error.code, "unknown_kind");
    assert!(watch.next().await.is_err());
    assert!(store.commit(tx().create(server(2, 0))).await.is_err());
    store.close().await.unwrap();
}

#[tokio::test]
async fn everything_moves_from_sqlite() {
    let mut fixture = Fixture::new(Engine::Sqlite).await;
    for n in 0..50 {
        let all = tx().create(server(n, 1)).claim(format!("n/{n}"), id(n)).add("n", 1, Bound::Any);
        fixture.store.commit(all.create(Draft::new(nephos_types::Id::from_bits(n), Report { beat: n }))).await.unwrap();
    }
    let record = fixture.store.get::<Server>(id(3)).unwrap();
    fixture.store.commit(tx().delete(&record).release("n/3", id(3)).add("n", -1, Bound::Any)).await.unwrap();

    let url = shared().database();
    let busy = Postgres::import(&url, fixture.path()).await.unwrap_err();
    assert_eq!(busy.code, "store_locked");
    fixture.store.close().await.unwrap();
    let missing = Postgres::import(&url, fixture.folder().join("none")).await.unwrap_err();
    assert_eq!(missing.code, "file_not_found");
    let moved = Postgres::import(&url, fixture.path()).await.unwrap();
    assert_eq!((moved.records, moved.claims, moved.counters, moved.changes), (99, 49, 1, 101));
    let again = Postgres::import(&url, fixture.path()).await.unwrap_err();
    assert_eq!(again.code, "database_not_empty");

    fixture.store = fixture.home.open(kinds()).await.unwrap();
    let store = open(&url).await;
    assert!(store.verify().await.unwrap().is_sound());
    assert_eq!(store.revision(), fixture.store.revision());
    let all = |store: &Store| {
        let servers = store.list::<Server>(&Query::all()).items;
        (servers, store.claims("", None, usize::MAX), store.counters("", None, usize::MAX))
    };
    assert_eq!(all(&store), all(&fixture.store));
    let log = async |store: &Store| {
        let changes = store.changes(&nephos_store::ChangeQuery::new().limit(1000)).await.unwrap();
        changes.iter().map(|c| (c.revision, c.commit, c.at, c.before_json().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(log(&store).await, log(&fixture.store).await);
    // Life goes on, and a backup leads back.
    store.commit(tx().create(server(3, 7))).await.unwrap();
    let copy = fixture.folder().join("copy.db");
    store.backup(&copy).await.unwrap();
    assert_eq!(Sqlite::inspect(&copy).await.unwrap().newest, store.revision());
    let back = Store::open(Sqlite::open(&copy).await.unwrap(), kinds()).await.unwrap();
    assert!(back.verify().await.unwrap().is_sound());
    assert_eq!(all(&back), all(&store));
}

/// A file in which a page changed is not moved, and leaves the database as it was.
#[tokio::test]
async fn a_damaged_file_is_not_moved() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    fixture.store.commit((0..50).fold(tx(), |all, n| all.create(server(n, 0)))).await.unwrap();
    fixture.store.close().await.unwrap();
    let connection = rusqlite::Connection::open(fixture.path()).unwrap();
    connection.execute_batch("UPDATE record SET revision = 7 WHERE revision = 9").unwrap();
    drop(connection);
    let url = shared().database();
    assert_eq!(Postgres::import(&url, fixture.path()).await.unwrap_err().code, "database_damaged");
    let store = open(&url).await;
    assert_eq!((store.revision(), store.count::<Server>(&Query::all())), (Revision::ZERO, 0));
}

/// Programs of two versions never write at the same time, whatever the newer one thought of the older.
#[tokio::test]
async fn another_version_takes_over_from_those_it_saw_and_from_nobody_else() {
    let url = shared().database();
    let in_turn = async |forms: &str, after: Option<&str>| {
        let turn = Turn::new(forms, after.map(str::to_owned));
        Store::open(Postgres::open_in_turn(&url, turn).await.unwrap(), kinds()).await
    };
    assert_eq!(Postgres::look(&url, "server").await.unwrap(), None);
    let (old, older) = (in_turn("v1", None).await.unwrap(), in_turn("v1", None).await.unwrap());
    for (number, store) in (1..).zip([&old, &older, &old]) {
        store.commit(tx().create(server(number, 1))).await.unwrap();
    }
    let seen = Postgres::look(&url, "server").await.unwrap().unwrap();
    assert_eq!((seen.forms.as_deref(), seen.records.len()), (Some("v1"), 3));

    // Two newer ones saw the same; to be there is not to write yet.
    let (new, late) = (in_turn("v2", Some("v1")).await.unwrap(), in_turn("v3", Some("v1")).await.unwrap());
    old.commit(tx().create(server(4, 1))).await.unwrap();
    new.commit(tx().create(server(5, 1))).await.unwrap();
    for store in [&old, &older, &late] {
        let CommitError::Failed(refused) = store.commit(tx().create(server(6, 1))).await.unwrap_err() else {
            panic!("refused otherwise");
        };
        assert_eq!(refused.code, "superseded");
        assert_eq!(store.ended().await.code, "superseded");
    }
    // One of the same version comes along; one that saw what is no longer so does not.
    in_turn("v2", Some("v2")).await.unwrap().commit(tx().create(server(6, 1))).await.unwrap();
    // Whoever has written does not take over again.
    in_turn("v1", Some("v2")).await.unwrap().commit(tx().create(server(7, 1))).await.unwrap();
    let CommitError::Failed(refused) = new.commit(tx().create(server(8, 1))).await.unwrap_err() else {
        panic!("refused otherwise");
    };
    assert_eq!(refused.code, "superseded");
    assert_eq!(Postgres::look(&url, "server").await.unwrap().unwrap().records.len(), 7);
}

/// A schema of an older format is not changed under those who use it.
#[tokio::test]
async fn the_schema_is_upgraded_only_in_turn() {
    let url = shared().database();
    let name = url.rsplit('/').next().unwrap().to_owned();
    let turn = |after: Option<&str>| Turn::new("v2", after.map(str::to_owned));
    drop(Postgres::open_in_turn(&url, Turn::new("v1", None)).await.unwrap());
    // As the first format left it.
    let sql = |text: &str| shared().query(&name, text);
    let _ = sql("ALTER TABLE nephos.position DROP COLUMN forms; UPDATE nephos.format SET version = 1");
    assert_eq!(Postgres::look(&url, "server").await.unwrap().unwrap().forms, None);
    drop(Postgres::open_in_turn(&url, turn(None)).await.unwrap());
    assert_eq!(Postgres::look(&url, "server").await.unwrap().unwrap().forms.as_deref(), Some("v2"));
    let _ = sql("UPDATE nephos.format SET version = 99");
    for refused in [Postgres::look(&url, "server").await.map(drop), Postgres::open(&url).await.map(drop)] {
        assert_eq!(refused.unwrap_err().code, "newer_data");
    }
}
