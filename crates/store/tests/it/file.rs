//! The file: lock, format, versions of kinds, backup and inspection.

use std::os::unix::fs::PermissionsExt;

use nephos_store::{ChangeQuery, Draft, Kind, Kinds, Query, Revision, Sqlite, Store, WatchError};
use nephos_types::{ErrorKind, Result, ServerId};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fixture::{Engine, Fixture, Home, Report, Server, id, kinds, server, tx};

async fn refused(path: &std::path::Path) -> nephos_types::Error {
    Sqlite::open(path).await.err().expect("must be refused")
}

#[tokio::test]
async fn one_process_at_a_time() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let error = refused(&fixture.path()).await;
    assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Conflict, "store_locked"));
    assert!(error.detail.contains(&std::process::id().to_string()), "{}", error.detail);
    assert!(!error.next.is_empty());
    fixture.store.close().await.unwrap();
    Sqlite::open(fixture.path()).await.unwrap();
}

#[tokio::test]
async fn a_dropped_store_lets_go_of_its_file() {
    let Fixture { home, store } = Fixture::new(Engine::Sqlite).await;
    let Home::Folder(folder) = home else { panic!("not a folder") };
    let path = folder.path().join("store.db");
    store.commit(tx().create(server(1, 0))).await.unwrap();
    drop(store);
    while Sqlite::open(&path).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn only_the_owner_may_read_it() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    fixture.store.commit(tx().create(server(1, 0))).await.unwrap();
    fixture.store.backup(fixture.folder().join("copy.db")).await.unwrap();
    for entry in std::fs::read_dir(fixture.folder()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.path());
    }
}

#[tokio::test]
async fn what_is_not_ours_or_from_the_future_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    std::fs::write(&text, "this is not a database, however long one looks at it".repeat(100)).unwrap();
    assert_eq!(refused(&text).await.code, "database_damaged");

    let foreign = folder.path().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE mine (x)").unwrap();
    let before = std::fs::read(&foreign).unwrap();
    assert_eq!(refused(&foreign).await.code, "not_a_store");
    assert_eq!(std::fs::read(&foreign).unwrap(), before);

    let fixture = Fixture::new(Engine::Sqlite).await;
    fixture.store.close().await.unwrap();
    Connection::open(fixture.path()).unwrap().pragma_update(None, "user_version", 999).unwrap();
    assert_eq!(refused(&fixture.path()).await.code, "newer_data");

    assert_eq!(refused(&folder.path().join("none/store.db")).await.kind, ErrorKind::Internal);
}

#[tokio::test]
async fn a_kind_that_the_program_lacks_is_named() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    fixture.store.commit(tx().create(server(1, 0))).await.unwrap();
    fixture.store.close().await.unwrap();
    let backend = Sqlite::open(fixture.path()).await.unwrap();
    let error = Store::open(backend, Kinds::new().with::<Report>()).await.unwrap_err();
    assert_eq!((error.code.as_ref(), error.detail.as_str()), ("unknown_kind", "server"));
    // The failed attempt has let go of the file.
    Store::open(Sqlite::open(fixture.path()).await.unwrap(), kinds()).await.unwrap();
}

/// The fixture's server, two versions later: `size` became `cores`, then `cpu.cores`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NewServer {
    cpu: Cpu,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cpu {
    cores: u32,
}

impl Kind for NewServer {
    type Id = ServerId;
    const NAME: &'static str = "server";
    const VERSION: u32 = 3;

    fn migrate(version: u32, mut body: Value) -> Result<Value> {
        Ok(match version {
            1 => serde_json::json!({ "cores": body["size"].take() }),
            _ => serde_json::json!({ "cpu": body }),
        })
    }
}

#[tokio::test]
async fn older_records_are_migrated_and_newer_ones_refused() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    fixture.store.commit(tx().create(server(1, 7)).create(server(2, 8))).await.unwrap();
    fixture.store.close().await.unwrap();

    let store =
        Store::open(Sqlite::open(fixture.path()).await.unwrap(), Kinds::new().with::<NewServer>()).await.unwrap();
    let record = store.get::<NewServer>(id(1)).unwrap();
    assert_eq!((record.body.cpu.cores, record.meta.revision), (7, Revision(1)));
    store.commit(tx().save(record.edit().modify(|body| body.cpu.cores = 9))).await.unwrap();
    // The log has old and new forms side by side.
    let mut watch = store.watch(Some(Revision::ZERO));
    assert_eq!(watch.next().await.unwrap().after::<NewServer>(), Some(record));
    assert!(store.verify().await.unwrap().is_sound());
    store.close().await.unwrap();

    let error = Store::open(Sqlite::open(fixture.path()).await.unwrap(), kinds()).await.unwrap_err();
    assert_eq!(error.code, "newer_data");
}

