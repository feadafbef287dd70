//! Moving a server to another node under every fault.

use nephos_types::{Id, ServerGroupId};

use super::{
    super::relocate::{self, Move},
    *,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moving() {
    let image = ImageId::new();
    let change = Move { image, to: None, drain: None };
    let mut case = case("move", relocate::definition, change, |server, before| {
        server.is_power(Power::On)
            && server.own_image == Some(server.image.id)
            && server.incarnation > before.incarnation()
    });
    case.image = Some(image);
    // Alone in a group with affinity: the group's place moves along.
    case.setup = |server| server.placing.group = Some(ServerGroupId::from_bits(7));
    holds(case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moving_what_is_stopped() {
    let image = ImageId::new();
    let change = Move { image, to: None, drain: None };
    let mut case = case("move", relocate::definition, change, |server, _| {
        server.off() && server.own_image == Some(server.image.id)
    });
    case.image = Some(image);
    case.setup = |server| stands(server, WantedPower::Off { grace_ms: 0 }, Power::Off);
    holds(case).await;
}
