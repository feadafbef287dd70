//! The live feed: order, no gaps, no duplicates, slow watchers, what is gone.

use std::time::Duration;

use nephos_store::{Action, Draft, Options, Query, Revision, WatchError};
use nephos_types::{Error, Id};

use crate::fixture::{Engine, Fixture, Report, Server, both, id, project, server, tx};

async fn all_watchers_see_every_change_once_in_order(engine: Engine) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 40;
    let fixture = Fixture::new(engine).await;
    let follow = |from: Option<Revision>| {
        let mut watch = fixture.store.watch(from);
        tokio::spawn(async move {
            let mut seen = vec![];
            while seen.len() < (WRITERS * EACH * 2) as usize {
                let change = watch.next().await.unwrap();
                seen.push((change.revision.0, change.after::<Server>().map(|record| record.meta.revision.0)));
            }
            seen
        })
    };
    let mut followers = vec![follow(None), follow(Some(Revision::ZERO))];
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = fixture.store.clone();
            tokio::spawn(async move {
                for n in 0..EACH {
                    let n = writer * 1000 + n * 2;
                    store.commit(tx().create(server(n, 0)).create(server(n + 1, 0))).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    followers.push(follow(Some(Revision::ZERO)));
    let expected: Vec<_> = (1..=WRITERS * EACH * 2).map(|revision| (revision, Some(revision))).collect();
    for follower in followers {
        assert_eq!(follower.await.unwrap(), expected);
    }
}

async fn a_change_tells_what_was_before(engine: Engine) {
    let mut fixture = Fixture::new(engine).await;
    let report = nephos_types::ImageId::from_bits(5);
    fixture.store.commit(tx().create(server(1, 1).project(project(3)))).await.unwrap();
    fixture.store.commit(tx().create(Draft::new(report, Report { beat: 1 }))).await.unwrap();
    let old = fixture.store.get::<Server>(id(1)).unwrap();
    let beat = fixture.store.get::<Report>(report).unwrap();
    fixture
        .store
        .commit(tx().save(old.edit().modify(|body| body.size = 2)).update(&beat, Report { beat: 2 }))
        .await
        .unwrap();
    let new = fixture.store.get::<Server>(id(1)).unwrap();
    fixture.store.commit(tx().delete(&new)).await.unwrap();

    // From memory, and then the same from disk.
    for _ in 0..2 {
        let mut watch = fixture.store.watch(Some(Revision(2)));
        let change = watch.next().await.unwrap();
        assert_eq!((change.action, change.revision, change.commit), (Action::Updated, Revision(3), Revision(4)));
        assert_eq!((change.before::<Server>(), change.after::<Server>()), (Some(old.clone()), Some(new.clone())));
        assert_eq!((change.id::<Server>(), change.id::<Report>()), (Some(id(1)), None));
        assert_eq!((change.project, change.author.operation.as_str()), (Some(project(3)), "test.run"));
        assert_eq!(change.before_json().unwrap().unwrap()["body"]["size"], 1);
        let change = watch.next().await.unwrap();
        assert_eq!((change.before::<Report>(), change.after::<Report>().unwrap().body.beat), (None, 2));
        let change = watch.next().await.unwrap();
        assert_eq!(
            (change.action, change.before::<Server>(), change.after::<Server>()),
            (Action::Deleted, Some(new.clone()), None)
        );
        assert_eq!(change.project, Some(project(3)));
        assert_eq!(watch.revision(), fixture.store.revision());

        let mut servers = fixture.store.watch(Some(Revision::ZERO)).kind::<Server>().project(project(3));
        for revision in [1, 3, 5] {
            assert_eq!(servers.next().await.unwrap().revision, Revision(revision));
        }
        fixture.reopen().await;
    }
}

/// More changes than the ring in memory holds: the watcher that did not read meanwhile still gets each.
async fn a_slow_watcher_misses_nothing(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let mut slow = fixture.store.watch(None);
    for batch in 0..20 {
        let all = (0..500_u64).fold(tx(), |all, n| all.create(server(batch * 500 + n, 0)));
        fixture.store.commit(all).await.unwrap();
    }
    for revision in 1..=10_000 {
        assert_eq!(slow.next().await.unwrap().revision, Revision(revision));
    }
    // And then waits like any other.
    let store = fixture.store.clone();
    let (change, ()) = tokio::join!(slow.next(), async move {
        store.commit(tx().create(server(99_999, 0))).await.unwrap();
    });
    assert_eq!(change.unwrap().id, id(99_999).to_string());
}

async fn what_is_no_longer_kept_is_said_to_be_gone(engine: Engine) {
    let options = Options { keep_changes: 3, trim_every: Duration::from_secs(3600), ..Options::default() };
    let mut fixture = Fixture::with(engine, options).await;
    let report = nephos_types::ImageId::from_bits(5);
    fixture.store.commit(tx().create(Draft::new(report, Report { beat: 0 }))).await.unwrap();
    for beat in 1..10 {
        let record = fixture.store.get::<Report>(report).unwrap();
        fixture.store.commit(tx().update(&record, Report { beat })).await.unwrap();
    }
    let mut on_its_way = fixture.store.watch(Some(Revision(2)));
    assert_eq!(on_its_way.is_kept(), Ok(()));
    fixture.store.trim().await.unwrap();
    assert!(on_its_way.is_kept().is_err());
    let gone = WatchError::Compacted { oldest: Revision(7) };
    assert_eq!(on_its_way.next().await.unwrap_err(), gone);
    fixture.reopen().await;
    assert_eq!(fixture.store.watch(Some(Revision(6))).next().await.unwrap_err(), gone);
    assert_eq!(Error::from(gone).code, "compacted");
    let mut kept = fixture.store.watch(Some(Revision(7)));
    for revision in 8..=10 {
        assert_eq!(kept.next().await.unwrap().revision, Revision(revision));
    }
    // A revision from before a restore, say.
    assert!(matches!(fixture.store.watch(Some(Revision(11))).next().await, Err(WatchError::Compacted { .. })));
    assert_eq!(fixture.store.count::<Report>(&Query::all()), 1);
    fixture.sound().await;
}

async fn giving_up_the_wait_loses_nothing(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let mut watch = fixture.store.watch(None);
    assert!(tokio::time::timeout(Duration::from_millis(1), watch.next()).await.is_err());
    fixture.store.commit(tx().create(server(1, 0)).create(server(2, 0))).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, Revision(1));
    assert_eq!(watch.next().await.unwrap().revision, Revision(2));
    assert!(tokio::time::timeout(Duration::from_millis(1), watch.next()).await.is_err());
}

both!(
    all_watchers_see_every_change_once_in_order,
    a_change_tells_what_was_before,
    a_slow_watcher_misses_nothing,
    what_is_no_longer_kept_is_said_to_be_gone,
    giving_up_the_wait_loses_nothing
);
