//! Who may ask what of a server, and when it is refused: asked of the handlers as front ends do.

use nephos_driver::Power;
use nephos_node_api::WantedPower;
use nephos_ops::{
    Operation,
    compute::{
        ConfirmResize, DeleteServer, LockServer, ResizeServer, RestoreServer, RevertResize, StartServer, UnlockServer,
        UpdateServer,
    },
    image::DeleteImage,
};
use nephos_types::{Error, ErrorKind, ImageId, Result, Timestamp, WorkflowId};
use serde_json::{Value, json};

use super::{
    Server,
    record::{Deadline, Life, Lock, Resize, Task, Trashed},
    workflows::{World, stands},
};

/// Asks something of the world's server, as somebody of its project with this role.
async fn ask<O: Operation>(world: &World, role: &str, mut input: Value) -> Result<O::Output> {
    input["server"] = json!(world.server);
    world.by(role).call(serde_json::from_value::<O>(input).unwrap()).await
}

fn refused<T: std::fmt::Debug>(answer: Result<T>) -> (ErrorKind, String) {
    let error: Error = answer.expect_err("it is refused");
    (error.kind, error.code.to_string())
}

fn conflict(code: &str) -> (ErrorKind, String) {
    (ErrorKind::Conflict, code.to_owned())
}

/// A server whose resize waits for a decision, or is still under way.
fn resized(server: &mut Server, waits: Option<Deadline>) {
    let other = super::record::Size { memory_mib: 2048, ..server.size() };
    server.resize = Some(Resize { other, waits });
}

const UNDECIDED: Option<Deadline> = Some(Deadline { at: None });

#[tokio::test]
async fn only_a_resize_that_waits_is_decided() {
    let setups: [fn(&mut Server); 4] = [
        |_| {},
        |server| resized(server, None),
        |server| {
            resized(server, UNDECIDED);
            server.task = Some(Task { name: "snapshot".to_owned(), workflow: WorkflowId::new() });
        },
        |server| {
            resized(server, UNDECIDED);
            server.trashed = Some(Trashed { until: Timestamp::now(), ran: false });
        },
    ];
    for (number, setup) in setups.into_iter().enumerate() {
        let world = World::new(setup).await;
        let before = world.server();
        assert_eq!(
            refused(ask::<ConfirmResize>(&world, "member", json!({})).await),
            conflict("wrong_state"),
            "{number}"
        );
        assert_eq!(
            refused(ask::<RevertResize>(&world, "member", json!({})).await),
            conflict("wrong_state"),
            "{number}"
        );
        assert_eq!(world.server(), before, "nothing has changed");
    }
}

#[tokio::test]
async fn a_decision_is_for_who_may_change_the_server() {
    let world = World::new(|server| {
        resized(server, UNDECIDED);
        server.lock = Some(Lock { by_admin: false, reason: None });
    })
    .await;
    assert_eq!(refused(ask::<ConfirmResize>(&world, "reader", json!({})).await).0, ErrorKind::Forbidden);
    assert_eq!(refused(ask::<ConfirmResize>(&world, "stranger", json!({})).await).0, ErrorKind::NotFound);
    assert_eq!(refused(ask::<ConfirmResize>(&world, "member", json!({})).await), conflict("server_locked"));
    assert_eq!(refused(ask::<RevertResize>(&world, "member", json!({})).await), conflict("server_locked"));
    // An undecided resize stands against another one.
    let again = json!({ "flavor": "any" });
    assert_eq!(refused(ask::<ResizeServer>(&world, "admin", again).await), conflict("wrong_state"));
    assert_eq!(ask::<ConfirmResize>(&world, "admin", json!({})).await.unwrap().resize, None);
    world.exact().unwrap();
}

#[tokio::test]
async fn who_may_lock_and_unlock() {
    let world = World::new(|_| {}).await;
    for role in ["reader", "stranger"] {
        let wanted = if role == "reader" { ErrorKind::Forbidden } else { ErrorKind::NotFound };
        assert_eq!(refused(ask::<LockServer>(&world, role, json!({})).await).0, wanted);
        assert_eq!(refused(ask::<UnlockServer>(&world, role, json!({})).await).0, wanted);
    }
    // To unlock what is not locked changes nothing.
    assert!(!ask::<UnlockServer>(&world, "member", json!({})).await.unwrap().locked);
    ask::<LockServer>(&world, "member", json!({ "reason": "audit" })).await.unwrap();
    // An administrator takes a lock over; from then on only one takes it away.
    let taken = ask::<LockServer>(&world, "admin", json!({ "reason": "court" })).await.unwrap();
    assert_eq!(taken.locked_reason.as_deref(), Some("court"));
    let denied = (ErrorKind::Forbidden, "locked_by_admin".to_owned());
    assert_eq!(refused(ask::<UnlockServer>(&world, "member", json!({})).await), denied);
    assert!(!ask::<UnlockServer>(&world, "admin", json!({})).await.unwrap().locked);
}

