//! Many who create servers at once: claims are exact, and no race breaks what a group wants.

use std::collections::BTreeMap;

use nephos_types::ServerGroupId;

use super::{super::CREATE, *};
use crate::{
    journal::{self, WorkflowRun},
    placement::Demand,
};

const CREATORS: usize = 64;

/// Creates servers of a group all at once on a world of `nodes` nodes, and says how many are on which.
async fn create_at_once(nodes: usize, group: ServerGroup) -> (World, BTreeMap<NodeId, u64>, ServerGroupId) {
    let world = World::new(|_| {}).await;
    let mut all = vec![world.node, world.other];
    while all.len() < nodes {
        let name = format!("more-{}", all.len());
        let node = world.compute.nodes.local(&name, &name).await.unwrap();
        let hello =
            Hello { protocol: PROTOCOL_VERSION, agent_version: "1".to_owned(), inventory: inventory(), program: None };
        world.compute.nodes.hello(node, "here".to_owned(), hello).await.unwrap();
        all.push(node);
    }
    let id = ServerGroupId::new();
    let draft = nephos_store::Draft::new(id, group).project(world.project);
    world.store.commit(Transaction::new(author()).create(draft)).await.unwrap();
    let runs: Vec<(ServerId, WorkflowId)> = (0..CREATORS).map(|_| (ServerId::new(), WorkflowId::new())).collect();
    for (server, run) in &runs {
        let mut body = running(world.node);
        body.node = None;
        body.observed = None;
        body.life = Life::Building;
        body.wanted = WantedPower::Off { grace_ms: 0 };
        body.placing.group = Some(id);
        body.task = Some(Task { name: "create".to_owned(), workflow: *run });
        let prepared = world.compute.engine.prepare(CREATE, *run, &serde_json::json!({ "server": server })).unwrap();
        let draft = nephos_store::Draft::new(*server, body).project(world.project);
        let transaction = journal::start(Transaction::new(author()).create(draft), prepared);
        world.store.commit(transaction).await.unwrap();
    }
    for (_, run) in &runs {
        world.compute.engine.kick(*run);
    }
    loop {
        for node in &all {
            world.work_on(*node).await;
        }
        let open = |run: &WorkflowId| !world.store.get::<WorkflowRun>(*run).unwrap().body.0.state.is_settled();
        if !runs.iter().any(|(_, run)| open(run)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut on: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut taken: BTreeMap<NodeId, Amounts> = BTreeMap::new();
    for (server, run) in &runs {
        let record = world.store.get::<Server>(*server).unwrap();
        match record.body.node {
            Some(node) => {
                assert_eq!(record.body.life, Life::Made);
                *on.entry(node).or_default() += 1;
                let sum = taken.entry(node).or_default();
                *sum = sum.plus(record.body.amounts());
            }
            None => {
                let run = world.store.get::<WorkflowRun>(*run).unwrap();
                assert_eq!(run.body.0.error.as_ref().map(|error| error.code.as_ref()), Some("no_placement"));
            }
        }
    }
    for node in &all {
        let mut wanted = taken.get(node).copied().unwrap_or_default();
        if *node == world.node {
            wanted = wanted.plus(world.server().amounts());
        }
        assert_eq!(super::super::used(&world.compute, *node), wanted);
        assert!(wanted.vcpus <= 16 && wanted.memory_mib <= 8192 && wanted.disk_gib <= 100, "{wanted:?}");
        let counted = world.store.counter(&format!("group/{id}/node/{node}"));
        assert_eq!(counted, i64::try_from(on.get(node).copied().unwrap_or(0)).unwrap());
    }
    (world, on, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_race_breaks_anti_affinity() {
    let group = ServerGroup { policy: GroupPolicy::AntiAffinity, max_per_node: 3 };
    let (_world, on, _) = create_at_once(12, group).await;
    assert_eq!(on.len(), 12);
    assert!(on.values().all(|count| *count == 3), "{on:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_race_breaks_affinity() {
    let group = ServerGroup { policy: GroupPolicy::Affinity, max_per_node: 1 };
    let (world, on, id) = create_at_once(4, group).await;
    // As many as have room on one node, of 8192 MiB for 1024 each.
    assert_eq!(on.len(), 1, "{on:?}");
    let (node, count) = on.into_iter().next().unwrap();
    let there_before = u64::from(node == world.node);
    assert_eq!(count + there_before, 8);
    assert_eq!(world.store.owner(&format!("group/{id}/place")), Some(node.to_string()));
    // Nothing more of the group finds a place, though other nodes are empty.
    let together = group::together(&world.store, id, &[]);
    let demand = Demand { group: together, ..running(world.node).demand() };
    let error = world.compute.candidates.check(&super::super::look(&world.compute), &demand).unwrap_err();
    assert!(error.reasons.iter().any(|reason| reason.constraint == "group"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_are_exact_without_a_group_that_insists() {
    let group = ServerGroup { policy: GroupPolicy::SoftAntiAffinity, max_per_node: 1 };
    let (_world, on, _) = create_at_once(4, group).await;
    // 8 fit on each node; one is there already.
    assert_eq!(on.values().sum::<u64>(), 31, "{on:?}");
}
