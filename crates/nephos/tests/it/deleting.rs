//! What stands against deleting something, and that nothing is deleted from under whoever still needs it.

use futures_util::future::join;
use nephos_ops::{
    image::DeleteImage,
    node::{DeleteNode, ListNodes, UpdateNode},
};
use nephos_testkit::until;
use nephos_types::ErrorKind;
use serde_json::json;

use crate::{
    bad_input::simulated,
    help::{blank_image, create_server, delete_server, server, succeeded},
};

fn delete_image(name: &str) -> DeleteImage {
    serde_json::from_value(json!({ "image": name })).unwrap()
}

/// Servers and the deletion of what they are made from are asked for at once: either is refused, or both work out, but
/// no server is accepted that then finds no image.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_not_deleted_from_under_a_server_in_the_making() {
    let cloud = simulated().await;
    let demo = cloud.demo().await;
    let (mut made, mut refused) = (0, 0);
    for number in 0..12 {
        let name = format!("thing-{number}");
        blank_image(&demo, &name).await;
        let create = demo.call(create_server(&name, &name));
        let delete = demo.call(delete_image(&name));
        // Now this one first, now that one.
        let (created, deleted) = if number % 2 == 0 {
            join(create, delete).await
        } else {
            let (deleted, created) = join(delete, create).await;
            (created, deleted)
        };
        if let Err(error) = &deleted {
            assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Conflict, "image_in_use"), "{error:?}");
            refused += 1;
        }
        match created {
            Ok(started) => {
                succeeded(&demo, started.workflow).await;
                made += 1;
                if deleted.is_err() {
                    // Once it runs it needs the image no more.
                    demo.call(delete_image(&name)).await.unwrap();
                }
                delete_server(&demo, &name).await;
            }
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::NotFound, "{error:?}");
                assert!(deleted.is_ok() && server(&demo, &name).await.is_none());
            }
        }
    }
    println!("{made} servers were made, {refused} deletions were refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clouds_own_machine_stays_a_node_while_it_runs() {
    let cloud = simulated().await;
    let admin = cloud.admin().await;
    until("the node to be up", || async {
        let nodes = admin.call(ListNodes::default()).await.ok()?.items;
        (nodes.len() == 2 && nodes.iter().all(|node| node.state == nephos_ops::node::NodeState::Up)).then_some(())
    })
    .await;
    for force in [false, true] {
        let delete: DeleteNode = serde_json::from_value(json!({ "node": "sim-0", "force": force })).unwrap();
        let error = admin.call(delete).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Conflict, "node_up"), "{error:?}");
    }
    // What the refusal advises.
    let disable: UpdateNode = serde_json::from_value(json!({ "node": "sim-0", "enabled": false })).unwrap();
    assert!(!admin.call(disable).await.unwrap().enabled);
    assert_eq!(admin.call(ListNodes::default()).await.unwrap().items.len(), 2);
}