#[tokio::test]
async fn protection_is_part_of_what_a_lock_keeps() {
    let world = World::new(|server| {
        server.protected = true;
        server.lock = Some(Lock { by_admin: false, reason: None });
    })
    .await;
    let off = || json!({ "protected": false });
    assert_eq!(refused(ask::<UpdateServer>(&world, "member", off()).await), conflict("server_locked"));
    assert_eq!(refused(ask::<DeleteServer>(&world, "member", json!({})).await), conflict("server_locked"));
    // Whoever may ignore the lock still has to take the protection away first.
    assert_eq!(refused(ask::<DeleteServer>(&world, "admin", json!({})).await), conflict("server_protected"));
    assert!(!ask::<UpdateServer>(&world, "admin", off()).await.unwrap().protected);
    ask::<DeleteServer>(&world, "admin", json!({})).await.unwrap();
}

fn trashed(server: &mut Server) {
    stands(server, WantedPower::Off { grace_ms: 0 }, Power::Off);
    server.trashed = Some(Trashed { until: Timestamp::now().plus(std::time::Duration::from_secs(3600)), ran: true });
}

#[tokio::test]
async fn what_is_in_the_trash_is_restored_or_deleted_and_nothing_else() {
    let world = World::new(trashed).await;
    assert_eq!(refused(ask::<StartServer>(&world, "member", json!({})).await), conflict("wrong_state"));
    let resize = json!({ "flavor": "any" });
    assert_eq!(refused(ask::<ResizeServer>(&world, "member", resize).await), conflict("wrong_state"));
    // Deleted once more, it is deleted for good, whatever time is asked for.
    let started = ask::<DeleteServer>(&world, "member", json!({ "keep_hours": 5 })).await.unwrap();
    assert_eq!(started.resource.task.as_deref(), Some("delete"));
    assert_eq!(refused(ask::<RestoreServer>(&world, "member", json!({})).await), conflict("wrong_state"));

    let world = World::new(|_| {}).await;
    assert_eq!(refused(ask::<RestoreServer>(&world, "member", json!({})).await), conflict("wrong_state"));
}

#[tokio::test]
async fn what_could_not_be_made_is_not_kept() {
    let world = World::new(|server| server.life = Life::Failed).await;
    let started = ask::<DeleteServer>(&world, "member", json!({ "keep_hours": 5 })).await.unwrap();
    assert_eq!(started.resource.task.as_deref(), Some("delete"));
}

#[tokio::test]
async fn protection_keeps_a_server_in_the_trash() {
    let world = World::new(trashed).await;
    let until = world.server().trashed.unwrap().until;
    ask::<UpdateServer>(&world, "member", json!({ "protected": true })).await.unwrap();
    assert_eq!(refused(ask::<DeleteServer>(&world, "member", json!({})).await), conflict("server_protected"));
    world.compute.meet_deadlines(until).await.unwrap();
    assert_eq!(world.server().task, None, "its time has come, and it stays");
    ask::<UpdateServer>(&world, "member", json!({ "protected": false })).await.unwrap();
    world.compute.meet_deadlines(until).await.unwrap();
    assert_eq!(world.server().task.map(|task| task.name).as_deref(), Some("delete"));
}

#[tokio::test]
async fn the_images_that_a_server_may_need_again_stay() {
    let kernel = ImageId::new();
    let world = World::new(|server| server.kept = vec![kernel]).await;
    world.has_image(kernel).await;
    let delete = async || {
        let input = json!({ "image": kernel });
        world.by("member").call(serde_json::from_value::<DeleteImage>(input).unwrap()).await
    };
    assert_eq!(refused(delete().await), conflict("image_in_use"));
    ask::<DeleteServer>(&world, "member", json!({})).await.unwrap();
    while world.store.get::<Server>(world.server).is_some() {
        world.work().await;
        tokio::task::yield_now().await;
    }
    delete().await.unwrap();
}
