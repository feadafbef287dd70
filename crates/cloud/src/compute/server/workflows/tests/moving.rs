//! Moving a server to another node, and emptying a node, under every fault.

use nephos_types::ServerGroupId;

use super::{
    super::relocate::{self, Move},
    *,
};
use crate::{compute::drain, node::Node};

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

/// Emptying the server's node. The moves are carried out by the world's own engine, without faults: they have tests of
/// their own.
struct Draining(std::sync::Mutex<Value>);

impl Scenario for Draining {
    type Journal = StoreJournal;
    type World = World;

    fn fresh(&self) -> BoxFuture<'_, (StoreJournal, World)> {
        Box::pin(async move {
            let world = World::new(|_| {}).await;
            *self.0.lock().unwrap() = serde_json::json!({ "node": world.node });
            (StoreJournal::new(world.store.clone()), world)
        })
    }

    fn definitions(&self, _: &StoreJournal, world: &World) -> Vec<Definition<Effects>> {
        let held = Held::of(&world.compute);
        vec![drain::definition(&held), relocate::definition(&held)]
    }

    fn input(&self) -> Value {
        self.0.lock().unwrap().clone()
    }

    fn prepare<'a>(&'a self, _: &'a StoreJournal, world: &'a World, run: WorkflowId) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let record = world.store.get::<Node>(world.node).unwrap();
            let mut body = record.body.clone();
            body.disabled = Some("drained".to_owned());
            body.placing.drain = Some(run);
            world.store.commit(Transaction::new(author()).update(&record, body)).await.unwrap();
            world.compute.nodes.changed();
        })
    }

    fn settle<'a>(&'a self, _: &'a StoreJournal, world: &'a World) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            world.work().await;
            // The world's engine goes by the clock on the wall, on which no step's time to look again comes.
            world.compute.engine.signal(&super::super::signal(world.server));
            tokio::time::sleep(Duration::from_millis(1)).await;
            while !world.compute.engine.is_idle() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    }

    fn check(&self, _: &StoreJournal, world: &World, end: End) -> Result<(), String> {
        let node = world.store.get::<Node>(world.node).unwrap();
        if node.body.disabled.is_none() || node.body.placing.drain.is_some() {
            return Err(format!("the node is {:?}", node.body.placing));
        }
        let server = world.server();
        // What moves when the drain is cancelled goes on.
        if end == End::Nothing && server.task.is_some() {
            return Ok(());
        }
        world.exact()?;
        match end {
            End::Whole if server.node != Some(world.other) || !server.is_power(Power::On) => {
                Err(format!("it has not moved: {server:#?}"))
            }
            _ => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining() {
    let scenario = Draining(Default::default());
    let report = tokio::time::timeout(Duration::from_secs(600), faults::check(&scenario)).await.unwrap();
    assert!(report.struck > 5, "{report}");
    report.assert();
}
