//! Every fault at every step: in the end the nodes have the image, or not; and nothing is claimed or held any more.

use std::sync::Mutex;

use futures_util::future::BoxFuture;
use nephos_driver::DiskFormat;
use nephos_node_api::ControlPlane;
use nephos_store::Author;
use nephos_types::Bytes;
use nephos_workflow::faults::{self, End, Scenario};
use serde_json::Value;

use super::*;
use crate::{compute::server::workflows::World, journal::StoreJournal};

/// An image that one node is to have.
struct Prefetch {
    image: ImageSource,
    /// The node of the latest world.
    node: Mutex<Option<NodeId>>,
}

/// A world whose node fetches what it is asked to.
struct Asked {
    world: World,
    fetched: Arc<Mutex<BTreeSet<ImageId>>>,
    agent: tokio::task::JoinHandle<()>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

/// Answers the streams that a node is asked for.
async fn agent(compute: Arc<Compute>, node: NodeId, fetched: Arc<Mutex<BTreeSet<ImageId>>>) {
    let mut after = None;
    loop {
        let desired = compute.nodes.desired(node, after, Duration::from_secs(1)).await.unwrap();
        after = Some(desired.revision);
        for request in desired.streams {
            let StreamPurpose::FetchImage { image } = request.purpose else { continue };
            let entitled = compute.prefetches(node, image.id);
            let (near, mut far) = tokio::io::duplex(4096);
            // Nobody waits any more if what asked has crashed.
            let compute = compute.clone();
            tokio::spawn(async move { compute.nodes.accept_stream(node, request.id, Box::new(near)).await });
            let error = (!entitled).then(|| Error::bug("the node may not fetch what it is asked to"));
            let fine = error.is_none();
            if frame::write(&mut far, &FetchReport::Ended { error }).await.is_ok() && fine {
                fetched.lock().unwrap().insert(image.id);
            }
        }
    }
}

impl Scenario for Prefetch {
    type Journal = StoreJournal;
    type World = Asked;

    fn fresh(&self) -> BoxFuture<'_, (StoreJournal, Asked)> {
        Box::pin(async move {
            let world = World::new(|_| {}).await;
            *self.node.lock().unwrap() = Some(world.node);
            let fetched = Arc::default();
            let agent = tokio::spawn(agent(world.compute.clone(), world.node, Arc::clone(&fetched)));
            (StoreJournal::new(world.store.clone()), Asked { world, fetched, agent })
        })
    }

    fn definitions(&self, _: &StoreJournal, asked: &Asked) -> Vec<Definition<Effects>> {
        vec![definition(&Held::of(&asked.world.compute))]
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn input(&self) -> Value {
        let nodes = self.node.lock().unwrap().into_iter().collect();
        serde_json::to_value(Input { sources: vec![self.image.clone()], nodes }).unwrap()
    }

    fn prepare<'a>(&'a self, _: &'a StoreJournal, asked: &'a Asked, run: WorkflowId) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let transaction = image::hold(Transaction::new(Author::new("test")), self.image.id);
            let transaction = transaction.claim(claim(asked.world.node, self.image.id), run);
            asked.world.store.commit(transaction).await.unwrap();
        })
    }

    fn check(&self, _: &StoreJournal, asked: &Asked, end: End) -> Result<(), String> {
        let store = &asked.world.store;
        if asked.world.compute.prefetches(asked.world.node, self.image.id) {
            return Err("the node may still fetch the image".to_owned());
        }
        let held = store.counter(&format!("image/{}/wanted", self.image.id));
        if held != 0 {
            return Err(format!("the image is held {held} times"));
        }
        let there = asked.fetched.lock().unwrap().contains(&self.image.id);
        if end == End::Whole && !there { Err("the node does not have the image".to_owned()) } else { Ok(()) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_leaves_a_claim() {
    let image = ImageSource { id: ImageId::new(), format: DiskFormat::Raw, size: Bytes(10), sha256: "0".repeat(64) };
    let report = faults::check(&Prefetch { image, node: Mutex::default() }).await;
    assert!(report.struck > 20, "{report}");
    report.assert();
}
