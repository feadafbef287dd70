//! A project sees every limit that stands against it, and what it uses of each.

use nephos_cli::client::Client;
use nephos_ops::{
    compute::{Allowance, ShowQuota},
    table,
};
use nephos_types::ErrorKind;
use serde_json::{Value, json};

use crate::{
    bad_input::{KEY, simulated},
    help::blank_image,
};

async fn call(client: &Client, operation: &str, input: Value) -> nephos_types::Result<Value> {
    let entry = table().iter().find(|entry| entry.spec.name == operation).expect(operation);
    client.call_json(&entry.spec, &input).await
}

/// What is used of images, their MiB, schedules and key pairs.
async fn used(client: &Client) -> [u64; 4] {
    let quota = client.call(ShowQuota::default()).await.unwrap();
    let all = [quota.images, quota.image_mib, quota.schedules, quota.keypairs];
    assert!(all.iter().all(|allowance: &Allowance| allowance.limit >= 100), "{quota:?}");
    all.map(|allowance| allowance.used)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_nobody_sets_are_shown_and_exact() {
    let cloud = simulated().await;
    let demo = cloud.demo().await;
    assert_eq!(used(&demo).await, [0; 4]);
    blank_image(&demo, "blank").await;
    let schedule = json!({ "name": "nightly", "operation": "server.list", "every_seconds": 3600 });
    let schedule = match call(&demo, "schedule.create", schedule.clone()).await {
        Ok(made) => made,
        Err(error) => panic!("{error:?}"),
    };
    for number in 0..3 {
        let key = json!({ "name": format!("key-{number}"), "public_key": KEY });
        call(&demo, "keypair.create", key).await.unwrap();
    }
    assert_eq!(used(&demo).await, [1, 1, 1, 3]);

    // A project with something in it stays; here nothing but the schedule is left.
    call(&demo, "image.delete", json!({ "image": "blank" })).await.unwrap();
    let admin = cloud.admin().await;
    let refused = call(&admin, "project.delete", json!({ "project": "demo" })).await.unwrap_err();
    assert_eq!((refused.kind, refused.code.as_ref()), (ErrorKind::Conflict, "not_empty"), "{refused:?}");
    assert!(refused.reasons.iter().any(|reason| format!("{reason:?}").contains("schedules")), "{refused:?}");

    call(&demo, "schedule.delete", json!({ "schedule": schedule["id"] })).await.unwrap();
    for number in 0..3 {
        call(&demo, "keypair.delete", json!({ "keypair": format!("key-{number}") })).await.unwrap();
    }
    assert_eq!(used(&demo).await, [0; 4]);

    let mut last = Ok(Value::Null);
    for number in 0..=100 {
        last = call(&demo, "keypair.create", json!({ "name": format!("k{number}"), "public_key": KEY })).await;
    }
    let refused = last.unwrap_err();
    assert_eq!((refused.kind, refused.code.as_ref()), (ErrorKind::Quota, "quota_exceeded"), "{refused:?}");
    assert_eq!(used(&demo).await, [0, 0, 0, 100]);
}
