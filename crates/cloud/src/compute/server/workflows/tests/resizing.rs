//! Another size, on the server's node or on another one, and back, under every fault.

use nephos_types::ServerGroupId;

use super::*;
use crate::compute::server::record::Place;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resizing() {
    holds(case("resize", resize::definition, ResizeTo { to: size(2048), image: ImageId::new() }, |server, before| {
        let old = server.resize.as_ref().is_some_and(|resize| resize.waits.is_some() && resize.other == before.size());
        server.memory_mib == 2048 && server.amounts().memory_mib == 2048 && old && server.is_power(Power::On)
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reverting_a_resize() {
    let mut case =
        case("revert-resize", resize::revert, ResizeTo { to: size(1024), image: ImageId::new() }, |server, _| {
            server.memory_mib == 1024 && server.resize.is_none() && server.is_power(Power::On)
        });
    case.setup = |server| {
        let old = server.size();
        server.take_size(size(2048));
        server.resize = Some(record::Resize { other: old, waits: Some(record::Deadline { at: None }) });
    };
    holds(case).await;
}

/// Alone in a group with affinity, whose place goes with it.
fn alone(server: &mut Server) {
    server.placing.group = Some(ServerGroupId::from_bits(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resizing_to_another_node() {
    let image = ImageId::new();
    let change = ResizeTo { to: size(8192), image };
    let mut case = case("resize", resize::definition, change, |server, before| {
        let resize = server.resize.as_ref().unwrap();
        let old = server.placing.elsewhere.as_ref().unwrap();
        resize.waits.is_some()
            && resize.other == before.size()
            && old.taken == before.size().amounts()
            && server.memory_mib == 8192
            && server.own_image == Some(server.image.id)
            && server.incarnation == before.incarnation() + 1
            && server.is_power(Power::On)
    });
    case.copy = Some(image);
    case.crowd_mib = 1024;
    case.setup = alone;
    holds(case).await;
}

/// It was 1024 MiB on the other node, and is larger here since it was resized.
fn moved(server: &mut Server) {
    alone(server);
    let place = server.place().unwrap();
    let old = server.size();
    server.take_size(Size { disk_gib: 2, claimed_disk_gib: 2, ..size(2048) });
    server.resize = Some(record::Resize { other: old, waits: Some(record::Deadline { at: None }) });
    server.placing.elsewhere = Some(Place { ..place });
}

/// What it gets back: its disk stays as large as it has grown.
fn reverted() -> Size {
    Size { disk_gib: 2, claimed_disk_gib: 2, ..size(1024) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reverting_to_the_node_before() {
    let image = ImageId::new();
    let mut case = case("revert-resize", resize::revert, ResizeTo { to: reverted(), image }, |server, before| {
        server.memory_mib == 1024
            && server.disk_gib == 2
            && server.resize.is_none()
            && server.placing.elsewhere.is_none()
            && server.own_image == Some(server.image.id)
            && server.incarnation == before.incarnation() + 1
            && server.is_power(Power::On)
    });
    case.copy = Some(image);
    case.setup = moved;
    holds(case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reverting_where_it_is_if_it_cannot_go_back() {
    let image = ImageId::new();
    let mut case = case("revert-resize", resize::revert, ResizeTo { to: reverted(), image }, |server, before| {
        server.memory_mib == 1024
            && server.resize.is_none()
            && server.placing.elsewhere.is_none()
            && server.own_image.is_none()
            && server.incarnation == before.incarnation()
            && server.is_power(Power::On)
    });
    case.setup = |server| {
        moved(server);
        // What ran it there is gone.
        server.placing.elsewhere.as_mut().unwrap().driver = "gone".to_owned();
    };
    holds(case).await;
}

#[tokio::test]
async fn confirming_gives_both_places_their_room_back() {
    let world = World::new(moved).await;
    world.exact().unwrap();
    let record = world.store.get::<Server>(world.server).unwrap();
    let mut body = record.body.clone();
    let transaction = resize::settled(&world.compute, Transaction::new(author()), &record, &mut body).unwrap();
    world.store.commit(transaction.update(&record, body)).await.unwrap();
    let server = world.server();
    assert_eq!((server.node, server.memory_mib, server.resize.is_some()), (Some(world.node), 2048, false));
    assert_eq!(server.places().count(), 1);
    world.exact().unwrap();
}
