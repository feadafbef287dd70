//! What happens by itself at its time, not before, and not while something else is being done.

use super::*;

fn later() -> Timestamp {
    Timestamp::now().plus(Duration::from_secs(3600))
}

/// A server whose resize waits for a decision until then. Its old size was larger, so that confirming gives room back.
async fn resized(until: Option<Timestamp>) -> World {
    World::new(|server| {
        server.take_size(size(1024));
        server.resize = Some(record::Resize { other: size(4096), waits: Some(record::Deadline { at: until }) });
    })
    .await
}

#[tokio::test]
async fn a_resize_confirms_itself_at_its_time() {
    let at = later();
    let world = resized(Some(at)).await;
    assert_eq!(world.server().amounts().memory_mib, 4096);
    world.compute.meet_deadlines(Timestamp::now()).await.unwrap();
    assert!(world.server().resize.is_some(), "it is not time yet");
    world.compute.meet_deadlines(at).await.unwrap();
    let server = world.server();
    assert_eq!((server.resize, server.memory_mib, server.generation), (None, 1024, 1));
    world.exact().unwrap();
}

#[tokio::test]
async fn a_resize_without_a_time_waits_for_people() {
    let world = resized(None).await;
    world.compute.meet_deadlines(later()).await.unwrap();
    assert!(world.server().resize.is_some());
    world.exact().unwrap();
}

#[tokio::test]
async fn a_deadline_waits_for_what_is_being_done() {
    let at = later();
    let world = resized(Some(at)).await;
    let record = world.store.get::<Server>(world.server).unwrap();
    let mut body = record.body.clone();
    body.task = Some(Task { name: "reboot".to_owned(), workflow: WorkflowId::new() });
    world.store.commit(Transaction::new(author()).update(&record, body)).await.unwrap();
    world.compute.meet_deadlines(at).await.unwrap();
    assert!(world.server().resize.is_some());

    let record = world.store.get::<Server>(world.server).unwrap();
    let body = super::super::finished(record.body.clone());
    world.store.commit(Transaction::new(author()).update(&record, body)).await.unwrap();
    world.compute.meet_deadlines(at).await.unwrap();
    assert_eq!(world.server().resize, None);
}

#[tokio::test]
async fn a_resize_that_is_not_finished_has_no_deadline() {
    let world = World::new(|server| server.resize = Some(record::Resize { other: size(4096), waits: None })).await;
    assert_eq!(world.server().deadline(), None);
    world.compute.meet_deadlines(later()).await.unwrap();
    assert!(world.server().resize.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trash_is_emptied_at_its_time() {
    let at = later();
    let world = World::new(|server| {
        stands(server, WantedPower::Off { grace_ms: 0 }, Power::Off);
        // Decided by the trash, even if a resize waited for a decision before.
        server.resize = Some(record::Resize { other: size(4096), waits: Some(record::Deadline { at: None }) });
        server.trashed = Some(Trashed { until: at, ran: true });
    })
    .await;
    world.compute.meet_deadlines(Timestamp::now()).await.unwrap();
    assert!(world.server().task.is_none(), "it is not time yet");
    world.compute.meet_deadlines(at).await.unwrap();
    assert_eq!(world.server().task.map(|task| task.name).as_deref(), Some("delete"));
    // Found a second time, it is deleted once.
    world.compute.meet_deadlines(at).await.unwrap();
    tokio::time::timeout(Duration::from_secs(600), async {
        while world.store.get::<Server>(world.server).is_some() {
            world.work().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    for counter in ["vcpus", "memory_mib", "disk_gib", "servers"] {
        assert_eq!(world.store.counter(&format!("capacity/{}/{counter}", world.node)), 0, "{counter}");
    }
    assert_eq!(world.store.counter(&format!("quota/{}/servers", world.project)), 0);
}
