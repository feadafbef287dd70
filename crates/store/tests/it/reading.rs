//! Reads: own writes, queries, pages, prefixes, and the same after a restart.

use std::collections::BTreeMap;

use nephos_store::{Query, Revision};
use nephos_types::{Id, Labels, NodeId, PageRequest};

use crate::fixture::{Engine, Fixture, Server, both, id, project, server, tx};

async fn a_write_is_read_at_once_and_after_a_restart(engine: Engine) {
    let mut fixture = Fixture::new(engine).await;
    let draft = server(1, 4).project(project(9)).name(Some("web".parse().unwrap()));
    let committed = fixture
        .store
        .commit(tx().create(draft).claim("name/web", id(1)).add("n", 2, nephos_store::Bound::Any))
        .await
        .unwrap();
    assert_eq!(committed.revision, Revision(1));
    let record = fixture.store.get::<Server>(id(1)).unwrap();
    assert_eq!(committed.record::<Server>(id(1)).unwrap(), record);
    assert_eq!((record.meta.revision, record.body.size), (Revision(1), 4));
    assert_eq!(record.meta.name.as_ref().unwrap().as_str(), "web");
    assert_eq!(fixture.store.owner("name/web"), Some(id(1).to_string()));

    fixture.store.commit(tx().save(record.edit().modify(|body| body.size = 5))).await.unwrap();
    let updated = fixture.store.get::<Server>(id(1)).unwrap();
    assert_eq!((updated.meta.revision, updated.body.size), (Revision(2), 5));
    assert_eq!(updated.meta.created_at, record.meta.created_at);
    assert!(updated.meta.updated_at >= record.meta.updated_at);

    fixture.reopen().await;
    assert_eq!(fixture.store.get::<Server>(id(1)).unwrap(), updated);
    assert_eq!(fixture.store.owner("name/web"), Some(id(1).to_string()));
    assert_eq!(fixture.store.counter("n"), 2);
    assert_eq!(fixture.store.revision(), Revision(2));
    fixture.sound().await;

    fixture.store.commit(tx().delete(&updated)).await.unwrap();
    assert_eq!(fixture.store.get::<Server>(id(1)), None);
    fixture.reopen().await;
    assert_eq!(fixture.store.get::<Server>(id(1)), None);
    assert_eq!(fixture.store.verify().await.unwrap().ownerless_claims, [("name/web".to_owned(), id(1).to_string())]);
}

async fn queries_combine_project_indexes_and_labels(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let node: NodeId = Id::from_bits(7);
    let mut all = tx();
    for n in 0..60_u64 {
        let mut draft = server(n, n as u32).project(project(n % 3));
        if n % 5 == 0 {
            draft = draft.labels(Labels(BTreeMap::from([("tier".to_owned(), "gold".to_owned())])));
        }
        all = all.create(draft);
    }
    fixture.store.commit(all).await.unwrap();
    let expected = |want: fn(u64) -> bool| (0..60).filter(|n| want(*n)).map(id).collect::<Vec<_>>();
    let found = |query: Query| {
        let items = fixture.store.list::<Server>(&query).items;
        assert_eq!(fixture.store.count::<Server>(&query.limit(1)), items.len());
        items.iter().map(|record| record.id()).collect::<Vec<_>>()
    };
    assert_eq!(found(Query::all()), expected(|_| true));
    assert_eq!(found(Query::all().project(project(1))), expected(|n| n % 3 == 1));
    assert_eq!(found(Query::all().index("parity", "odd")), expected(|n| n % 2 == 1));
    assert_eq!(
        found(Query::all().index("parity", "odd").project(project(1)).label("tier", "gold")),
        expected(|n| n % 2 == 1 && n % 3 == 1 && n % 5 == 0)
    );
    assert_eq!(found(Query::all().index("parity", "odd").after(id(50))), expected(|n| n % 2 == 1 && n > 50));
    assert_eq!(found(Query::all().label("tier", "silver")), []);
    assert_eq!(found(Query::all().index("node", node)), []);

    // An index follows the record.
    let record = fixture.store.get::<Server>(id(3)).unwrap();
    fixture.store.commit(tx().save(record.edit().modify(|body| body.node = Some(node)))).await.unwrap();
    assert_eq!(found(Query::all().index("node", node)), [id(3)]);
    let record = fixture.store.get::<Server>(id(3)).unwrap();
    fixture.store.commit(tx().delete(&record)).await.unwrap();
    assert_eq!(found(Query::all().index("node", node)), []);
    fixture.sound().await;
}

async fn pages_stay_stable_while_records_come_and_go(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let all = (0..10).fold(tx(), |all, n| all.create(server(n * 10, 0)));
    fixture.store.commit(all).await.unwrap();
    let page = |after: Option<String>| {
        let request: PageRequest = serde_json::from_value(serde_json::json!({ "limit": 4, "after": after })).unwrap();
        let page = fixture.store.list::<Server>(&Query::all().page::<Server>(&request).unwrap());
        (page.items.iter().map(|record| record.id().bits()).collect::<Vec<_>>(), page.next)
    };
    let (first, next) = page(None);
    assert_eq!(first, [0, 10, 20, 30]);
    // The marker itself goes, one comes before it and one after it.
    let marker = fixture.store.get::<Server>(id(30)).unwrap();
    fixture.store.commit(tx().delete(&marker).create(server(5, 0)).create(server(35, 0))).await.unwrap();
    let (second, next) = page(next);
    assert_eq!(second, [35, 40, 50, 60]);
    let (third, next) = page(next);
    assert_eq!((third, next), (vec![70, 80, 90], None));

    let wrong = PageRequest { limit: None, after: Some("img-0000000000000".to_owned()) };
    assert_eq!(Query::all().page::<Server>(&wrong).unwrap_err().kind, nephos_types::ErrorKind::Invalid);
}

async fn an_id_prefix_finds_its_records(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let all = (0..100_u64).fold(tx(), |all, n| all.create(server(n, 0)));
    fixture.store.commit(all).await.unwrap();
    let prefix = &id(32).to_string()[..16];
    let found = fixture.store.list::<Server>(&Query::all().id_prefix(prefix)).items;
    assert_eq!(found.iter().map(|record| record.id()).collect::<Vec<_>>(), (32..64).map(id).collect::<Vec<_>>());
    assert_eq!(fixture.store.count::<Server>(&Query::all().id_prefix("srv-")), 100);
    assert_eq!(fixture.store.count::<Server>(&Query::all().id_prefix("img-")), 0);
}

async fn claims_and_counters_are_listed_by_prefix(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let mut all = tx();
    for key in ["a/1", "a/2", "a/3", "b/1"] {
        all = all.claim(key, "me").add(key, 5, nephos_store::Bound::Any);
    }
    fixture.store.commit(all).await.unwrap();
    let keys = |list: Vec<(String, String)>| list.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys(fixture.store.claims("a/", None, 2)), ["a/1", "a/2"]);
    assert_eq!(keys(fixture.store.claims("a/", Some("a/2"), 9)), ["a/3"]);
    assert_eq!(fixture.store.counters("b", None, 9), [("b/1".to_owned(), 5)]);
}

both!(
    a_write_is_read_at_once_and_after_a_restart,
    queries_combine_project_indexes_and_labels,
    pages_stay_stable_while_records_come_and_go,
    an_id_prefix_finds_its_records,
    claims_and_counters_are_listed_by_prefix
);