#[tokio::test]
async fn a_backup_holds_what_was_acknowledged_before() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    let all = (0..50).fold(tx(), |all, n| all.create(server(n, 0)).claim(format!("n/{n}"), id(n)));
    fixture.store.commit(all).await.unwrap();
    let copy = fixture.folder().join("copy.db");
    fixture.store.backup(&copy).await.unwrap();
    let error = fixture.store.backup(&copy).await.unwrap_err();
    assert_eq!(error.code, "backup_exists");
    assert!(fixture.store.backup("/nonexistent/copy.db").await.is_err());

    let summary = Sqlite::inspect(&copy).await.unwrap();
    assert_eq!((summary.newest, summary.records), (Revision(50), vec![("server".to_owned(), 50)]));
    let store = Store::open(Sqlite::open(&copy).await.unwrap(), kinds()).await.unwrap();
    assert_eq!(store.count::<Server>(&Query::all()), 50);
    let report = store.verify().await.unwrap();
    assert!(report.is_sound() && report.ownerless_claims.is_empty(), "{report:#?}");
    store.commit(tx().create(Draft::new(id(1000), Server { size: 1, node: None }))).await.unwrap();
}

#[tokio::test]
async fn a_restored_store_knows_its_old_watchers_from_new_ones() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    fixture.store.commit(tx().create(server(1, 0))).await.unwrap();
    let (copy, new) = (fixture.folder().join("copy.db"), fixture.folder().join("new.db"));
    fixture.store.backup(&copy).await.unwrap();
    fixture.store.commit(tx().create(server(2, 0))).await.unwrap();
    let lost = fixture.store.get::<Server>(id(2)).unwrap();

    // What a deleted store left behind must not be mistaken for the log of the new one.
    let stray = fixture.folder().join("new.db-wal");
    std::fs::write(&stray, "stray").unwrap();
    Sqlite::restore(&copy, &new).await.unwrap();
    assert!(!stray.exists());
    assert_eq!(Sqlite::restore(&copy, &new).await.unwrap_err().code, "store_exists");
    assert_eq!(Sqlite::restore(&fixture.path().with_extension("no"), &new).await.unwrap_err().code, "file_not_found");
    assert_eq!(Sqlite::inspect(&copy).await.unwrap().newest, Revision(1), "the backup stays as it was");

    let store = Store::open(Sqlite::open(&new).await.unwrap(), kinds()).await.unwrap();
    let mut watch = store.watch(None);
    assert_eq!(store.count::<Server>(&Query::all()), 1);
    store.commit(tx().create(server(2, 0)).create(server(3, 0))).await.unwrap();
    assert!(store.commit(tx().delete(&lost)).await.unwrap_err().is_conflict(), "same id, another history");
    assert!(matches!(store.watch(Some(Revision(2))).next().await, Err(WatchError::Compacted { .. })));
    assert_eq!(watch.next().await.unwrap().id, id(2).to_string());
    // The audit trail from before is still there.
    let trail = store.changes(&ChangeQuery::new().id(id(1))).await.unwrap();
    assert_eq!(trail[0].revision, Revision(1));
    assert!(store.verify().await.unwrap().is_sound());
}

#[tokio::test]
async fn damage_is_found() {
    let fixture = Fixture::new(Engine::Sqlite).await;
    fixture.store.commit((0..50).fold(tx(), |all, n| all.create(server(n, 0)))).await.unwrap();
    let copy = fixture.folder().join("copy.db");
    fixture.store.backup(&copy).await.unwrap();
    let whole = std::fs::read(&copy).unwrap();

    std::fs::write(&copy, &whole[..whole.len() / 2]).unwrap();
    assert!(Sqlite::inspect(&copy).await.is_err(), "cut off");
    std::fs::write(&copy, &whole).unwrap();
    Connection::open(&copy).unwrap().execute_batch("UPDATE record SET revision = 7 WHERE revision = 9").unwrap();
    assert_eq!(Sqlite::inspect(&copy).await.unwrap_err().code, "database_damaged");

    // What somebody changed behind our back.
    let connection = Connection::open(fixture.path()).unwrap();
    connection.execute_batch("DELETE FROM record WHERE revision = 3; INSERT INTO claim VALUES ('x', 'y')").unwrap();
    let report = fixture.store.verify().await.unwrap();
    assert!(!report.is_sound());
    let text = report.problems.join("\n");
    assert!(text.contains("50 records in memory, 49 on disk") && text.contains("claim x"), "{text}");
}
