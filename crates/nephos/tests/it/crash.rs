//! The process dies as by a power failure in every step of creating and deleting a server. After the restart the effect
//! is there whole, guests that ran still run, and quotas and claims are exact.

use nephos_ops::compute::{DeleteServer, ServerState, ShowQuota};
use nephos_testkit::{CloudProcess, Settings, until};

use crate::{
    NEPHOS,
    help::{blank_image, create_server, delete_server, server, succeeded},
};

/// Steps of a workflow, and when in each of them the process dies.
fn points(workflow: &str, steps: &[&str]) -> Vec<String> {
    let moments = ["before", "after", "saved"];
    steps.iter().flat_map(|step| moments.iter().map(move |moment| format!("{workflow}/{step}/{moment}"))).collect()
}

async fn used(cloud: &CloudProcess) -> (u64, u64, u64) {
    let quota = cloud.demo().await.call(ShowQuota::default()).await.unwrap();
    (quota.servers.used, quota.vcpus.used, quota.memory_mib.used)
}

/// A cloud with an image and a bystander whose guest must never notice anything.
async fn cloud_with_bystander() -> (CloudProcess, u32) {
    let cloud = CloudProcess::start(NEPHOS, Settings::default()).await;
    let demo = cloud.demo().await;
    blank_image(&demo, "blank").await;
    let started = demo.call(create_server("bystander", "blank")).await.unwrap();
    succeeded(&demo, started.workflow).await;
    let guest = cloud.guests()[0];
    (cloud, guest)
}

async fn check_end(mut cloud: CloudProcess, bystander: u32) {
    assert!(cloud.guests().contains(&bystander), "the bystander's guest still runs");
    let demo = cloud.demo().await;
    delete_server(&demo, "bystander").await;
    assert_eq!(used(&cloud).await, (0, 0, 0));
    assert!(cloud.guests().is_empty());
    let admin = cloud.admin().await;
    for node in admin.call(nephos_ops::node::ListNodes::default()).await.unwrap().items {
        assert_eq!((node.servers, node.vcpus_used, node.memory_mib_used, node.disk_gib_used), (0, 0, 0, 0));
    }
    assert!(cloud.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creation_survives_death_in_every_step() {
    let (mut cloud, bystander) = cloud_with_bystander().await;
    for point in points("server.create", &["check request", "find capacity", "load image", "start server"]) {
        cloud.stop().await;
        cloud.settings().kill_at = Some(point.clone());
        cloud.start_again().await;
        // The answer may be lost with the process; the name tells whether the request was taken.
        let _ = cloud.demo().await.call(create_server("victim", "blank")).await;
        cloud.ended().await;
        cloud.settings().kill_at = None;
        cloud.start_again().await;
        let demo = cloud.demo().await;
        assert!(server(&demo, "victim").await.is_some(), "{point}: the request had been acknowledged");
        until("the server to be active", || async {
            let server = server(&demo, "victim").await?;
            assert_ne!(server.state, ServerState::Error, "{point}: {server:#?}");
            (server.state == ServerState::Active && server.task.is_none()).then_some(())
        })
        .await;
        assert_eq!(cloud.guests().len(), 2, "{point}: one guest for each server");
        assert_eq!(used(&cloud).await.0, 2, "{point}");
        delete_server(&demo, "victim").await;
        assert_eq!(cloud.guests(), [bystander], "{point}");
        assert_eq!(used(&cloud).await.0, 1, "{point}");
    }
    check_end(cloud, bystander).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_survives_death_in_every_step() {
    let (mut cloud, bystander) = cloud_with_bystander().await;
    for point in points("server.delete", &["end other work", "remove from node", "release"]) {
        cloud.stop().await;
        cloud.settings().kill_at = Some(point.clone());
        cloud.start_again().await;
        let demo = cloud.demo().await;
        let started = demo.call(create_server("victim", "blank")).await.unwrap();
        succeeded(&demo, started.workflow).await;
        let _ = demo.call(DeleteServer { server: "victim".parse().unwrap(), now: false, keep_hours: None }).await;
        cloud.ended().await;
        cloud.settings().kill_at = None;
        cloud.start_again().await;
        let demo = cloud.demo().await;
        until("the server to be gone", || async { server(&demo, "victim").await.is_none().then_some(()) }).await;
        assert_eq!(cloud.guests(), [bystander], "{point}");
        assert_eq!(used(&cloud).await.0, 1, "{point}");
    }
    check_end(cloud, bystander).await;
}
