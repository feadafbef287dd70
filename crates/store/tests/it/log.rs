//! The audit trail.

use nephos_store::{Author, ChangeQuery, Options, Revision, Transaction};
use nephos_types::RequestId;

use crate::fixture::{Engine, Fixture, Server, both, id, project, server, tx};

async fn who_did_what_is_found_by_record_project_and_actor(engine: Engine) {
    let fixture = Fixture::new(engine).await;
    let request = RequestId::new();
    let ann =
        || Transaction::new(Author::new("ann").source("rest 10.0.0.1").operation("server.create").request(request));
    fixture
        .store
        .commit(ann().create(server(1, 1).project(project(1))).create(server(2, 1).project(project(2))))
        .await
        .unwrap();
    let record = fixture.store.get::<Server>(id(1)).unwrap();
    fixture.store.commit(tx().save(record.edit().modify(|body| body.size = 2))).await.unwrap();

    let found = async |query: ChangeQuery| {
        let changes = fixture.store.changes(&query).await.unwrap();
        changes.iter().map(|change| change.revision.0).collect::<Vec<_>>()
    };
    assert_eq!(found(ChangeQuery::new().id(id(1)).newest_first()).await, [3, 1]);
    assert_eq!(found(ChangeQuery::new().project(project(2))).await, [2]);
    assert_eq!(found(ChangeQuery::new().actor("ann").kind("server")).await, [1, 2]);
    assert_eq!(found(ChangeQuery::new().after(Revision(1)).before(Revision(3)).limit(5000)).await, [2]);

    let first = fixture.store.changes(&ChangeQuery::new().limit(1)).await.unwrap().remove(0);
    let author = first.author.as_ref();
    assert_eq!(
        (author.actor.as_str(), author.source.as_str(), author.operation.as_str(), &author.request),
        ("ann", "rest 10.0.0.1", "server.create", &request.to_string())
    );
    assert_eq!(first.after::<Server>(), Some(record));
    assert_eq!(Author::new("ä".repeat(1000)).actor.chars().count(), 255);
}

async fn the_trail_is_kept_as_long_as_configured(engine: Engine) {
    let options = Options { keep_changes: 10, keep_audit_changes: 2500, ..Options::default() };
    let fixture = Fixture::with(engine, options).await;
    for batch in 0..10 {
        let all = (0..500_u64).fold(tx(), |all, n| all.create(server(batch * 500 + n, 0)));
        fixture.store.commit(all).await.unwrap();
    }
    fixture.store.trim().await.unwrap();
    let oldest = fixture.store.changes(&ChangeQuery::new().limit(1)).await.unwrap().remove(0);
    assert_eq!(oldest.revision, Revision(2501));
    fixture.sound().await;
}

both!(who_did_what_is_found_by_record_project_and_actor, the_trail_is_kept_as_long_as_configured);
